// Attention of prompts on compute capability 9.0, where tensor cores read K and V from shared
// memory themselves: the same numbers in the same order as `prefill_attention.cu` has them,
// for heads of 64, 128 and 256 dimensions of two bytes.
//
// A block has three groups of four warps. One copies tiles of K and V into a ring; the others
// multiply, 64 rows each (with 256 dimensions the same 64 rows, and half of the outputs each).
// They meet at the ring's barriers only, and take turns to start their products, so that one
// has the tensor cores while the other turns scores into weights (FlashAttention-3: Shah et
// al., 2024).
#include "prefill_copies.cuh"

#if WARPGROUP_PRODUCTS

// A group's 64 rows, as far as its tensor cores multiply them.
template <typename T, int D> struct GroupOfWarps {
    using Shared = GroupsShared<T, D>;
    static constexpr int OUT = Shared::OUT;
    // Q is in registers where there is room for it: what tensor cores read of shared memory is
    // then half as much.
    static constexpr bool HAS_QUERIES = D <= 128;

    // Q, as `mma` has it.
    uint32_t queries[HAS_QUERIES ? D / 16 : 1][4];
    Matrix shared_queries;
    int first_dim;

    // Takes a lane's part of Q; `row` is its first one, of the sequence's.
    __device__ __forceinline__ void load(const Sequence<T, T, D>& sequence, uint32_t row) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const bool exists = row + 8 * r < sequence.num_rows;
            const uint32_t* from =
                reinterpret_cast<const uint32_t*>(sequence.query(exists ? row + 8 * r : 0)) + lane_id() % 4;
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    queries[k][half * 2 + r] = exists ? from[k * 8 + half * 4] : 0;
                }
            }
        }
    }

    // Brings the rows of all groups into shared memory, those that do not exist as zeros.
    static __device__ __forceinline__ void stage(const Sequence<T, T, D>& sequence, T* rows) {
        constexpr int PIECES = D / 8;
        unsigned char* const to = reinterpret_cast<unsigned char*>(rows);
#pragma unroll 4
        for (int i = threadIdx.x - GROUP_THREADS; i < Shared::ROWS * PIECES; i += GROUPS * GROUP_THREADS) {
            const uint32_t row = sequence.work.first_row + i / PIECES;
            Vector<T> x = {};
            if (row < sequence.num_rows) {
                x = *reinterpret_cast<const Vector<T>*>(sequence.query(row) + i % PIECES * 8);
            }
            *reinterpret_cast<Vector<T>*>(to + swizzled<Shared::ROWS>(i / PIECES, i % PIECES)) = x;
        }
        publish_shared();
        sync_threads(MEETING, GROUPS * GROUP_THREADS);
    }

    // Starts a tile's scores.
    __device__ __forceinline__ void score(Scores& scores, const T* keys) const {
        const Matrix from = matrix(keys, SWIZZLED_UNIT, 0);
        pin(scores.x);
        begin_products();
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            const Matrix of_keys = moved(from, k / 4 * (TILE * SWIZZLED_ROW) + k % 4 * 32);
            if constexpr (HAS_QUERIES) {
                multiply_rows<T>(scores.x, queries[k], of_keys, k);
            } else {
                const uint32_t at = k / 4 * (Shared::ROWS * SWIZZLED_ROW) + k % 4 * 32;
                multiply_shared<T>(scores.x, moved(shared_queries, at), of_keys, k);
            }
        }
        commit_products();
    }

    // Starts to add a tile's values.
    __device__ __forceinline__ void accumulate(Partial<Shared::SUMMED>& chunk, const uint32_t (&weights)[TILE / 16][4],
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
};

// The ring as a group of warps that multiply sees it: tiles are taken, and given back, in
// their order.
template <typename T, int D> struct Taken {
    using Shared = GroupsShared<T, D>;

    // A tile's slot, and the parity of the phase in which it is filled.
    struct Place {
        int slot;
        uint32_t parity;

        __device__ __forceinline__ Place after() const {
            const bool is_last = slot + 1 == Shared::SLOTS;
            return {is_last ? 0 : slot + 1, parity ^ (is_last ? 1 : 0)};
        }
    };

    Shared& shared;
    // The next tile, and the one after it.
    Place next = {0, 0};
    Place second = {1, 0};
    int oldest = 0;

    __device__ __forceinline__ const T* tile(const Place& place) const { return shared.tiles[place.slot]; }

    __device__ __forceinline__ void await(const Place& place) const { shared.full[place.slot].await(place.parity); }

    __device__ __forceinline__ void give_back() {
        // All lanes' products are done.
        __syncwarp();
        if (is_elected()) {
            shared.empty[oldest].arrive();
        }
        oldest = oldest + 1 == Shared::SLOTS ? 0 : oldest + 1;
    }
};

template <typename T, int D, typename Copies>
__device__ __forceinline__ void attend(const Sequence<T, T, D>& sequence, GroupsShared<T, D>& shared, int warp,
                                       uint32_t first, uint32_t end) {
    using Shared = GroupsShared<T, D>;
    using Group = GroupOfWarps<T, D>;
    const PagedAttention& p = sequence.p;
    const int group = warp / GROUP_WARPS;
    // The lane's first row, of the sequence's.
    const int own = Shared::first_row(warp);
    const uint32_t row = sequence.work.first_row + own + lane_id() / 4;
    Rows rows;
    rows.scale[0] = rows.scale[1] = p.scale;
    rows.plain_first = sequence.first_seen(sequence.work.first_row + own + 15);
    rows.plain_end = sequence.last_seen(sequence.work.first_row + own) + 1;

    Group of_warps;
    of_warps.first_dim = Shared::first_dim(warp);
    if constexpr (Group::HAS_QUERIES) {
        of_warps.load(sequence, row);
    } else {
        Group::stage(sequence, shared.rows);
        of_warps.shared_queries = matrix(shared.rows, SWIZZLED_UNIT, 0);
    }

    Taken<T, D> tiles = {shared};
    Partial<Shared::SUMMED> all;
    Partial<Shared::SUMMED> chunk;
    all.clear();
    chunk.clear();
    Scores scores = {};
    tiles.await(tiles.next);
    if constexpr (!Copies::ARE_PUBLISHED) {
        publish_shared();
    }
    of_warps.score(scores, tiles.tile(tiles.next));
    tiles.next = tiles.second;
    tiles.second = tiles.next.after();
    await_products<0>();
    pin(scores.x);
    tiles.give_back();
    cap_and_mask(scores, rows, sequence, row, int(first), p.soft_cap);
    float maxima[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    Exponents of = raise_maxima(scores, rows, p.soft_cap, maxima);
    // The first turn is the first group's.
    if (group == 1) {
        arrive_threads(TURN, GROUPS * GROUP_THREADS);
    }
    bool begins_chunk = first % CHUNK == 0;
    for (uint32_t token = first;;) {
        const uint32_t next = token + TILE;
        const bool is_last = next >= end;
        // After the last tile there are no keys: scores of its values are not used.
        const auto of_keys = tiles.next;
        const auto of_values = is_last ? tiles.next : tiles.second;
        Scores shifted = scores;
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
            shift(shifted, of, n);
        }
        pin(shifted.x);
        uint32_t weights[TILE / 16][4];
#pragma unroll
        for (int n = 0; n < Copies::EARLY; ++n) {
            weigh<T>(shifted, n, weights);
            pin(weights[n / 2][n % 2 * 2]);
            pin(weights[n / 2][n % 2 * 2 + 1]);
        }
        tiles.await(of_keys);
        if constexpr (!Copies::ARE_PUBLISHED) {
            tiles.await(of_values);
            publish_shared();
        }
        sync_threads(TURN + group, GROUPS * GROUP_THREADS);
        of_warps.score(scores, tiles.tile(of_keys));
        // While tensor cores multiply these.
        if (begins_chunk) {
            merge_chunk(all, chunk);
            chunk.clear();
        } else {
            correct(chunk, of);
        }
#pragma unroll
        for (int n = Copies::EARLY; n < TILE / 8; ++n) {
            weigh<T>(shifted, n, weights);
        }
        chunk.maximum[0] = maxima[0];
        chunk.maximum[1] = maxima[1];
        if constexpr (Copies::ARE_PUBLISHED) {
            tiles.await(of_values);
        }
        // Registers are not to be read while a product reads them.
        if constexpr (!Shared::HAS_ONES) {
            add_weights<T>(chunk, weights);
        }
        pin(weights);
        of_warps.accumulate(chunk, weights, tiles.tile(of_values));
        if (group == 0 || !is_last) {
            arrive_threads(TURN + 1 - group, GROUPS * GROUP_THREADS);
        }
        // While products are under way: the values before have been read.
        if (token != first) {
            tiles.give_back();
        }
        tiles.next = of_values.after();
        tiles.second = tiles.next.after();
        await_products<1>();
        pin(scores.x);
        if (is_last) {
            break;
        }
        begins_chunk = next % CHUNK == 0;
        if (begins_chunk) {
            maxima[0] = maxima[1] = NEGATIVE_INFINITY;
        }
        cap_and_mask(scores, rows, sequence, row, int(next), p.soft_cap);
        of = raise_maxima(scores, rows, p.soft_cap, maxima);
        settle(of.correction);
        tiles.give_back();
        await_products<0>();
        pin(chunk.out);
        token = next;
    }
    await_products<0>();
    pin(chunk.out);
    merge_chunk(all, chunk);
    if constexpr (!Group::HAS_QUERIES) {
        // Q has been read by both; outputs take its place.
        sync_threads(MEETING, GROUPS * GROUP_THREADS);
    }
    if constexpr (Shared::HAS_ONES) {
        all.sum[0] = all.out[Shared::OUT / 8][0];
        all.sum[1] = all.out[Shared::OUT / 8][2];
    }
    // Where they go is found again: registers that hold it are better used in the loop.
    const int again = warp_id() - GROUP_WARPS;
    stage_outputs<Shared::OUT>(sequence, all, shared.rows, Shared::first_row(again), Shared::first_dim(again));
    sync_threads(MEETING, GROUPS * GROUP_THREADS);
    sequence.store_rows(shared.rows, again, GROUPS * GROUP_WARPS, Shared::ROWS);
}

template <typename T, int D, typename Copies>
__device__ __forceinline__ void prefill_by_groups(const PagedAttention& p, const Copies& copies) {
    using Shared = GroupsShared<T, D>;
    DYNAMIC_SHARED(unaligned);
    unsigned char* const aligned = unaligned + (SWIZZLED_UNIT - shared_address(unaligned) % SWIZZLED_UNIT) % SWIZZLED_UNIT;
    Shared& shared = *reinterpret_cast<Shared*>(aligned);
    const Work& work = p.work[blockIdx.y];
    const Sequence<T, T, D> sequence(p, work, blockIdx.x);
    const int count = int(min(uint32_t(Shared::ROWS), sequence.num_rows - work.first_row));
    const uint32_t end = uint32_t(sequence.last_seen(work.first_row + count - 1)) + 1;
    const uint32_t first = uint32_t(sequence.first_seen(work.first_row)) / TILE * TILE;
    if (threadIdx.x == 0) {
        copies.prepare();
        for (int slot = 0; slot < Shared::SLOTS; ++slot) {
            shared.full[slot].begin(Copies::ARRIVALS);
            shared.empty[slot].begin(GROUPS * GROUP_WARPS);
        }
    }
    if constexpr (Shared::HAS_ONES) {
        constexpr int PIECES = TILE * SWIZZLED_COLUMNS / 8;
        Vector<T> ones;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            ones.x[i] = from_float<T>(1.0f);
        }
        for (int i = threadIdx.x; i < Shared::SLOTS * PIECES; i += GROUPS_THREADS) {
            T* const tile = shared.tiles[i / PIECES];
            reinterpret_cast<Vector<T>*>(tile + TILE * D)[i % PIECES] = ones;
        }
    }
    // Tensor cores see the ones then, and copies the barriers that they tell.
    if constexpr (Shared::HAS_ONES || Copies::ARE_PUBLISHED) {
        publish_shared();
    }
    __syncthreads();
    // The same in all of a warp, and told so.
    const int warp = __shfl_sync(ALL_LANES, warp_id(), 0);
    if (warp < GROUP_WARPS) {
        give_registers_back<Copies::COPYING_REGISTERS>();
        copies.copy(sequence, shared, first, end);
    } else {
        take_registers<Copies::MULTIPLYING_REGISTERS>();
        attend<T, D, Copies>(sequence, shared, warp - GROUP_WARPS, first, end);
    }
}

#define PREFILL_GROUPS(name, T, D)                                                                 \
    KERNEL_RESIDENT(name##_d##D, PagedAttention, GROUPS_THREADS, 1) {                              \
        prefill_by_groups<T, D>(p, PieceCopies<T, D>{});                                           \
    }

// Grid: [KV heads, work].
PREFILL_GROUPS(prefill_groups_bf16, bf16, 64)
PREFILL_GROUPS(prefill_groups_bf16, bf16, 128)
PREFILL_GROUPS(prefill_groups_bf16, bf16, 256)
PREFILL_GROUPS(prefill_groups_f16, f16, 64)
PREFILL_GROUPS(prefill_groups_f16, f16, 128)
PREFILL_GROUPS(prefill_groups_f16, f16, 256)

struct BulkAttention {
    PagedAttention attention;
    // The layer's cache, rows of head_dim elements.
    TileMap map;
};

#define PREFILL_BULK(name, T, D)                                                                   \
    KERNEL_RESIDENT(name##_d##D, BulkAttention, GROUPS_THREADS, 1) {                               \
        prefill_by_groups<T, D>(p.attention, BulkCopies<T, D>{p.map});                             \
    }

// The same grid.
PREFILL_BULK(prefill_bulk_bf16, bf16, 64)
PREFILL_BULK(prefill_bulk_bf16, bf16, 128)
PREFILL_BULK(prefill_bulk_bf16, bf16, 256)
PREFILL_BULK(prefill_bulk_f16, f16, 64)
PREFILL_BULK(prefill_bulk_f16, f16, 128)
PREFILL_BULK(prefill_bulk_f16, f16, 256)

#endif
