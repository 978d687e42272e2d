// Writes a step's K and V into their slots of one layer's block pool.
//
// Grid: (ceil(kv_heads * head_dim / 256), T, 1) threadgroups of 256 threads. A thread takes one element
// of K and of V. No barrier: slots are distinct, so no two threads write the same place.

template <typename KV, uint HEAD_DIM>
[[max_total_threads_per_threadgroup(256)]]
[[kernel]] void reshape_and_cache(
    const device float *keys [[buffer(0)]],    // [T, kv_heads, head_dim]
    const device float *values [[buffer(1)]],  // [T, kv_heads, head_dim]
    const device uint *slots [[buffer(2)]],    // [T]: block * block_tokens + token of the block
    device KV *pool [[buffer(3)]],             // [2, blocks, block_tokens, kv_heads, head_dim]: 0 is K, 1 is V
    constant Parameters &parameters [[buffer(4)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    const uint width = parameters.kv_heads * HEAD_DIM;
    const uint element = threadgroup_position.x * THREADS + thread_index;
    if (element >= width) {
        return;
    }
    const ulong from = ulong(threadgroup_position.y) * width + element;
    const ulong to = ulong(slots[threadgroup_position.y]) * width + element;
    pool[to] = KV(keys[from]);
    pool[half_elements(parameters, HEAD_DIM) + to] = KV(values[from]);
}

INSTANTIATE(reshape_and_cache)
