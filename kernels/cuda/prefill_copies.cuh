// How one group of warps copies tiles of K and V into the ring for the others, in the order in
// which they are multiplied: K of the first, then K of the next and V of the one before, in
// turns. Of the tokens [first, end) of a sequence those that do not exist are zeros: a weight
// of 0 makes NaN of what a page of the cache may hold there.
#pragma once

#include "bulk_copies.cuh"
#include "prefill_ring.cuh"

#if WARPGROUP_PRODUCTS

// Which tiles those are.
template <typename T, int D> struct TileOrder {
    // Of K and of V together.
    uint32_t count;
    uint32_t first;
    // Of a page's first token; what lies before it may be another sequence's by now.
    uint32_t seen;
    uint32_t end;

    __device__ __forceinline__ TileOrder(const Sequence<T, T, D>& sequence, uint32_t first, uint32_t end)
        : count(2 * ((end - first + TILE - 1) / TILE)),
          first(first),
          seen(uint32_t(sequence.first_seen(sequence.work.first_row)) / BLOCK_TOKENS * BLOCK_TOKENS),
          end(end) {}

    __device__ __forceinline__ bool is_key(uint32_t n) const { return n == 0 || (n % 2 == 1 && n + 1 < count); }
    __device__ __forceinline__ uint32_t tile(uint32_t n) const { return is_key(n) ? (n + 1) / 2 : (n - 1) / 2; }

    // How many of a page's tokens exist.
    __device__ __forceinline__ int rows(uint32_t token) const {
        return token < seen || token >= end ? 0 : int(min(end - token, uint32_t(BLOCK_TOKENS)));
    }
};

// Copies by pieces of 16 bytes, a page of each tile by each warp.
template <typename T, int D> struct PieceCopies {
    using Shared = GroupsShared<T, D>;
    // Who tells that a tile is there.
    static constexpr int ARRIVALS = GROUP_WARPS;
    // Whether tensor cores see it then; else who multiplies it makes it visible. These threads'
    // fence would wait for all that they have asked for since.
    static constexpr bool ARE_PUBLISHED = false;
    // Of 512 that three groups' threads have together.
    static constexpr int COPYING_REGISTERS = 40;
    static constexpr int MULTIPLYING_REGISTERS = 232;
    // Columns of eight tokens that are weighed before the group's turn to multiply, and not while
    // tensor cores have its next scores: all, for want of registers.
    static constexpr int EARLY = TILE / 8;

    __device__ __forceinline__ void prepare() const {}

    __device__ __forceinline__ void copy(const Sequence<T, T, D>& sequence, Shared& shared, uint32_t first,
                                         uint32_t end) const {
        const TileOrder<T, D> order(sequence, first, end);
        const PagedAttention& p = sequence.p;
        const size_t page_len = size_t(BLOCK_TOKENS) * D;
        const T* const cache = static_cast<const T*>(p.cache) + sequence.kv_head * page_len;
        const size_t half_stride = p.num_kv_heads * page_len;
        const uint32_t* const blocks = p.block_tables + sequence.work.blocks;
        const int page = warp_id() % TILE_PAGES;
        // Of this lane's tile of 32, the block that the warp's page is in; of the last tile of K,
        // and of the one before, whose V is next.
        uint32_t block = 0, key_block = 0, value_block = 0;
        int slot = 0, filled = 0;
        uint32_t parity = 1;
        for (uint32_t n = 0; n < order.count + Shared::AHEAD; ++n) {
            if (n < order.count) {
                const bool is_key = order.is_key(n);
                const uint32_t tile = order.tile(n);
                const uint32_t token = first + tile * TILE + page * BLOCK_TOKENS;
                if (is_key) {
                    if (tile % WARP == 0) {
                        const uint32_t lanes_token = token + lane_id() * TILE;
                        block = lanes_token < end ? blocks[lanes_token / BLOCK_TOKENS] : 0;
                    }
                    value_block = key_block;
                    key_block = __shfl_sync(ALL_LANES, block, tile % WARP);
                } else if (n + 1 == order.count) {
                    value_block = key_block;
                }
                const size_t half = is_key ? size_t(key_block) * 2 + KEYS : size_t(value_block) * 2 + VALUES;
                const int rows = order.rows(token);
                shared.empty[slot].await(parity);
                if (rows == BLOCK_TOKENS) {
                    copy_page<true>(shared.tiles[slot], page, cache + half * half_stride, rows);
                } else {
                    copy_page<false>(shared.tiles[slot], page, cache + half * half_stride, rows);
                }
                slot = slot + 1 == Shared::SLOTS ? 0 : slot + 1;
                parity ^= slot == 0 ? 1 : 0;
            }
            // An empty group keeps the count of groups in step.
            copy_async_commit();
            if (n >= Shared::AHEAD) {
                copy_async_wait<Shared::AHEAD>();
                __syncwarp();
                if (lane_id() == 0) {
                    shared.full[filled].arrive();
                }
                filled = filled + 1 == Shared::SLOTS ? 0 : filled + 1;
            }
        }
    }

private:
    // Asks for a page of a tile, whose `rows` first tokens exist, by one warp.
    template <bool WHOLE> static __device__ __forceinline__ void copy_page(T* tile, int page, const T* from, int rows) {
        constexpr int PIECES = D / 8;
        static_assert(BLOCK_TOKENS * PIECES % WARP == 0, "whole rounds");
        unsigned char* const to = reinterpret_cast<unsigned char*>(tile);
#pragma unroll
        for (int i = 0; i < BLOCK_TOKENS * PIECES; i += WARP) {
            const int row = (i + lane_id()) / PIECES, piece = (i + lane_id()) % PIECES;
            copy_async(to + swizzled<TILE>(page * BLOCK_TOKENS + row, piece), from + row * D + piece * 8,
                       WHOLE || row < rows);
        }
    }
};

// Copies by boxes of the cache as a tensor of rows of D elements: one thread asks for whole
// pages, and the copies themselves tell that they are there.
template <typename T, int D> struct BulkCopies {
    using Shared = GroupsShared<T, D>;
    static constexpr int ARRIVALS = 1;
    static constexpr bool ARE_PUBLISHED = true;
    static constexpr int COPYING_REGISTERS = 24;
    static constexpr int MULTIPLYING_REGISTERS = 240;
    // What is left takes about as long as scores; with more of it left numbers are spilled.
    static constexpr int EARLY = 4;
    static constexpr uint32_t PAGE_BYTES = BLOCK_TOKENS * D * sizeof(T);

    // The cache's rows, [block][K, V][KV head][token].
    const TileMap& map;

    __device__ __forceinline__ void prepare() const { prefetch_map(map); }

    // By the first warp alone.
    __device__ __forceinline__ void copy(const Sequence<T, T, D>& sequence, Shared& shared, uint32_t first,
                                         uint32_t end) const {
        if (threadIdx.x >= WARP) {
            return;
        }
        constexpr int LOOKED_UP = WARP / TILE_PAGES;
        const TileOrder<T, D> order(sequence, first, end);
        const PagedAttention& p = sequence.p;
        const uint32_t* const blocks = p.block_tables + sequence.work.blocks;
        const uint32_t half_rows = p.num_kv_heads * BLOCK_TOKENS;
        const uint32_t head_row = sequence.kv_head * BLOCK_TOKENS;
        // The blocks of 32 pages, one a lane: of the last tile of K, before those and after them.
        uint32_t behind = 0, block = 0, ahead = looked_up(blocks, first, end);
        int slot = 0;
        uint32_t parity = 1;
        for (uint32_t n = 0; n < order.count; ++n) {
            const bool is_key = order.is_key(n);
            const uint32_t tile = order.tile(n);
            const uint32_t token = first + tile * TILE;
            if (is_key && tile % LOOKED_UP == 0) {
                behind = block;
                block = ahead;
                ahead = looked_up(blocks, token + LOOKED_UP * TILE, end);
            }
            // But for the last one, V is a tile behind.
            const bool is_behind = !is_key && tile % LOOKED_UP == LOOKED_UP - 1 && n + 1 < order.count;
            const uint32_t of_lanes = ((is_behind ? behind : block) * 2 + (is_key ? KEYS : VALUES)) * half_rows + head_row;
            const int first_lane = tile % LOOKED_UP * TILE_PAGES;
            // Tensor cores read what was there, and those who waited for that gave it back: no
            // fence is needed between it and these copies, nor before a page that is written.
            Barrier& full = shared.full[slot];
            shared.empty[slot].await(parity);
            T* const to = shared.tiles[slot];
            if (token >= order.seen && token + TILE <= end) {
                uint32_t rows[TILE_PAGES];
#pragma unroll
                for (int page = 0; page < TILE_PAGES; ++page) {
                    rows[page] = __shfl_sync(ALL_LANES, of_lanes, first_lane + page);
                }
                if (is_elected()) {
                    full.expect(TILE_PAGES * PAGE_BYTES);
#pragma unroll
                    for (int page = 0; page < TILE_PAGES; ++page) {
                        ask(to, page, rows[page], full);
                    }
                }
            } else {
                copy_edge(order, token, static_cast<const T*>(p.cache), to, of_lanes, first_lane, full);
            }
            if (is_elected()) {
                full.arrive();
            }
            slot = slot + 1 == Shared::SLOTS ? 0 : slot + 1;
            parity ^= slot == 0 ? 1 : 0;
        }
    }

private:
    // The block of this lane's page, of those from `token` on.
    static __device__ __forceinline__ uint32_t looked_up(const uint32_t* blocks, uint32_t token, uint32_t end) {
        const uint32_t lanes_token = token + lane_id() * BLOCK_TOKENS;
        return lanes_token < end ? blocks[lanes_token / BLOCK_TOKENS] : 0;
    }

    // Asks for a page of a tile, whose first row in the cache is `row`.
    __device__ __forceinline__ void ask(T* to, int page, uint32_t row, Barrier& full) const {
#pragma unroll
        for (int column = 0; column < D; column += SWIZZLED_COLUMNS) {
            copy_box(to + column * TILE + page * BLOCK_TOKENS * SWIZZLED_COLUMNS, map, column, int(row), full);
        }
    }

    // A tile of which some tokens do not exist: pages that are not whole are written by the warp.
    __device__ __forceinline__ void copy_edge(const TileOrder<T, D>& order, uint32_t token, const T* cache, T* tile,
                                              uint32_t of_lanes, int first_lane, Barrier& full) const {
#pragma unroll 1
        for (int page = 0; page < TILE_PAGES; ++page) {
            const uint32_t row = __shfl_sync(ALL_LANES, of_lanes, first_lane + page);
            const int exist = order.rows(token + page * BLOCK_TOKENS);
            if (exist < BLOCK_TOKENS) {
                write_page(tile, page, cache + size_t(row) * D, exist);
            } else if (is_elected()) {
                full.expect(PAGE_BYTES);
                ask(tile, page, row, full);
            }
        }
        // By who wrote, before it is told: tensor cores read by another way, and copies that come
        // into the same slot later write by it.
        publish_shared();
        __syncwarp();
    }

    // Writes a page of a tile, whose `rows` first tokens exist.
    static __device__ __forceinline__ void write_page(T* tile, int page, const T* from, int rows) {
        constexpr int PIECES = D / 8;
        unsigned char* const to = reinterpret_cast<unsigned char*>(tile);
#pragma unroll 1
        for (int i = lane_id(); i < BLOCK_TOKENS * PIECES; i += WARP) {
            const int row = i / PIECES, piece = i % PIECES;
            Vector<T> x = {};
            if (row < rows) {
                x = *reinterpret_cast<const Vector<T>*>(from + row * D + piece * 8);
            }
            *reinterpret_cast<Vector<T>*>(to + swizzled<TILE>(page * BLOCK_TOKENS + row, piece)) = x;
        }
    }
};

#endif
