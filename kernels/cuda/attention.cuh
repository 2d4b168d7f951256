// What both kernels of attention have in common: the work, the order of summation, and
// how queries and outputs move.
//
// A row is one Q head of one query token. Its context is walked in chunks of CHUNK
// tokens; a chunk's partial result (maximum, sum, output) starts afresh and goes through
// the chunk tile by tile (online softmax: Milakov and Gimelshein, 2018; FlashAttention-2:
// Dao, 2023), and chunks' results are added up in their order. Whoever computes a chunk,
// it takes the same operations in the same order. So a row's bits depend on its own
// context only: not on its neighbours, not on how the prompt was cut up, not on how many
// blocks shared a context out, and not on which of the two kernels computed it.
#pragma once

#include "kv_tiles.cuh"
#include "prompt_tiles.cuh"

// What one block does, for each KV head.
struct Work {
    // The sequence's first row in the batch, and how many it has; none: there is no work.
    uint32_t first_query;
    uint32_t num_queries;
    uint32_t context_len;
    // Where its slot's block table begins in `block_tables`.
    uint32_t blocks;
    // The first packed row: (row in its sequence) * group + head in its group.
    uint32_t first_row;
    // decode_attention only, from here on. The block's chunks.
    uint32_t first_chunk;
    uint32_t num_chunks;
    // Partial results that are added up to the rows': of the chunk `first_partial` and those before
    // it, then of one chunk each.
    uint32_t first_partial;
    uint32_t num_partials;
    // Blocks that leave partial results, of which the last adds up; 0: this one has all chunks.
    uint32_t num_blocks;
    // Where the rows' partials start, and their ticket; both for KV head 0.
    uint32_t partial;
    uint32_t ticket;
};

struct PagedAttention {
    // [num_work]
    const Work* work;
    // [tokens, q_stride]: Q comes first in a row.
    const void* q;
    // The layer's cache.
    const void* cache;
    // [tokens, num_kv_heads * group * head_dim]
    void* out;
    // [num_groups, max_num_seqs, blocks_per_seq]: by slot, from step to step. What entries
    // wholly below what a sequence's first row sees refer to is not read.
    const uint32_t* block_tables;
    // [partials, head_dim + PARTIAL_HEAD], f32: maximum, sum, and after them outputs;
    // of a sequence, for each KV head [num_partials, rows].
    float* partials;
    // [tickets], zero before and after.
    uint32_t* tickets;
    uint32_t q_stride;
    uint32_t num_kv_heads;
    // Q heads of a KV head.
    uint32_t group;
    // Positions a query sees, its own included; 0: all.
    uint32_t window;
    // What q . k is multiplied with (an e4m3 cache's K scale is in it): without a cap to
    // give powers of two (log2 e is in it), with one to give the tangent's argument.
    float scale;
    // Scores become cap * tanh(score / cap), in powers of two; 0: they do not.
    float soft_cap;
    // Factor on outputs: V's scale.
    float v_scale;
    // 1: a query sees positions up to its own; 0: all of its sequence's context.
    uint32_t causal;
};

constexpr uint32_t CHUNK = 256;
// Floats before a partial's outputs.
constexpr int PARTIAL_HEAD = 4;

// ATTENTION(name, T, C, D), which both kernels define, for every D.
#define ATTENTION_OF_HEAD_DIMS(name, T, C)                                                         \
    ATTENTION(name, T, C, 64)                                                                      \
    ATTENTION(name, T, C, 80)                                                                      \
    ATTENTION(name, T, C, 96)                                                                      \
    ATTENTION(name, T, C, 128)                                                                     \
    ATTENTION(name, T, C, 256)

#define NEGATIVE_INFINITY (-__builtin_inff())

// The factors by which a partial of maximum `a` and one of maximum `b` are summed
// under their common maximum. A partial that saw nothing leaves the other's bits.
struct Weights {
    float maximum;
    float of_a;
    float of_b;
};

__device__ __forceinline__ Weights merge_weights(float a, float b) {
    const float maximum = fmaxf(a, b);
    const float base = maximum == NEGATIVE_INFINITY ? 0.0f : maximum;
    return {maximum, power_of_two(a - base), power_of_two(b - base)};
}

__device__ __forceinline__ float merged(const Weights& weights, float a, float b) {
    return fmaf(b, weights.of_b, a * weights.of_a);
}

// What a block's work refers to.
template <typename T, typename C, int D> struct Sequence {
    using M = Multiplied<T, C>;
    // Elements from one row of Q to the next in shared memory. So eight rows' pieces lie
    // in different banks, and what is left holds the row's factor.
    static constexpr int Q_STRIDE = D + 8;

    const PagedAttention& p;
    const Work& work;
    uint32_t kv_head;
    // Packed rows.
    uint32_t num_rows;

    __device__ __forceinline__ Sequence(const PagedAttention& p, const Work& work, uint32_t kv_head)
        : p(p), work(work), kv_head(kv_head), num_rows(work.num_queries * p.group) {}

    __device__ __forceinline__ int position(uint32_t row) const {
        return int(work.context_len - work.num_queries + row / p.group);
    }

    // The last position that a row sees.
    __device__ __forceinline__ int last_seen(uint32_t row) const {
        return p.causal != 0 ? position(row) : int(work.context_len) - 1;
    }

    // The first position that a row sees.
    __device__ __forceinline__ int first_seen(uint32_t row) const {
        return p.window > 0 ? max(position(row) + 1 - int(p.window), 0) : 0;
    }

    template <int WARPS, int SLOTS>
    __device__ __forceinline__ Ring<C, D, WARPS, SLOTS> ring(C* slots, uint32_t first, uint32_t end) const {
        const size_t page = size_t(BLOCK_TOKENS) * D;
        const uint32_t seen = uint32_t(first_seen(work.first_row)) / BLOCK_TOKENS * BLOCK_TOKENS;
        return {slots, static_cast<const C*>(p.cache) + kv_head * page, p.num_kv_heads * page,
                p.block_tables + work.blocks, first, seen, end};
    }

    template <int WARPS>
    __device__ __forceinline__ PromptTiles<C, D, WARPS> tiles(C* slots, uint32_t first, uint32_t end) const {
        const size_t page = size_t(BLOCK_TOKENS) * D;
        const uint32_t seen = uint32_t(first_seen(work.first_row)) / BLOCK_TOKENS * BLOCK_TOKENS;
        return {slots, static_cast<const C*>(p.cache) + kv_head * page, p.num_kv_heads * page,
                p.block_tables + work.blocks, first, seen, end};
    }

    // What the scores of a row that was staged at `query` are multiplied with to be powers
    // of two, or with a cap, to be the tangent's argument.
    __device__ __forceinline__ float scale(const M* query) const {
        const float factor = std::is_same_v<T, M> ? 1.0f : *reinterpret_cast<const float*>(query + D);
        return p.scale * factor * (sizeof(C) == 1 ? WIDENED_UNIT : 1.0f);
    }

    // Factor on a row's output.
    __device__ __forceinline__ float normalizer(float sum) const {
        return p.v_scale * (sizeof(C) == 1 ? WIDENED_UNIT : 1.0f) / sum;
    }

    __device__ __forceinline__ const T* query(uint32_t row) const {
        return query_in(work.first_query + row / p.group, row);
    }

    // What a row of the batch has for a packed row's head.
    __device__ __forceinline__ const T* query_in(size_t token, uint32_t row) const {
        const size_t head = size_t(kv_head) * p.group + row % p.group;
        return static_cast<const T*>(p.q) + token * p.q_stride + head * D;
    }

    __device__ __forceinline__ T* out(uint32_t row) const {
        const size_t token = work.first_query + row / p.group;
        const size_t heads = size_t(p.num_kv_heads) * p.group;
        return static_cast<T*>(p.out) +
               (token * heads + size_t(kv_head) * p.group + row % p.group) * D;
    }

    // Writes `count` rows from shared memory, of those `first`, `first + step` and so on
    // of them.
    __device__ __forceinline__ void store_rows(const T* rows, int first, int step, int count) const {
        for (int r = first; r < count; r += step) {
            const uint32_t row = work.first_row + r;
            if (row < num_rows && lane_id() * 8 < D) {
                reinterpret_cast<Vector<T>*>(out(row))[lane_id()] =
                    reinterpret_cast<const Vector<T>*>(rows + r * Q_STRIDE)[lane_id()];
            }
        }
    }
};

// Brings `count` rows of a Sequence, or of what has its rows elsewhere, into shared memory, as tensor
// cores are to have them, those that do not exist as zeros; and what scores of each are multiplied
// with for that. A warp takes rows `first`, `first + step` and so on.
template <typename T, typename C, int D, typename S>
__device__ __forceinline__ void stage_queries(const S& sequence, Multiplied<T, C>* queries, int first, int step,
                                              int count) {
    using M = Multiplied<T, C>;
    constexpr int LEN = 8;
    const int dim = lane_id() * LEN;
    for (int r = first; r < count; r += step) {
        const uint32_t row = sequence.work.first_row + r;
        Vector<T> x = {};
        if (row < sequence.num_rows && dim < D) {
            x = *reinterpret_cast<const Vector<T>*>(sequence.query(row) + dim);
        }
        float factor = 1.0f;
        uint32_t words[LEN / 2];
        if constexpr (std::is_same_v<T, M>) {
            memcpy(words, &x, sizeof(words));
        } else {
            // bf16 as f16: a power of two brings the row's largest to [1, 2), and
            // what is not 2^-24 of that is 0.
            float largest = 0.0f;
#pragma unroll
            for (int i = 0; i < LEN; ++i) {
                largest = fmaxf(largest, fabsf(to_float(x.x[i])));
            }
#pragma unroll
            for (int offset = WARP / 2; offset > 0; offset /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, offset));
            }
            const uint32_t exponent = __float_as_uint(largest) & 0x7f800000u;
            factor = exponent == 0 ? 1.0f : __uint_as_float(exponent);
            const float inverse = 1.0f / factor;
#pragma unroll
            for (int i = 0; i < LEN / 2; ++i) {
                words[i] = pack<M>(to_float(x.x[2 * i]) * inverse, to_float(x.x[2 * i + 1]) * inverse);
            }
        }
        if (dim < D) {
            uint32_t* to = reinterpret_cast<uint32_t*>(queries + r * S::Q_STRIDE);
#pragma unroll
            for (int i = 0; i < LEN / 2; ++i) {
                // See `widen` in keys: a lane's dimensions 4j to 4j + 3 of 16 are those
                // that tensor cores call 2j, 2j + 1, 2j + 8 and 2j + 9.
                const int word = dim / 2 + i;
                to[sizeof(C) == 1 ? word / 8 * 8 + word % 2 * 4 + word % 8 / 2 : word] = words[i];
            }
        }
        if (lane_id() == 0) {
            *reinterpret_cast<float*>(queries + r * S::Q_STRIDE + D) = factor;
        }
    }
}
