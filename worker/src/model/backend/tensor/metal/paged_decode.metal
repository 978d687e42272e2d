// Paged attention of few query vectors, with the context cut into partitions, and the kernel that joins them.
//
// Source: Flash-Decoding (Dao, Haziza, Massa, Sizov 2023): each partition gives an unnormalised output, the
// largest score and the sum of exp(score - largest), which can be joined. K and V are read through block tables as
// in PagedAttention (Kwon et al. 2023).

// Loads the elements of a K or V vector that this lane carries; those past the head's end are zero.
template <typename KV, uint HEAD_DIM>
inline void load(thread float *elements, const device KV *vector, uint lane) {
    UNROLL
    for (uint e = 0; e < elements_per_lane(HEAD_DIM); e++) {
        const uint element = lane + LANES * e;
        elements[e] = element < HEAD_DIM ? float(vector[element]) : 0.0f;
    }
}

// Grid: (tasks, kv_heads, 1) threadgroups of 256 threads. A task has vectors_per_simdgroup(head_dim) query vectors
// (fewer at the sequence's end) and one partition. The tasks of the same vectors lie partition after partition,
// from 0 to that of the vectors' last row, even where a window hides it.
//
// A simdgroup takes a tile of 32 positions. For scores, lanes hold elements of K and add up their products; lane i
// keeps the score of the tile's position i and makes a weight of it. For the output, lanes hold elements of V. At
// the end the states of the 8 simdgroups are joined, in order, one query vector at a time.
template <typename KV, uint HEAD_DIM>
[[max_total_threads_per_threadgroup(256)]]
[[kernel]] void paged_attention_decode(
    const device float *queries [[buffer(0)]],       // [T, heads, head_dim]
    const device KV *pool [[buffer(1)]],             // [2, blocks, block_tokens, kv_heads, head_dim]
    const device uint *block_tables [[buffer(2)]],   // the blocks of all sequences, one after the other
    const device Sequence *sequences [[buffer(3)]],
    const device Task *tasks [[buffer(4)]],
    device float *partial_values [[buffer(5)]],      // [tasks, kv_heads, vectors, head_dim]
    device float *partial_maxima [[buffer(6)]],      // [tasks, kv_heads, vectors]
    device float *partial_sums [[buffer(7)]],        // [tasks, kv_heads, vectors]; 0: nothing seen, no values
    constant Parameters &parameters [[buffer(8)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup_index [[simdgroup_index_in_threadgroup]]) {
    constexpr uint VECTORS = vectors_per_simdgroup(HEAD_DIM);
    constexpr uint ELEMENTS = elements_per_lane(HEAD_DIM);
    threadgroup float maxima[SIMDGROUPS * VECTORS];
    threadgroup float sums[SIMDGROUPS * VECTORS];
    threadgroup float shared_values[SIMDGROUPS * HEAD_DIM];  // of the query vector that is being joined

    const uint kv_head = threadgroup_position.y;
    const device Task &task = tasks[threadgroup_position.x];
    const device Sequence &sequence = sequences[task.sequence];
    const uint group = parameters.heads / parameters.kv_heads;
    const uint count = min(VECTORS, sequence.rows * group - task.first_vector);
    // Ends of what the first and the last vector see.
    const uint first_end = sequence.first_position + task.first_vector / group + 1;
    const uint last_end = sequence.first_position + (task.first_vector + count - 1) / group + 1;
    const ulong first_partial = (ulong(threadgroup_position.x) * parameters.kv_heads + kv_head) * VECTORS;

    // Positions of the partition that any of the vectors sees.
    const uint partition = task.partition * PARTITION_TOKENS;
    const uint seen_first = max(partition, first_seen(first_end, parameters.window));
    const uint seen_end = min(partition + PARTITION_TOKENS, last_end);
    if (seen_first >= seen_end) {
        if (simdgroup_index == 0 && lane < count) {
            partial_maxima[first_partial + lane] = LOWEST;
            partial_sums[first_partial + lane] = 0.0f;
        }
        return;
    }

    float query[VECTORS][ELEMENTS];
    float weighted[VECTORS][ELEMENTS];  // values times exp(score - maximum)
    UNROLL
    for (uint v = 0; v < VECTORS; v++) {
        const ulong from = vector_offset(sequence, task.first_vector + v, kv_head, parameters, HEAD_DIM);
        UNROLL
        for (uint e = 0; e < ELEMENTS; e++) {
            const uint element = lane + LANES * e;
            query[v][e] = v < count && element < HEAD_DIM ? queries[from + element] * parameters.scale : 0.0f;
            weighted[v][e] = 0.0f;
        }
    }

    // The simdgroup's tile. Its bounds are the same for all lanes, so that all lanes reach each simd function.
    const uint tile = partition + simdgroup_index * LANES;
    const uint tile_first = max(tile, seen_first);
    const uint tile_end = min(tile + LANES, seen_end);
    const uint position = tile + lane;
    const ulong token_elements = parameters.kv_heads * HEAD_DIM;
    const device KV *keys = pool + kv_head * HEAD_DIM;
    const device KV *values = keys + half_elements(parameters, HEAD_DIM);
    uint slot = 0;
    if (tile_first <= position && position < tile_end) {
        slot = slot_of(block_tables + sequence.first_block, position, parameters.block_tokens);
    }

    float scores[VECTORS];  // of this lane's position
    UNROLL
    for (uint v = 0; v < VECTORS; v++) {
        scores[v] = LOWEST;
    }
    for (uint p = tile_first; p < tile_end; p++) {
        float key[ELEMENTS];
        load<KV, HEAD_DIM>(key, keys + simd_shuffle(slot, ushort(p - tile)) * token_elements, lane);
        UNROLL
        for (uint v = 0; v < VECTORS; v++) {
            if (v < count) {
                float product = 0.0f;
                UNROLL
                for (uint e = 0; e < ELEMENTS; e++) {
                    product = fma(query[v][e], key[e], product);
                }
                product = simd_sum(product);
                scores[v] = p == position ? product : scores[v];
            }
        }
    }

    // Softmax within the tile: weights take the scores' place.
    UNROLL
    for (uint v = 0; v < VECTORS; v++) {
        if (v < count) {
            const uint end = sequence.first_position + (task.first_vector + v) / group + 1;
            const bool seen = sees(end, parameters.window, position);
            const float score = seen ? capped(scores[v], parameters.soft_cap) : LOWEST;
            const float maximum = simd_max(score);
            scores[v] = seen ? exp(score - maximum) : 0.0f;
            const float sum = simd_sum(scores[v]);
            if (lane == 0) {
                maxima[simdgroup_index * VECTORS + v] = maximum;
                sums[simdgroup_index * VECTORS + v] = sum;
            }
        }
    }

    for (uint p = tile_first; p < tile_end; p++) {
        float value[ELEMENTS];
        load<KV, HEAD_DIM>(value, values + simd_shuffle(slot, ushort(p - tile)) * token_elements, lane);
        UNROLL
        for (uint v = 0; v < VECTORS; v++) {
            if (v < count) {
                const float weight = simd_shuffle(scores[v], ushort(p - tile));
                UNROLL
                for (uint e = 0; e < ELEMENTS; e++) {
                    weighted[v][e] = weight > 0.0f ? fma(weight, value[e], weighted[v][e]) : weighted[v][e];
                }
            }
        }
    }

    const uint thread_index = simdgroup_index * LANES + lane;
    UNROLL
    for (uint v = 0; v < VECTORS; v++) {
        if (v < count) {
            UNROLL
            for (uint e = 0; e < ELEMENTS; e++) {
                const uint element = lane + LANES * e;
                if (element < HEAD_DIM) {
                    shared_values[simdgroup_index * HEAD_DIM + element] = weighted[v][e];
                }
            }
            // After it: the states of all simdgroups are there.
            threadgroup_barrier(mem_flags::mem_threadgroup);
            float maximum = LOWEST;
            for (uint s = 0; s < SIMDGROUPS; s++) {
                maximum = max(maximum, maxima[s * VECTORS + v]);
            }
            float sum = 0.0f;
            float value = 0.0f;
            for (uint s = 0; s < SIMDGROUPS; s++) {
                const float factor = exp(maxima[s * VECTORS + v] - maximum);
                sum = fma(sums[s * VECTORS + v], factor, sum);
                if (thread_index < HEAD_DIM) {
                    value = fma(shared_values[s * HEAD_DIM + thread_index], factor, value);
                }
            }
            if (thread_index < HEAD_DIM) {
                partial_values[(first_partial + v) * HEAD_DIM + thread_index] = value;
            }
            if (thread_index == 0) {
                partial_maxima[first_partial + v] = maximum;
                partial_sums[first_partial + v] = sum;
            }
            // After it: shared_values may take the next query vector.
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

INSTANTIATE(paged_attention_decode)

// Joins the partitions of query vectors, in order, and divides by the sum of weights.
//
// Grid: (joins, kv_heads, 1) threadgroups of 256 threads. A thread takes one element of the output after the other.
// No barrier.
template <typename KV, uint HEAD_DIM>
[[max_total_threads_per_threadgroup(256)]]
[[kernel]] void paged_attention_reduce(
    const device float *partial_values [[buffer(0)]],  // [tasks, kv_heads, vectors, head_dim]
    const device float *partial_maxima [[buffer(1)]],  // [tasks, kv_heads, vectors]
    const device float *partial_sums [[buffer(2)]],    // [tasks, kv_heads, vectors]
    const device Sequence *sequences [[buffer(3)]],
    const device Join *joins [[buffer(4)]],
    device float *output [[buffer(5)]],                // [T, heads, head_dim]
    constant Parameters &parameters [[buffer(6)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    constexpr uint VECTORS = vectors_per_simdgroup(HEAD_DIM);
    const uint kv_head = threadgroup_position.y;
    const device Join &join = joins[threadgroup_position.x];
    const device Sequence &sequence = sequences[join.sequence];
    const uint group = parameters.heads / parameters.kv_heads;
    const uint count = min(VECTORS, sequence.rows * group - join.first_vector);
    for (uint i = thread_index; i < count * HEAD_DIM; i += THREADS) {
        const uint v = i / HEAD_DIM;
        const uint element = i % HEAD_DIM;
        float maximum = LOWEST;
        float sum = 0.0f;
        float value = 0.0f;
        for (uint p = 0; p < join.partitions; p++) {
            const ulong partial = (ulong(join.first_task + p) * parameters.kv_heads + kv_head) * VECTORS + v;
            if (partial_sums[partial] > 0.0f) {
                const float joined = max(maximum, partial_maxima[partial]);
                const float ours = exp(maximum - joined);
                const float theirs = exp(partial_maxima[partial] - joined);
                sum = fma(partial_sums[partial], theirs, sum * ours);
                value = fma(partial_values[partial * HEAD_DIM + element], theirs, value * ours);
                maximum = joined;
            }
        }
        const ulong to = vector_offset(sequence, join.first_vector + v, kv_head, parameters, HEAD_DIM);
        output[to + element] = value / sum;
    }
}

INSTANTIATE(paged_attention_reduce)
