// One step of one layer, as the worker's host side prepares and dispatches it, over a pool whose unused slots are NaN.
#pragma once

#include "kernels.hpp"

#include <vector>

namespace test {

constexpr uint NO_WINDOW = 0xffffffff;

struct Shape {
    Format format;
    uint head_dim;
    uint group;  // query heads a KV head
    uint kv_heads;
    uint block_tokens;
    uint window = NO_WINDOW;
    float soft_cap = 0;
    float query_size = 1;  // standard deviation of the queries

    uint heads() const { return group * kv_heads; }
};

// A sequence in the step: its rows are the last of its context.
struct Rows {
    uint context;
    uint rows;
};

// Which kernel takes a sequence: decode if it has one row, or one of them for all.
enum class Route { by_rows, decode, prefill };

// The pool of a layer in its number format, `[2, blocks, block_tokens, kv_heads, head_dim]`.
struct Pool {
    Format format;
    std::vector<unsigned char> bytes;

    Pool(Format format, size_t elements);  // all NaN
    float get(size_t index) const;
    void set(size_t index, float value);
};

// Records that the kernels read, laid out as in common.metal.
struct Parameters {
    uint heads, kv_heads, blocks, block_tokens, window;
    float scale, soft_cap;
};
struct Sequence {
    uint first_row, rows, first_position, first_block;
};
struct Task {
    uint sequence, first_vector, partition;
};
struct Join {
    uint sequence, first_vector, first_task, partitions;
};

class Step {
public:
    // Random queries, keys and values; the pool holds what the sequences had before the step.
    Step(const Shape &shape, const std::vector<Rows> &rows, uint seed);

    // Writes the step's K and V with the kernel. False if the pool is then not what it should be, bit by bit.
    bool write(uint seed);

    // Attention with the kernels, `[T, heads, head_dim]`; what is not written stays NaN.
    std::vector<float> attend(Route route, uint seed) const;

    // Attention in double precision over what the pool holds.
    std::vector<double> reference() const;

    // Index of a position's vector in K; that in V is `half` further.
    size_t vector_index(const Sequence &sequence, uint position, uint kv_head) const;

    const Shape shape;
    uint rows = 0;
    uint blocks = 0;
    size_t half;
    std::vector<float> queries, keys, values;
    std::vector<uint> slots, block_tables;
    std::vector<Sequence> sequences;
    Pool pool;

private:
    Parameters parameters() const;
    void attend_by_decode(const std::vector<uint> &chosen, std::vector<float> &output, uint seed) const;
    void attend_by_prefill(const std::vector<uint> &chosen, std::vector<float> &output, uint seed) const;

    Kernels kernels;
    std::vector<uint> positions;  // of each row
};

}  // namespace test
