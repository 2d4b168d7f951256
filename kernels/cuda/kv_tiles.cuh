// Tiles of K and V on their way from the paged cache to tensor cores.
#pragma once

#include <type_traits>

#include "kv_cache.cuh"

// Tokens of a tile: the scores of so many are held before they are weighed.
constexpr int TILE = 64;
constexpr int TILE_PAGES = TILE / BLOCK_TOKENS;

// What tensor cores multiply: e4m3 is widened to f16, which holds it exactly.
template <typename T, typename C> using Multiplied = std::conditional_t<sizeof(C) == 1, f16, T>;

// A tile in shared memory.
template <typename C, int D> struct Tile {
    // Elements from one token to the next: 16 bytes more than a row, so that eight
    // rows' pieces lie in different banks.
    static constexpr int STRIDE = D + 16 / int(sizeof(C));
    static constexpr int LEN = TILE * STRIDE;
};

// Asks for a warp's share of a page, whose `rows` first tokens exist: 16 bytes a lane in
// turn, into a tile that WARPS warps fill.
template <typename C, int D, int WARPS, bool WHOLE>
__device__ __forceinline__ void copy_page(C* to, const C* from, int rows) {
    constexpr int STRIDE = Tile<C, D>::STRIDE;
    constexpr int LEN = 16 / int(sizeof(C));
    constexpr int PIECES = D / LEN;
    constexpr int ROUND = WARPS / TILE_PAGES * WARP;
    const int first_piece = warp_id() / TILE_PAGES * WARP + lane_id();
    if constexpr (ROUND % PIECES == 0) {
        // A lane's pieces lie in one column: constants apart.
        const int first_row = first_piece / PIECES;
        to += first_row * STRIDE + first_piece % PIECES * LEN;
        from += first_piece * LEN;
#pragma unroll
        for (int row = 0; row < BLOCK_TOKENS; row += ROUND / PIECES) {
            copy_async(to + row * STRIDE, from + row * D, WHOLE || first_row + row < rows);
        }
    } else {
#pragma unroll
        for (int i = 0; i < BLOCK_TOKENS * PIECES; i += ROUND) {
            const int piece = first_piece + i;
            const int row = piece / PIECES;
            if (row < BLOCK_TOKENS) {
                copy_async(to + row * STRIDE + piece % PIECES * LEN, from + piece * LEN,
                           WHOLE || row < rows);
            }
        }
    }
}

// A ring of SLOTS tiles in shared memory: K of the first tile, V of it, K of the next
// and so on, of the tokens [first, end) of one sequence. Pages before that of the token
// `seen` are zeros, and so are tokens that do not exist. The block's WARPS warps fill and
// empty it together. A warp has one page of each tile, or a share of one, so that it looks
// a page up once for 16 rows; its lanes look up 32 tiles' at a time.
template <typename C, int D, int WARPS, int SLOTS> struct Ring {
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
    // Of this lane's tile of 32, the block that the warp's page is in.
    uint32_t block = 0;
    // Tiles of K or V asked for so far.
    uint32_t asked = 0;

    // Asks for the first ones.
    __device__ __forceinline__ void start() {
#pragma unroll
        for (int i = 0; i < SLOTS - 1; ++i) {
            ask();
        }
    }

    // The next tile, ready to be read by all until they take the next one; what threads
    // did before they took it, the others see.
    __device__ __forceinline__ const C* take() {
        copy_async_wait<SLOTS - 2>();
        __syncthreads();
        const C* tile = slots + (asked - (SLOTS - 1)) % SLOTS * Tile<C, D>::LEN;
        // All are done with the tile before: its slot is free.
        ask();
        return tile;
    }

private:
    __device__ __forceinline__ void ask() {
        const uint32_t tile = asked / 2;
        const uint32_t token = first + tile * TILE;
        if (token < end) {
            const int page = warp_id() % TILE_PAGES;
            const uint32_t page_token = token + page * BLOCK_TOKENS;
            if (asked % 2 == 0 && tile % WARP == 0) {
                const uint32_t own = page_token + lane_id() * TILE;
                block = own < end ? blocks[own / BLOCK_TOKENS] : 0;
            }
            const size_t half = size_t(__shfl_sync(ALL_LANES, block, tile % WARP)) * 2 + asked % 2;
            const C* from = cache + half * half_stride;
            C* to = slots + (asked % SLOTS) * Tile<C, D>::LEN + page * BLOCK_TOKENS * Tile<C, D>::STRIDE;
            const bool exists = page_token >= seen && page_token < end;
            const int rows = exists ? int(min(end - page_token, uint32_t(BLOCK_TOKENS))) : 0;
            if (rows == BLOCK_TOKENS) {
                copy_page<C, D, WARPS, true>(to, from, rows);
            } else {
                copy_page<C, D, WARPS, false>(to, from, rows);
            }
        }
        // An empty group keeps the count of groups in step.
        copy_async_commit();
        ++asked;
    }
};
