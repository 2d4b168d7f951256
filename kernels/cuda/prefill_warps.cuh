// How a block of eight warps walks a context with up to 128 packed rows, by `mma.sync`: its
// products, and the loop over tiles that prompts' and shared prefixes' attention have in common.
//
// A warp has 16 rows, and the warps share the tiles of K and V. With heads of 256 dimensions
// two warps have the same 16 rows and half of the outputs each.
//
// A warp multiplies the next tile's keys while it turns this tile's scores into weights:
// in the same loop, so that tensor cores and the rest both have work (FlashAttention-3:
// Shah et al., 2024).
#pragma once

#include "prefill_rows.cuh"

constexpr int PREFILL_THREADS = 256;
constexpr int PREFILL_WARPS = PREFILL_THREADS / WARP;
constexpr int ROWS_OF_WARP = 16;

template <typename C, int D> struct PrefillShared {
    // Warps of the same rows, and the dimensions of outputs of each.
    static constexpr int SHARING = D > 128 ? 2 : 1;
    static constexpr int OUT = D / SHARING;
    static constexpr int ROWS = PREFILL_WARPS / SHARING * ROWS_OF_WARP;
    static constexpr int RING = prompt_slots<C, D> * Tile<C, D>::LEN * int(sizeof(C));
    // [ROWS, D + 8], two bytes each: Q, at the end outputs.
    static constexpr int QUERIES = ROWS * (D + 8) * 2;
};

// Two tiles' fragments of K: 16 tokens, two steps of 16 dimensions: [step][tile of tokens].
template <typename M, typename C, int D>
__device__ __forceinline__ void load_keys(uint32_t (&b)[2][2][2], const C* keys, int n, int k) {
    const int lane = lane_id();
    if constexpr (sizeof(C) == 1) {
        uint32_t bytes[4];
        ldmatrix_x4(bytes, keys + (n * 16 + lane % 16) * Tile<C, D>::STRIDE + k * 16 + lane / 16 * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            widen(bytes[i], b[i / 2][i % 2][0], b[i / 2][i % 2][1]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            if (k + step < D / 16) {
                // Tokens 0-7 and 8-15 of the 16, dimensions 0-7 and 8-15 of each.
                const int token = n * 16 + lane / 16 * 8 + lane % 8;
                uint32_t words[4];
                ldmatrix_x4(words, keys + token * Tile<C, D>::STRIDE + (k + step) * 16 + lane / 8 % 2 * 8);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    b[step][i / 2][i % 2] = words[i];
                }
            }
        }
    }
}

// Two tiles' fragments of V: 16 dimensions, two steps of 16 tokens: [step][tile of
// dimensions]. Of e4m3 the first tile has the even dimensions, the second the odd ones.
template <typename M, typename C, int D>
__device__ __forceinline__ void load_values(uint32_t (&b)[2][2][2], const C* values, int dim, int k) {
    const int lane = lane_id();
    if constexpr (sizeof(C) == 1) {
        uint32_t bytes[4];
        ldmatrix_x4_trans(bytes, values + (k * 16 + lane) * Tile<C, D>::STRIDE + dim);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            widen_crossed(bytes[i], b[i / 2][0][i % 2], b[i / 2][1][i % 2]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            const int token = (k + step) * 16 + lane / 8 % 2 * 8 + lane % 8;
            uint32_t words[4];
            ldmatrix_x4_trans(words, values + token * Tile<C, D>::STRIDE + dim + lane / 16 * 8);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                b[step][i / 2][i % 2] = words[i];
            }
        }
    }
}

// Adds the products of dimensions [16 * k, 16 * k + 32) to scores.
template <typename M, typename C, int D>
__device__ __forceinline__ void score_dimensions(Scores& scores, const M* queries, const C* keys, int k) {
    const int lane = lane_id();
    uint32_t q[2][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
        if (k + step < D / 16) {
            ldmatrix_x4(q[step], queries + lane % 16 * (D + 8) + (k + step) * 16 + lane / 16 * 8);
        }
    }
#pragma unroll
    for (int n = 0; n < TILE / 16; ++n) {
        uint32_t b[2][2][2];
        load_keys<M, C, D>(b, keys, n, k);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            if (k + step < D / 16) {
                mma<M>(scores.x[2 * n], q[step], b[step][0]);
                mma<M>(scores.x[2 * n + 1], q[step], b[step][1]);
            }
        }
    }
}

// Makes weights of a tile's scores, and at the same time, unless it is the LAST tile, the
// scores of the next tile, whose keys are given.
template <bool LAST, typename M, typename C, int D, int OUT>
__device__ __forceinline__ void weigh_tile(Scores& scores, const M* queries, const C* keys, const Rows& rows,
                                           float soft_cap, Partial<OUT>& chunk,
                                           uint32_t (&weights)[TILE / 16][4]) {
    constexpr int STEPS = (D / 16 + 1) / 2;
    constexpr int COLUMNS = TILE / 8;
    Scores next = {};
    if constexpr (!LAST) {
        score_dimensions<M, C, D>(next, queries, keys, 0);
    }
    const Exponents of = raise_maxima(scores, rows, soft_cap, chunk.maximum);
#pragma unroll
    for (int step = 1; step < STEPS; ++step) {
        if constexpr (!LAST) {
            score_dimensions<M, C, D>(next, queries, keys, 2 * step);
        }
#pragma unroll
        for (int n = COLUMNS * (step - 1) / (STEPS - 1); n < COLUMNS * step / (STEPS - 1); ++n) {
            shift(scores, of, n);
            weigh<M>(scores, n, weights);
        }
    }
    correct(chunk, of);
    scores = next;
}

// Adds the tile's values from dimension `first_dim` on, weighed, to the chunk's sums.
template <typename M, typename C, int D, int OUT>
__device__ __forceinline__ void accumulate_values(const uint32_t (&weights)[TILE / 16][4], const C* values,
                                                  int first_dim, Partial<OUT>& chunk) {
    add_weights<M>(chunk, weights);
#pragma unroll
    for (int k = 0; k < TILE / 16; k += 2) {
#pragma unroll
        for (int n = 0; n < OUT / 16; ++n) {
            uint32_t b[2][2][2];
            load_values<M, C, D>(b, values, first_dim + n * 16, k);
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                mma<M>(chunk.out[2 * n], weights[k + step], b[step][0]);
                mma<M>(chunk.out[2 * n + 1], weights[k + step], b[step][1]);
            }
        }
    }
}

// A warp of the block.
template <typename T, typename C, int D> struct PrefillWarp {
    using M = Multiplied<T, C>;
    using Shared = PrefillShared<C, D>;
    static constexpr int OUT = Shared::OUT;

    const Sequence<T, C, D>& sequence;
    // Its first row of the block's, and its first dimension of outputs.
    int own = warp_id() / Shared::SHARING * ROWS_OF_WARP;
    int first_dim = warp_id() % Shared::SHARING * OUT;

    // Walks the tokens [first, end) of the context, from a tile's first on, with the rows that
    // `queries` has of the block; `done` is given the partial result of each chunk, and the token
    // that its last tile begins with.
    template <typename Tiles, typename Done>
    __device__ __forceinline__ void walk(const M* block_queries, Tiles& tiles, uint32_t first, uint32_t end,
                                         Done done) const {
        const PagedAttention& p = sequence.p;
        const Work& work = sequence.work;
        const C* keys = tiles.take();
        tiles.refill_first();
        const M* queries = block_queries + own * sequence.Q_STRIDE;
        Rows rows;
        rows.plain_first = sequence.first_seen(work.first_row + own + ROWS_OF_WARP - 1);
        rows.plain_end = sequence.last_seen(work.first_row + own) + 1;
        Partial<OUT> chunk;
        chunk.clear();
        Scores scores = {};
#pragma unroll
        for (int k = 0; k < D / 16; k += 2) {
            score_dimensions<M, C, D>(scores, queries, keys, k);
        }
        for (uint32_t token = first; token < end; token += TILE) {
            uint32_t weights[TILE / 16][4];
            // Read again for each tile where they are rows' own: registers are few.
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                rows.scale[r] = sequence.scale(queries + (lane_id() / 4 + 8 * r) * sequence.Q_STRIDE);
            }
            cap_and_mask(scores, rows, sequence, work.first_row + own + lane_id() / 4, int(token), p.soft_cap);
            keys = tiles.take();
            tiles.template refill<KEYS>(token + TILE);
            if (token + TILE < end) {
                weigh_tile<false, M, C, D>(scores, queries, keys, rows, p.soft_cap, chunk, weights);
            } else {
                weigh_tile<true, M, C, D>(scores, queries, keys, rows, p.soft_cap, chunk, weights);
            }
            const C* values = tiles.take();
            tiles.template refill<VALUES>(token);
            accumulate_values<M, C, D>(weights, values, first_dim, chunk);
            if ((token + TILE) % CHUNK == 0 || token + TILE >= end) {
                done(chunk, token);
                chunk.clear();
            }
        }
        copy_async_wait<0>();
    }
};
