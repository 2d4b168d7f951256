// Tiles of K and V on their way from the paged cache to tensor cores.
#pragma once

#include "kv_cache.cuh"

// Tiles of K or V that a pipeline holds.
constexpr int RING = 3;

// Tokens of a tile.
template <int D> struct Shape {
    static constexpr int TILE = D > 128 ? 16 : 32;
    // Elements from one token to the next in shared memory: 16 bytes more than a row,
    // so that eight rows' pieces lie in different banks.
    template <typename E> static constexpr int STRIDE = D + 16 / int(sizeof(E));
    template <typename E> static constexpr int SLOT = TILE * STRIDE<E>;
};

// Where a token's row of K or V lies, for one sequence and KV head.
struct Context {
    const uint32_t* blocks;
    uint32_t num_kv_heads;
    uint32_t kv_head;
    // Tokens that exist.
    uint32_t length;
};

// Asks for one tile of K or V: `count` threads, of which this is the `index`-th,
// take 16 bytes each in turn. Tokens that do not exist become zeros.
template <typename C, int D>
__device__ __forceinline__ void load_tile(C* slot, const C* cache, const Context& context, Half half,
                                          uint32_t first_token, int index, int count) {
    constexpr int TILE = Shape<D>::TILE;
    constexpr int LEN = 16 / sizeof(C);
    constexpr int PIECES = D / LEN;
    for (int i = index; i < TILE * PIECES; i += count) {
        const uint32_t token = first_token + i / PIECES;
        const int piece = i % PIECES;
        const bool valid = token < context.length;
        const uint32_t block = valid ? context.blocks[token / BLOCK_TOKENS] : 0;
        const C* from = cache + cache_row(block, half, context.kv_head, context.num_kv_heads,
                                          token % BLOCK_TOKENS, D) + piece * LEN;
        copy_async(slot + (i / PIECES) * Shape<D>::template STRIDE<C> + piece * LEN, from, valid);
    }
}

// A ring of tiles in shared memory: K of the first tile, V of it, K of the next and
// so on. `count` threads fill and empty it together; `Sync` is what keeps them so.
template <typename T, typename C, int D, typename Sync> struct Ring {
    static constexpr int TILE = Shape<D>::TILE;
    C* slots;
    // An e4m3 tile is widened to here; else unused.
    T* widened;
    const C* cache;
    Context context;
    uint32_t first;
    uint32_t end;
    int index;
    int count;
    Sync sync;
    // Half-tiles asked for and taken.
    int asked = 0;
    int taken = 0;

    __device__ __forceinline__ void ask() {
        const uint32_t token = first + uint32_t(asked / 2) * TILE;
        if (token < end) {
            const Half half = asked % 2 == 0 ? KEYS : VALUES;
            load_tile<C, D>(slots + (asked % RING) * Shape<D>::template SLOT<C>, cache, context, half, token,
                            index, count);
        }
        // An empty group keeps the count of groups in step.
        copy_async_commit();
        ++asked;
    }

    // The next half-tile, ready to be read by all.
    __device__ __forceinline__ const T* take() {
        copy_async_wait<RING - 1>();
        sync();
        C* slot = slots + (taken % RING) * Shape<D>::template SLOT<C>;
        if constexpr (sizeof(C) == sizeof(T)) {
            return slot;
        } else {
            for (int i = index; i < TILE * D; i += count) {
                const int from = i / D * Shape<D>::template STRIDE<C> + i % D;
                const int to = i / D * Shape<D>::template STRIDE<T> + i % D;
                widened[to] = from_float<T>(to_float(slot[from]));
            }
            sync();
            return widened;
        }
    }

    // The half-tile is no longer read: its slot may be filled again.
    __device__ __forceinline__ void release() {
        sync();
        ++taken;
        ask();
    }
};

struct SyncWarp {
    __device__ __forceinline__ void operator()() const { __syncwarp(); }
};

struct SyncBlock {
    __device__ __forceinline__ void operator()() const { __syncthreads(); }
};

