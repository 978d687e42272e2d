// Paged attention of many query vectors: tiles of query vectors against tiles of 32 positions.
//
// Source: FlashAttention-2 (Dao 2023): a tile of queries stays, K and V pass by, softmax is kept up to date (online
// softmax, Milakov and Gimelshein 2018). Tiles of positions begin at absolute multiples of 32 and come in order, so
// a row's result does not depend on where its prompt was cut or on the rows beside it.

static constant constexpr const uint QUADS = LANES / 4;
// Float4s of a staged position. One more than needed: lanes that read a column then meet different memory banks.
static constant constexpr const uint STAGED_QUADS = QUADS + 1;

// The slot of a position that is not to be read.
static constant constexpr const uint NO_SLOT = 0xffffffff;

// Copies 32 elements, from `slice` * 32, of a KV head's K or V at the tile's positions to threadgroup memory as
// `[position][element]`. `slot` is that of the position at this lane. What has no slot is not read; it and the
// elements past the head's end become zero. All threads of the threadgroup call it, between two barriers.
template <typename KV, uint HEAD_DIM>
inline void stage(
    threadgroup float *staged,
    const device KV *head,
    ulong token_elements,
    uint slot,
    uint slice,
    uint simdgroup_index,
    uint lane) {
    const uint element = slice * LANES + lane;
    for (uint p = simdgroup_index; p < LANES; p += SIMDGROUPS) {
        const uint wanted = simd_shuffle(slot, ushort(p));
        const bool exists = wanted != NO_SLOT && element < HEAD_DIM;
        staged[p * STAGED_QUADS * 4 + lane] = exists ? float(head[wanted * token_elements + element]) : 0.0f;
    }
}

// Adds a slice of the tile's V, times the weights of VECTORS query vectors, to `weighted`, one element a lane.
// MASKED: some weights are of positions that the vector does not see; they are zero and their values are skipped.
template <uint VECTORS, bool MASKED>
inline void add_values(
    thread float *weighted,
    const threadgroup float4 *weights,  // [VECTORS][32 positions]
    const threadgroup float *staged,
    uint lane) {
    for (uint quad = 0; quad < QUADS; quad++) {
        float value[4];
        for (uint i = 0; i < 4; i++) {
            value[i] = staged[(quad * 4 + i) * STAGED_QUADS * 4 + lane];
        }
        UNROLL
        for (uint v = 0; v < VECTORS; v++) {
            const float4 weight = weights[v * QUADS + quad];
            for (uint i = 0; i < 4; i++) {
                weighted[v] = !MASKED || weight[i] > 0.0f ? fma(weight[i], value[i], weighted[v]) : weighted[v];
            }
        }
    }
}

// Grid: (tasks, kv_heads, 1) threadgroups of 256 threads. A task has 8 * vectors_per_simdgroup(head_dim) query vectors
// (fewer at the sequence's end), shared out to the simdgroups in order.
//
// K and V pass through threadgroup memory in slices of 32 positions by 32 elements. For scores, lane i has the
// tile's position i and reads its simdgroup's queries from threadgroup memory; for values, lane i has element i of
// the slice and reads the weights from there. Each slice is written between two barriers: the first waits until all
// have read the slice before, the second until all have written this one.
template <typename KV, uint HEAD_DIM>
[[max_total_threads_per_threadgroup(256)]]
[[kernel]] void paged_attention_prefill(
    const device float *queries [[buffer(0)]],      // [T, heads, head_dim]
    const device KV *pool [[buffer(1)]],            // [2, blocks, block_tokens, kv_heads, head_dim]
    const device uint *block_tables [[buffer(2)]],  // the blocks of all sequences, one after the other
    const device Sequence *sequences [[buffer(3)]],
    const device Task *tasks [[buffer(4)]],
    device float *output [[buffer(5)]],             // [T, heads, head_dim]
    constant Parameters &parameters [[buffer(6)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup_index [[simdgroup_index_in_threadgroup]]) {
    constexpr uint VECTORS = vectors_per_simdgroup(HEAD_DIM);
    constexpr uint ELEMENTS = elements_per_lane(HEAD_DIM);
    threadgroup float4 staged[LANES * STAGED_QUADS];           // [position][element], of K or V
    threadgroup float4 own_quads[SIMDGROUPS * VECTORS * QUADS];  // [simdgroup][vector][32]: queries, then weights
    threadgroup float *staged_floats = (threadgroup float *)staged;
    threadgroup float4 *own = own_quads + simdgroup_index * VECTORS * QUADS;
    threadgroup float *own_floats = (threadgroup float *)own;

    const uint kv_head = threadgroup_position.y;
    const device Task &task = tasks[threadgroup_position.x];
    const device Sequence &sequence = sequences[task.sequence];
    const uint group = parameters.heads / parameters.kv_heads;
    const uint end_vector = min(task.first_vector + SIMDGROUPS * VECTORS, sequence.rows * group);
    const uint first_vector = task.first_vector + simdgroup_index * VECTORS;

    // Positions that any of the task's vectors sees.
    const uint first_end = sequence.first_position + task.first_vector / group + 1;
    const uint seen_first = first_seen(first_end, parameters.window);
    const uint seen_end = sequence.first_position + (end_vector - 1) / group + 1;

    float query[VECTORS][ELEMENTS];
    float weighted[ELEMENTS][VECTORS];  // values times exp(score - maximum)
    float maximum[VECTORS];
    float sum[VECTORS];
    uint ends[VECTORS];                 // of what each vector sees; 0 for vectors past the last
    uint all_see_first = 0;             // positions that every vector of this simdgroup sees
    uint all_see_end = 0xffffffff;
    UNROLL
    for (uint v = 0; v < VECTORS; v++) {
        const uint vector = first_vector + v;
        const bool exists = vector < end_vector;
        const ulong from = exists ? vector_offset(sequence, vector, kv_head, parameters, HEAD_DIM) : 0;
        UNROLL
        for (uint e = 0; e < ELEMENTS; e++) {
            const uint element = lane + LANES * e;
            query[v][e] = exists && element < HEAD_DIM ? queries[from + element] * parameters.scale : 0.0f;
            weighted[e][v] = 0.0f;
        }
        maximum[v] = LOWEST;
        sum[v] = 0.0f;
        ends[v] = exists ? sequence.first_position + vector / group + 1 : 0;
        all_see_first = max(all_see_first, first_seen(ends[v], parameters.window));
        all_see_end = min(all_see_end, ends[v]);
    }

    const ulong token_elements = parameters.kv_heads * HEAD_DIM;
    const device KV *keys = pool + kv_head * HEAD_DIM;
    const device KV *values = keys + half_elements(parameters, HEAD_DIM);
    for (uint tile = seen_first / LANES * LANES; tile < seen_end; tile += LANES) {
        const uint position = tile + lane;
        uint slot = NO_SLOT;
        if (seen_first <= position && position < seen_end) {
            slot = slot_of(block_tables + sequence.first_block, position, parameters.block_tokens);
        }

        float scores[VECTORS];  // of this lane's position
        UNROLL
        for (uint v = 0; v < VECTORS; v++) {
            scores[v] = 0.0f;
        }
        UNROLL
        for (uint e = 0; e < ELEMENTS; e++) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            stage<KV, HEAD_DIM>(staged_floats, keys, token_elements, slot, e, simdgroup_index, lane);
            UNROLL
            for (uint v = 0; v < VECTORS; v++) {
                own_floats[v * LANES + lane] = query[v][e];
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint quad = 0; quad < QUADS; quad++) {
                const float4 key = staged[lane * STAGED_QUADS + quad];
                UNROLL
                for (uint v = 0; v < VECTORS; v++) {
                    scores[v] += dot(own[v * QUADS + quad], key);
                }
            }
        }

        // Softmax so far, and this tile's weights where the queries were.
        simdgroup_barrier(mem_flags::mem_threadgroup);
        UNROLL
        for (uint v = 0; v < VECTORS; v++) {
            const bool seen = sees(ends[v], parameters.window, position);
            const float score = seen ? capped(scores[v], parameters.soft_cap) : LOWEST;
            const float joined = max(maximum[v], simd_max(score));
            const float correction = exp(maximum[v] - joined);
            const float weight = seen ? exp(score - joined) : 0.0f;
            own_floats[v * LANES + lane] = weight;
            maximum[v] = joined;
            sum[v] = fma(sum[v], correction, simd_sum(weight));
            UNROLL
            for (uint e = 0; e < ELEMENTS; e++) {
                weighted[e][v] *= correction;
            }
        }

        const bool masked = tile < all_see_first || tile + LANES > all_see_end;
        UNROLL
        for (uint e = 0; e < ELEMENTS; e++) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            stage<KV, HEAD_DIM>(staged_floats, values, token_elements, slot, e, simdgroup_index, lane);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (masked) {
                add_values<VECTORS, true>(weighted[e], own, staged_floats, lane);
            } else {
                add_values<VECTORS, false>(weighted[e], own, staged_floats, lane);
            }
        }
    }

    UNROLL
    for (uint v = 0; v < VECTORS; v++) {
        if (first_vector + v < end_vector) {
            const ulong to = vector_offset(sequence, first_vector + v, kv_head, parameters, HEAD_DIM);
            UNROLL
            for (uint e = 0; e < ELEMENTS; e++) {
                const uint element = lane + LANES * e;
                if (element < HEAD_DIM) {
                    output[to + element] = weighted[e][v] / sum[v];
                }
            }
        }
    }
}

INSTANTIATE(paged_attention_prefill)
