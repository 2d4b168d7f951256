// K and V of a prompt's context, tile by tile, K a tile ahead of V: while one tile's scores
// become weights, tensor cores compute the next one's.
#pragma once

#include "kv_tiles.cuh"

// Tiles of K and V in shared memory: three where there is room for them.
template <typename C, int D> constexpr int prompt_slots = D * int(sizeof(C)) > 256 ? 2 : 3;

// A ring of SLOTS tiles in shared memory, in this order: K of the first tile, K of the
// second, V of the first, K of the third, V of the second and so on, of the tokens
// [first, end) of one sequence. What is zero, and how warps share the copying, is as in
// `Ring`.
template <typename C, int D, int WARPS> struct PromptTiles {
    static constexpr int SLOTS = prompt_slots<C, D>;
    // Elements of a tile.
    static constexpr uint32_t LEN = Tile<C, D>::LEN;
    C* slots;
    // The layer's cache from its KV head on.
    const C* cache;
    // Elements from a block's K to its V, and half of those from block to block.
    size_t half_stride;
    const uint32_t* blocks;
    uint32_t first;
    // Of a page's first token; what lies before it may be another sequence's by now.
    uint32_t seen;
    uint32_t end;
    // The free slot, in elements.
    uint32_t free = 0;
    // Of this lane's tile of 32, the block that the warp's page is in.
    uint32_t block = 0;
    // The block of the warp's page of K that was asked for last, and of the one before,
    // whose V is next.
    uint32_t key_block = 0;
    uint32_t value_block = 0;

    // Asks for the first ones.
    __device__ __forceinline__ void start() {
        ask<KEYS>(first);
        if constexpr (SLOTS == 3) {
            ask<KEYS>(first + TILE);
        }
    }

    // The next tile, ready to be read by all; what threads did before, the others see. All
    // are done with the tile before, and `refill` must follow before the next one is taken.
    __device__ __forceinline__ const C* take() {
        copy_async_wait<SLOTS - 2>();
        __syncthreads();
        return slots + after(free);
    }

    // Asks for what comes next, when the first tile's K was taken.
    __device__ __forceinline__ void refill_first() {
        if constexpr (SLOTS == 2) {
            ask<KEYS>(first + TILE);
        } else {
            ask<VALUES>(first);
        }
    }

    // The same when the tile was another: K or V of the tokens from `token` on.
    template <KeyOrValue HALF> __device__ __forceinline__ void refill(uint32_t token) {
        if constexpr (SLOTS == 3) {
            ask<HALF>(token + TILE);
        } else if constexpr (HALF == KEYS) {
            ask<VALUES>(token - TILE);
        } else {
            ask<KEYS>(token + 2 * TILE);
        }
    }

private:
    static __device__ __forceinline__ uint32_t after(uint32_t slot) {
        return slot == (SLOTS - 1) * LEN ? 0 : slot + LEN;
    }

    template <KeyOrValue HALF> __device__ __forceinline__ void ask(uint32_t token) {
        if constexpr (HALF == KEYS) {
            value_block = key_block;
        }
        if (token < end) {
            const int page = warp_id() % TILE_PAGES;
            const uint32_t page_token = token + page * BLOCK_TOKENS;
            if constexpr (HALF == KEYS) {
                const uint32_t tile = (token - first) / TILE;
                if (tile % WARP == 0) {
                    const uint32_t of_lane = page_token + lane_id() * TILE;
                    block = of_lane < end ? blocks[of_lane / BLOCK_TOKENS] : 0;
                }
                key_block = __shfl_sync(ALL_LANES, block, tile % WARP);
            }
            const size_t half = size_t(HALF == KEYS ? key_block : value_block) * 2 + HALF;
            const C* from = cache + half * half_stride;
            const bool none = page_token < seen || page_token >= end;
            const int rows = none ? 0 : int(min(end - page_token, uint32_t(BLOCK_TOKENS)));
            C* const to = slots + free + page * BLOCK_TOKENS * Tile<C, D>::STRIDE;
            if (rows == BLOCK_TOKENS) {
                copy_page<C, D, WARPS, true>(to, from, rows);
            } else {
                copy_page<C, D, WARPS, false>(to, from, rows);
            }
        }
        // An empty group keeps the count of groups in step.
        copy_async_commit();
        free = after(free);
    }
};
