#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>

namespace test {
namespace {

constexpr uint THREADS = 256;
constexpr uint PARTITION_TOKENS = 256;
// More blocks in the pool than the sequences have.
constexpr uint SPARE_BLOCKS = 3;

uint divide_up(uint a, uint b) { return (a + b - 1) / b; }

uint vectors_per_simdgroup(uint head_dim) { return head_dim <= 128 ? 8 : 4; }

Kernels kernels_for(const Shape &shape) {
    const auto *found = std::find(std::begin(HEAD_DIMS), std::end(HEAD_DIMS), shape.head_dim);
    const size_t index = found - std::begin(HEAD_DIMS);
    switch (shape.format) {
        case Format::f16: return kernels_f16(index);
        case Format::bf16: return kernels_bf16(index);
        default: return kernels_f32(index);
    }
}

size_t element_bytes(Format format) { return format == Format::f32 ? 4 : 2; }

// The nearer of the two neighbours in bf16; of two as near, the even one.
uint16_t bf16_bits(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    const uint32_t below = word >> 16, rest = word & 0xffff;
    return below + (rest > 0x8000 || (rest == 0x8000 && below % 2 == 1));
}

uint count_blocks(const std::vector<Rows> &rows, uint block_tokens) {
    uint blocks = SPARE_BLOCKS;
    for (const Rows &sequence : rows) {
        blocks += divide_up(sequence.context, block_tokens);
    }
    return blocks;
}

}  // namespace

Pool::Pool(Format format, size_t elements) : format(format), bytes(elements * element_bytes(format), 0xff) {}

float Pool::get(size_t index) const {
    const unsigned char *from = &bytes[index * element_bytes(format)];
    uint32_t word = 0;
    memcpy(&word, from, element_bytes(format));
    if (format == Format::f16) {
        _Float16 half;
        memcpy(&half, from, 2);
        return half;
    }
    word <<= format == Format::bf16 ? 16 : 0;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

void Pool::set(size_t index, float value) {
    const _Float16 half = value;
    const uint16_t bf16 = bf16_bits(value);
    const void *from = format == Format::f16 ? (const void *)&half : format == Format::bf16 ? (const void *)&bf16 : &value;
    memcpy(&bytes[index * element_bytes(format)], from, element_bytes(format));
}

Step::Step(const Shape &shape, const std::vector<Rows> &wanted, uint seed)
    : shape(shape),
      blocks(count_blocks(wanted, shape.block_tokens)),
      half(size_t(blocks) * shape.block_tokens * shape.kv_heads * shape.head_dim),
      pool(shape.format, 2 * half),
      kernels(kernels_for(shape)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<uint> free(blocks);
    for (uint i = 0; i < blocks; i++) {
        free[i] = i;
    }
    std::shuffle(free.begin(), free.end(), random);

    for (const Rows &sequence : wanted) {
        const uint first_position = sequence.context - sequence.rows;
        sequences.push_back({rows, sequence.rows, first_position, uint(block_tables.size())});
        for (uint i = 0; i < divide_up(sequence.context, shape.block_tokens); i++) {
            block_tables.push_back(free.back());
            free.pop_back();
        }
        for (uint position = 0; position < sequence.context; position++) {
            if (position >= first_position) {
                const uint block = block_tables[sequences.back().first_block + position / shape.block_tokens];
                slots.push_back(block * shape.block_tokens + position % shape.block_tokens);
                continue;
            }
            for (uint i = 0; i < shape.kv_heads * shape.head_dim; i++) {
                const size_t index = vector_index(sequences.back(), position, 0) + i;
                pool.set(index, normal(random));
                pool.set(half + index, normal(random));
            }
        }
        rows += sequence.rows;
    }
    for (size_t i = 0; i < size_t(rows) * shape.heads() * shape.head_dim; i++) {
        queries.push_back(normal(random) * shape.query_size);
    }
    for (size_t i = 0; i < size_t(rows) * shape.kv_heads * shape.head_dim; i++) {
        keys.push_back(normal(random));
        values.push_back(normal(random));
    }
}

size_t Step::vector_index(const Sequence &sequence, uint position, uint kv_head) const {
    const size_t block = block_tables[sequence.first_block + position / shape.block_tokens];
    const size_t slot = block * shape.block_tokens + position % shape.block_tokens;
    return (slot * shape.kv_heads + kv_head) * shape.head_dim;
}

Parameters Step::parameters() const {
    const float scale = 1 / std::sqrt(float(shape.head_dim));
    return {shape.heads(), shape.kv_heads, blocks, shape.block_tokens, shape.window, scale, shape.soft_cap};
}

bool Step::write(uint seed) {
    Pool expected = pool;
    const size_t width = shape.kv_heads * shape.head_dim;
    for (size_t row = 0; row < rows; row++) {
        for (size_t i = 0; i < width; i++) {
            expected.set(slots[row] * width + i, keys[row * width + i]);
            expected.set(half + slots[row] * width + i, values[row * width + i]);
        }
    }
    const Parameters scalars = parameters();
    const msl::Buffers buffers{{keys.data(), values.data(), slots.data(), pool.bytes.data(), &scalars}};
    msl::dispatch(kernels.reshape_and_cache, uint3{divide_up(width, THREADS), rows, 1}, THREADS, buffers, seed);
    return pool.bytes == expected.bytes;
}

std::vector<float> Step::attend(Route route, uint seed) const {
    std::vector<float> output(queries.size(), NAN);
    std::vector<uint> decode, prefill;
    for (uint i = 0; i < sequences.size(); i++) {
        const bool few = route == Route::decode || (route == Route::by_rows && sequences[i].rows == 1);
        (few ? decode : prefill).push_back(i);
    }
    attend_by_decode(decode, output, seed);
    attend_by_prefill(prefill, output, seed);
    return output;
}

void Step::attend_by_decode(const std::vector<uint> &chosen, std::vector<float> &output, uint seed) const {
    const uint tile = vectors_per_simdgroup(shape.head_dim);
    std::vector<Task> tasks;
    std::vector<Join> joins;
    for (uint index : chosen) {
        const uint vectors = sequences[index].rows * shape.group;
        for (uint first = 0; first < vectors; first += tile) {
            const uint last_row = (std::min(first + tile, vectors) - 1) / shape.group;
            const uint end = sequences[index].first_position + last_row + 1;
            joins.push_back({index, first, uint(tasks.size()), divide_up(end, PARTITION_TOKENS)});
            for (uint partition = 0; partition < joins.back().partitions; partition++) {
                tasks.push_back({index, first, partition});
            }
        }
    }
    const size_t partials = tasks.size() * shape.kv_heads * tile;
    std::vector<float> partial_values(partials * shape.head_dim, NAN), maxima(partials, NAN), sums(partials, NAN);
    const Parameters scalars = parameters();
    const msl::Buffers decode{{queries.data(), pool.bytes.data(), block_tables.data(), sequences.data(), tasks.data(),
                               partial_values.data(), maxima.data(), sums.data(), &scalars}};
    const msl::Buffers reduce{{partial_values.data(), maxima.data(), sums.data(), sequences.data(), joins.data(),
                               output.data(), &scalars}};
    const uint3 task_grid{uint(tasks.size()), shape.kv_heads, 1}, join_grid{uint(joins.size()), shape.kv_heads, 1};
    msl::dispatch(kernels.paged_attention_decode, task_grid, THREADS, decode, seed);
    msl::dispatch(kernels.paged_attention_reduce, join_grid, THREADS, reduce, seed);
}

void Step::attend_by_prefill(const std::vector<uint> &chosen, std::vector<float> &output, uint seed) const {
    const uint tile = THREADS / msl::LANES * vectors_per_simdgroup(shape.head_dim);
    std::vector<Task> tasks;
    for (uint index : chosen) {
        for (uint first = 0; first < sequences[index].rows * shape.group; first += tile) {
            tasks.push_back({index, first, 0});
        }
    }
    const Parameters scalars = parameters();
    const msl::Buffers buffers{{queries.data(), pool.bytes.data(), block_tables.data(), sequences.data(), tasks.data(),
                                output.data(), &scalars}};
    const uint3 grid{uint(tasks.size()), shape.kv_heads, 1};
    msl::dispatch(kernels.paged_attention_prefill, grid, THREADS, buffers, seed);
}

std::vector<double> Step::reference() const {
    std::vector<double> output(queries.size());
    std::vector<float> stored(2 * half);
    for (size_t i = 0; i < stored.size(); i++) {
        stored[i] = pool.get(i);
    }
    const double scale = 1 / std::sqrt(double(shape.head_dim));
    for (const Sequence &sequence : sequences) {
        for (uint vector = 0; vector < sequence.rows * shape.heads(); vector++) {
            const uint row = vector / shape.heads(), head = vector % shape.heads();
            const uint end = sequence.first_position + row + 1;
            const uint first = end > shape.window ? end - shape.window : 0;
            const size_t at = (size_t(sequence.first_row + row) * shape.heads() + head) * shape.head_dim;
            std::vector<double> weights;
            for (uint position = first; position < end; position++) {
                const float *key = &stored[vector_index(sequence, position, head / shape.group)];
                double score = 0;
                for (uint i = 0; i < shape.head_dim; i++) {
                    score += double(queries[at + i]) * key[i];
                }
                score *= scale;
                weights.push_back(shape.soft_cap > 0 ? shape.soft_cap * std::tanh(score / shape.soft_cap) : score);
            }
            const double largest = *std::max_element(weights.begin(), weights.end());
            double sum = 0;
            for (double &weight : weights) {
                weight = std::exp(weight - largest);
                sum += weight;
            }
            for (uint position = first; position < end; position++) {
                const float *value = &stored[half + vector_index(sequence, position, head / shape.group)];
                for (uint i = 0; i < shape.head_dim; i++) {
                    output[at + i] += weights[position - first] / sum * value[i];
                }
            }
        }
    }
    return output;
}

}  // namespace test
