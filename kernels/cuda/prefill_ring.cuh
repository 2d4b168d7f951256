// What groups of warps that compute attention of prompts share: a ring of tiles of K and V.
#pragma once

#include "prefill_rows.cuh"
#include "warpgroup.cuh"

#if WARPGROUP_PRODUCTS

constexpr int GROUP_WARPS = 4;
constexpr int GROUP_THREADS = GROUP_WARPS * WARP;
// That multiply.
constexpr int GROUPS = 2;
constexpr int GROUPS_THREADS = (1 + GROUPS) * GROUP_THREADS;
// The block's barriers by number: 0 is that of all threads. Each of the two groups' turn, and
// both groups' meeting.
constexpr int TURN = 1;
constexpr int MEETING = TURN + GROUPS;

template <typename T, int D> struct GroupsShared {
    // Groups of the same rows, and the dimensions of outputs of each.
    static constexpr int SHARING = D > 128 ? 2 : 1;
    static constexpr int OUT = D / SHARING;
    static constexpr int ROWS = GROUPS * 64 / SHARING;
    // Tiles of the ring, and how many of them are being copied at a time.
    static constexpr int SLOTS = D > 128 ? 5 : 7;
    static constexpr int AHEAD = D > 128 ? 1 : 3;
    // Ones after a tile's last dimension, as far as one group's outputs end there: what weights
    // make with them is their sum, which costs tensor cores less than products of its own.
    static constexpr bool HAS_ONES = SHARING == 1;
    static constexpr int SUMMED = OUT + (HAS_ONES ? 8 : 0);
    static constexpr int TILE_LEN = TILE * (D + (HAS_ONES ? SWIZZLED_COLUMNS : 0));

    // A warp's first row of the block's, and its first dimension of outputs.
    static __device__ __forceinline__ int first_row(int warp) {
        return SHARING > 1 ? warp % GROUP_WARPS * 16 : warp * 16;
    }
    static __device__ __forceinline__ int first_dim(int warp) { return SHARING > 1 ? warp / GROUP_WARPS * OUT : 0; }

    T tiles[SLOTS][TILE_LEN];
    // Q of 256 dimensions, [D / 64][ROWS][64] swizzled; at the end outputs, [ROWS, D + 8].
    T rows[ROWS * (D + 8)];
    // A tile is there; both groups are done with it.
    Barrier full[SLOTS];
    Barrier empty[SLOTS];
};

#endif
