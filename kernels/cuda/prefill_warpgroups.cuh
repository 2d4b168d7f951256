// Attention of prompts on compute capability 9.0, where tensor cores read K, V and Q from
// shared memory themselves: the same numbers in the same order as `prefill_attention.cu`
// has them, for heads of 64, 128 and 256 dimensions of two bytes.
//
// Two groups of four warps have 64 rows each (with 256 dimensions the same 64 rows, and half
// of the outputs each). The next tile's scores are under way while this tile's become
// weights (FlashAttention-3: Shah et al., 2024); values are added while the next tile's
// maxima are found.
#pragma once

#include "prefill_rows.cuh"
#include "warpgroup.cuh"

#if WARPGROUP_PRODUCTS

template <int D> struct GroupsShared {
    static constexpr int SHARING = D > 128 ? 2 : 1;
    static constexpr int OUT = D / SHARING;
    static constexpr int ROWS = 128 / SHARING;
    static constexpr int QUERIES = ROWS * D * 2;
};

template <typename T, int D> struct GroupOfWarps {
    using Shared = GroupsShared<D>;
    static constexpr int OUT = Shared::OUT;
    static constexpr int WARPS = 8;

    const Sequence<T, T, D>& sequence;
    // The group's Q.
    Matrix queries;
    int first_dim;
    Rows rows;
    // The lane's first row, of the sequence's.
    uint32_t row;

    // A warp's first row of the block's, and its group's first dimension of outputs.
    static __device__ __forceinline__ int first_row(int warp) {
        return Shared::SHARING > 1 ? warp % 4 * 16 : warp * 16;
    }
    static __device__ __forceinline__ int first_dim_of(int warp) { return Shared::SHARING > 1 ? warp / 4 * OUT : 0; }

    // Brings the block's rows into shared memory, those that do not exist as zeros.
    static __device__ __forceinline__ void stage(const Sequence<T, T, D>& sequence, unsigned char* queries) {
        constexpr int PIECES = D / 8;
#pragma unroll 4
        for (int i = threadIdx.x; i < Shared::ROWS * PIECES; i += WARPS * WARP) {
            const uint32_t row = sequence.work.first_row + i / PIECES;
            Vector<T> x = {};
            if (row < sequence.num_rows) {
                x = *reinterpret_cast<const Vector<T>*>(sequence.query(row) + i % PIECES * 8);
            }
            *reinterpret_cast<Vector<T>*>(queries + swizzled<Shared::ROWS>(i / PIECES, i % PIECES)) = x;
        }
    }

    // Starts a tile's scores.
    __device__ __forceinline__ void score(Scores& scores, const T* keys) const {
        const Matrix from = matrix(keys, SWIZZLED_UNIT, 0);
        pin(scores.x);
        begin_products();
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            multiply_shared<T>(scores.x, moved(queries, k / 4 * (Shared::ROWS * SWIZZLED_ROW) + k % 4 * 32),
                               moved(from, k / 4 * (TILE * SWIZZLED_ROW) + k % 4 * 32), k);
        }
        commit_products();
    }

    // Starts to add a tile's values.
    __device__ __forceinline__ void accumulate(Partial<OUT>& chunk, const uint32_t (&weights)[TILE / 16][4],
                                               const T* values) const {
        const Matrix from = matrix(values + first_dim * TILE, SWIZZLED_UNIT, TILE * SWIZZLED_ROW);
        pin(chunk.out);
        begin_products();
#pragma unroll
        for (int k = 0; k < TILE / 16; ++k) {
            multiply_registers<T>(chunk.out, weights[k], moved(from, k * 2 * SWIZZLED_UNIT));
        }
        commit_products();
    }

    // Takes the tile at `token` from its scores to the chunk's sums, and the next tile to its
    // scores. `maxima` are the chunk's with this tile, then those of the next tile's chunk
    // with the next.
    template <typename Tiles>
    __device__ __forceinline__ void step(Tiles& tiles, uint32_t token, Scores& scores, Scores& next, Exponents& of,
                                         float (&maxima)[2], Partial<OUT>& chunk, Partial<OUT>& all) const {
        // Beyond the last tile these are another's keys, and the scores are not used.
        score(next, tiles.take());
        if (token % CHUNK == 0) {
            merge_chunk(all, chunk);
            chunk.clear();
        } else {
            correct(chunk, of);
        }
        // Not before products are under way.
        pin(scores.x);
        of.base[0] = base_of(maxima[0]);
        of.base[1] = base_of(maxima[1]);
        uint32_t weights[TILE / 16][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
            weigh<T>(scores, of, n, weights);
        }
        tiles.template refill<KEYS>(token + TILE);
        await_products<0>();
        pin(next.x);
        accumulate(chunk, weights, tiles.take());
        add_weights<T>(chunk, weights);
        chunk.maximum[0] = maxima[0];
        chunk.maximum[1] = maxima[1];
        if ((token + TILE) % CHUNK == 0) {
            maxima[0] = maxima[1] = NEGATIVE_INFINITY;
        }
        cap_and_mask(next, rows, sequence, row, int(token + TILE), sequence.p.soft_cap);
        of = raise_maxima(next, rows, sequence.p.soft_cap, maxima);
        tiles.template refill<VALUES>(token);
        await_products<0>();
        pin(chunk.out);
    }
};

template <typename T, int D> __device__ __forceinline__ void prefill_by_groups(const PagedAttention& p) {
    using Group = GroupOfWarps<T, D>;
    using Shared = GroupsShared<D>;
    DYNAMIC_SHARED(unaligned);
    unsigned char* shared = unaligned + (SWIZZLED_UNIT - shared_address(unaligned) % SWIZZLED_UNIT) % SWIZZLED_UNIT;
    const Work& work = p.work[blockIdx.y];
    const Sequence<T, T, D> sequence(p, work, blockIdx.x);
    const int count = int(min(uint32_t(Shared::ROWS), sequence.num_rows - work.first_row));
    const uint32_t end = uint32_t(sequence.last_seen(work.first_row + count - 1)) + 1;
    const uint32_t first = uint32_t(sequence.first_seen(work.first_row)) / TILE * TILE;
    auto tiles = sequence.template tiles<Swizzled<T, D>, Group::WARPS>(
        reinterpret_cast<T*>(shared + Shared::QUERIES), first, end);
    tiles.start();
    Group::stage(sequence, shared);

    // The same in all of a warp, and told so.
    const int warp = __shfl_sync(ALL_LANES, warp_id(), 0);
    const int group = warp / 4;
    const int own = Group::first_row(warp);
    Rows rows;
    rows.scale[0] = rows.scale[1] = p.scale;
    rows.plain_first = sequence.first_seen(work.first_row + own + 15);
    rows.plain_end = sequence.last_seen(work.first_row + own) + 1;
    const Group of_warps = {sequence,
                            matrix(shared + (Shared::SHARING > 1 ? 0 : group * 64 * SWIZZLED_ROW), SWIZZLED_UNIT, 0),
                            Group::first_dim_of(warp),
                            rows,
                            work.first_row + own + lane_id() / 4};

    Partial<Shared::OUT> all;
    Partial<Shared::OUT> chunk;
    all.clear();
    chunk.clear();
    Scores scores = {};
    Scores next = {};
    of_warps.score(scores, tiles.take());
    tiles.refill_first();
    await_products<0>();
    pin(scores.x);
    cap_and_mask(scores, rows, sequence, of_warps.row, int(first), p.soft_cap);
    float maxima[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    Exponents of = raise_maxima(scores, rows, p.soft_cap, maxima);
    for (uint32_t token = first;;) {
        of_warps.step(tiles, token, scores, next, of, maxima, chunk, all);
        token += TILE;
        if (token >= end) {
            break;
        }
        of_warps.step(tiles, token, next, scores, of, maxima, chunk, all);
        token += TILE;
        if (token >= end) {
            break;
        }
    }
    merge_chunk(all, chunk);
    copy_async_wait<0>();
    // All has been read; outputs take its place.
    __syncthreads();
    // Where they go is found again: registers that hold it are better used in the loop.
    store_prefill(sequence, all, reinterpret_cast<T*>(shared), Group::first_row(warp_id()),
                  Group::first_dim_of(warp_id()), count, Group::WARPS);
}

#endif
