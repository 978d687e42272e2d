// What the kernels of paged attention share: the records the host fills in, and what a row sees.
//
// The source of the library is this file, then reshape_and_cache.metal, paged_decode.metal and
// paged_prefill.metal, with two definitions before them: TURNMILL_KV, the pool's number format (half, bfloat or
// float), and TURNMILL_HEAD_DIM, the elements of a head (a multiple of 16, at most 256). So a library holds one
// pipeline a kernel, called turnmill_ and the kernel's name. In a kernel's signature every buffer stands on a
// line of its own as `name [[buffer(n)]]`, in the order in which the host binds them.
//
// Invariants:
// * Threadgroups have 256 threads, which are 8 simdgroups of 32 lanes; the kernels say so to the compiler.
// * Every sum is in f32; the pool's format is only stored. K and V are read from the pool only.
// * A slot that no row of the task sees is never read; a position that a row does not see is skipped, never
//   multiplied by zero: zero times NaN is NaN.
// * Nothing is infinite or NaN by design and nothing tests for it, because Apple's compiler assumes there is
//   neither (fast math). Before the first score the maximum is LOWEST; where nothing was seen the sum is zero.
// * A row's context is cut at fixed absolute positions, so the other rows do not move a cut.
//
// All of this runs on a CPU in tests/metal, through a stand-in for metal_stdlib. What only a Mac can tell (Apple's
// parser, its fast math, speed) is unmeasured.

#include <metal_stdlib>
using namespace metal;

#if !defined(TURNMILL_KV) || !defined(TURNMILL_HEAD_DIM)
#error "define TURNMILL_KV and TURNMILL_HEAD_DIM before this source"
#endif

static constant constexpr const uint LANES = 32;
static constant constexpr const uint SIMDGROUPS = 8;
static constant constexpr const uint THREADS = SIMDGROUPS * LANES;
// Positions that a threadgroup of the decode kernel takes: a tile of 32 for each simdgroup.
static constant constexpr const uint PARTITION_TOKENS = SIMDGROUPS * LANES;
// Below every score, and far enough from -FLT_MAX that a score can be subtracted from it.
static constant constexpr const float LOWEST = -1.0e30f;

// Scalars of a layer, the same for all kernels.
struct Parameters {
    uint heads;         // query heads, a multiple of kv_heads
    uint kv_heads;      // key and value heads
    uint blocks;        // blocks in the pool
    uint block_tokens;  // tokens in a block
    uint window;        // positions that a row sees, itself among them; 0xffffffff: all
    float scale;        // scores are multiplied by it
    float soft_cap;     // scores become cap * tanh(score / cap); 0: they stay
};

// One sequence's rows in a step.
struct Sequence {
    uint first_row;       // its first row in queries and output
    uint rows;            // how many it has, at least 1
    uint first_position;  // position of its first row
    uint first_block;     // where its blocks begin in block_tables
};

// What one threadgroup computes, for each KV head. A sequence's query vectors are numbered within a KV head:
// vector v is row v / group and query head kv_head * group + v % group, where group = heads / kv_heads. So query
// heads of a group, and rows, share each K and V that is loaded, whatever the group's size.
struct Task {
    uint sequence;      // index of the sequence
    uint first_vector;  // first of the query vectors
    uint partition;     // decode: positions from partition * PARTITION_TOKENS; prefill: 0
};

// Partitions of the same query vectors, for the reduce kernel: as many tasks from first_task on, in order.
struct Join {
    uint sequence;
    uint first_vector;
    uint first_task;
    uint partitions;
};

// Query vectors that a simdgroup carries in registers, which is also what a decode task has. A prefill task has
// SIMDGROUPS times as many.
constexpr uint vectors_per_simdgroup(uint head_dim) { return head_dim <= 128 ? 8 : 4; }

// Elements of a head that a lane carries: lane, lane + 32, and so on. The last may lie past the head's end.
constexpr uint elements_per_lane(uint head_dim) { return (head_dim + 31) / 32; }

// A row at position end - 1 sees the positions from first_seen to before `end`.
inline uint first_seen(uint end, uint window) { return end > window ? end - window : 0; }

// Whether a row at position end - 1 sees `position`. With an `end` of 0 it sees nothing.
inline bool sees(uint end, uint window, uint position) { return position < end && end - position <= window; }

// The slot of `position`: slots number the pool's tokens.
inline uint slot_of(const device uint *blocks, uint position, uint block_tokens) {
    return blocks[position / block_tokens] * block_tokens + position % block_tokens;
}

// Elements of all of K, which is where V starts in the pool.
inline ulong half_elements(constant Parameters &parameters, uint head_dim) {
    return ulong(parameters.blocks) * parameters.block_tokens * parameters.kv_heads * head_dim;
}

// Offset of a query vector in queries and output, `[T, heads, head_dim]`.
inline ulong vector_offset(
    const device Sequence &sequence, uint vector, uint kv_head, constant Parameters &parameters, uint head_dim) {
    const uint group = parameters.heads / parameters.kv_heads;
    const ulong row = sequence.first_row + vector / group;
    return (row * parameters.heads + kv_head * group + vector % group) * head_dim;
}

// precise::tanh, because the fast one need not be right for large arguments.
inline float capped(float score, float soft_cap) {
    return soft_cap > 0.0f ? soft_cap * precise::tanh(score / soft_cap) : score;
}

// Before loops over arrays that are to stay in registers: only indices that the compiler knows let them.
#define UNROLL _Pragma("clang loop unroll(full)")

// Makes the pipeline turnmill_NAME.
#define INSTANTIATE(NAME)                                          \
    template [[host_name("turnmill_" #NAME)]] [[kernel]] decltype( \
        NAME<TURNMILL_KV, TURNMILL_HEAD_DIM>) NAME<TURNMILL_KV, TURNMILL_HEAD_DIM>;
