// Attention of prompts on compute capability 9.0, where tensor cores read K, V and Q from
// shared memory themselves: the same numbers in the same order as `prefill_attention.cu`
// has them, for heads of 64 and 128 dimensions of two bytes.
//
// Two groups of four warps have 64 rows each. The next tile's scores are under way while
// this tile's become weights (FlashAttention-3: Shah et al., 2024); values are added while
// the next tile's maxima are found.
#pragma once

#include "prefill_rows.cuh"
#include "warpgroup.cuh"

#if WARPGROUP_PRODUCTS

template <typename T, int D> struct GroupOfWarps {
    static constexpr int WARPS = 8;
    static constexpr int ROWS = 16 * WARPS;
    // Bytes of a block's Q, before the ring.
    static constexpr int QUERIES = ROWS * D * 2;

    const Sequence<T, T, D>& sequence;
    // The group's Q.
    Matrix queries;
    Rows rows;

    // Brings the block's rows into shared memory, those that do not exist as zeros.
    static __device__ __forceinline__ void stage(const Sequence<T, T, D>& sequence, unsigned char* queries) {
        constexpr int PIECES = D / 8;
#pragma unroll 4
        for (int i = threadIdx.x; i < ROWS * PIECES; i += WARPS * WARP) {
            const uint32_t row = sequence.work.first_row + i / PIECES;
            Vector<T> x = {};
            if (row < sequence.num_rows) {
                x = *reinterpret_cast<const Vector<T>*>(sequence.query(row) + i % PIECES * 8);
            }
            *reinterpret_cast<Vector<T>*>(queries + swizzled<ROWS>(i / PIECES, i % PIECES)) = x;
        }
    }

    // Starts a tile's scores.
    __device__ __forceinline__ void score(Scores& scores, const T* keys) const {
        const Matrix from = matrix(keys, SWIZZLED_UNIT, 0);
        pin(scores.x);
        begin_products();
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            multiply_shared<T>(scores.x, moved(queries, k / 4 * (ROWS * SWIZZLED_ROW) + k % 4 * 32),
                               moved(from, k / 4 * (TILE * SWIZZLED_ROW) + k % 4 * 32), k);
        }
        commit_products();
    }

    // Starts to add a tile's values.
    __device__ __forceinline__ void accumulate(Partial<D>& chunk, const uint32_t (&weights)[TILE / 16][4],
                                               const T* values) const {
        const Matrix from = matrix(values, SWIZZLED_UNIT, TILE * SWIZZLED_ROW);
        pin(chunk.out);
        begin_products();
#pragma unroll
        for (int k = 0; k < TILE / 16; ++k) {
            multiply_registers<T>(chunk.out, weights[k], moved(from, k * 2 * SWIZZLED_UNIT));
        }
        commit_products();
    }

    // Takes the tile at `token` from its scores to the chunk's sums, which are under way at
    // the end, and the next tile to its scores. `maxima` are the chunk's with this tile, then
    // those of the next tile's chunk with the next.
    template <typename Tiles>
    __device__ __forceinline__ void step(Tiles& tiles, uint32_t token, Scores& scores, Scores& next, Exponents& of,
                                         float (&maxima)[2], Partial<D>& chunk, Partial<D>& all) const {
        await_products<0>();
        pin(chunk.out);
        // Beyond the last tile these are another's keys, and the scores are not used.
        score(next, tiles.template take<KEYS>());
        tiles.template refill<KEYS>(token + TILE);
        // Not before products are under way.
        pin(scores.x);
        of.base[0] = base_of(maxima[0]);
        of.base[1] = base_of(maxima[1]);
        uint32_t weights[TILE / 16][4];
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
            weigh<T>(scores, of, n, weights);
        }
        if (token % CHUNK == 0) {
            merge_chunk(all, chunk);
            chunk.clear();
        } else {
            correct(chunk, of);
        }
        await_products<0>();
        pin(next.x);
        accumulate(chunk, weights, tiles.template take<VALUES>());
        add_weights<T>(chunk, weights);
        tiles.template refill<VALUES>(token);
        chunk.maximum[0] = maxima[0];
        chunk.maximum[1] = maxima[1];
        if ((token + TILE) % CHUNK == 0) {
            maxima[0] = maxima[1] = NEGATIVE_INFINITY;
        }
        cap_and_mask(next, rows, sequence, warp_id() * 16, int(token + TILE), sequence.p.soft_cap);
        of = raise_maxima(next, rows, sequence.p.soft_cap, maxima);
    }
};

template <typename T, int D, int SLOTS = 4, bool FENCED = true>
__device__ __forceinline__ void prefill_by_groups(const PagedAttention& p) {
    using Group = GroupOfWarps<T, D>;
    DYNAMIC_SHARED(unaligned);
    unsigned char* shared = unaligned + (SWIZZLED_UNIT - shared_address(unaligned) % SWIZZLED_UNIT) % SWIZZLED_UNIT;
    const Work& work = p.work[blockIdx.y];
    const Sequence<T, T, D> sequence(p, work, blockIdx.x);
    const int count = int(min(uint32_t(Group::ROWS), sequence.num_rows - work.first_row));
    const uint32_t end = uint32_t(sequence.last_seen(work.first_row + count - 1)) + 1;
    const uint32_t first = uint32_t(sequence.first_seen(work.first_row)) / TILE * TILE;
    PromptTiles<Swizzled<T, D, FENCED>, Sequence<T, T, D>, Group::WARPS, SLOTS> tiles = {
        {}, sequence, reinterpret_cast<T*>(shared + Group::QUERIES), first, end};
    tiles.start();
    Group::stage(sequence, shared);

    // The same in all of a warp, and told so.
    const int warp = __shfl_sync(ALL_LANES, warp_id(), 0);
    Group group = {sequence, matrix(shared + warp / 4 * 64 * SWIZZLED_ROW, SWIZZLED_UNIT, 0), {}};
    group.rows.scale[0] = group.rows.scale[1] = sequence.scale_of(1.0f);
    group.rows.plain_end = sequence.last_seen(work.first_row + warp * 16) + 1;

    Partial<D> all;
    Partial<D> chunk;
    all.clear();
    chunk.clear();
    Scores scores = {};
    Scores next = {};
    group.score(scores, tiles.template take<KEYS>());
    tiles.refill_first();
    await_products<0>();
    pin(scores.x);
    cap_and_mask(scores, group.rows, sequence, warp * 16, int(first), p.soft_cap);
    float maxima[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    Exponents of = raise_maxima(scores, group.rows, p.soft_cap, maxima);
    for (uint32_t token = first;;) {
        group.step(tiles, token, scores, next, of, maxima, chunk, all);
        token += TILE;
        if (token >= end) {
            break;
        }
        group.step(tiles, token, next, scores, of, maxima, chunk, all);
        token += TILE;
        if (token >= end) {
            break;
        }
    }
    await_products<0>();
    pin(chunk.out);
    merge_chunk(all, chunk);
    copy_async_wait<0>();
    // All has been read; outputs take its place.
    __syncthreads();
    store_prefill<T, T, D, Group::ROWS>(p, all, reinterpret_cast<T*>(shared), warp_id() * 16, 0, Group::WARPS);
}

#endif
