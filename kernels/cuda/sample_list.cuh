// The list of a run's largest logits, kept while its slices go by.
//
// A token is listed if its logit is at least a bound that rises. The bound is found from the
// largest logit of each thread's 16, which is one count a thread instead of 16: where so many
// of those are, there are as many tokens at least. So what is wanted of a row, its first
// `WANTED - 1` tokens by whole bins, is always listed, however the row is cut into runs.
#pragma once

#include "sample_request.cuh"

// Bins of 1/16, counted from zero; a ring of them goes down from the largest logit's.
constexpr uint32_t LIST_BINS = 1024;
constexpr int32_t LOWEST_BIN = -600000000;
constexpr float LOWEST_LOGIT = -3.402823466e38f;
// All that is as large is in one bin.
constexpr float LAST_BIN = 5e8f / 16.0f;

__device__ __forceinline__ int32_t bin_of(float logit) {
    return __float2int_rd(fminf(fmaxf(logit * 16.0f, LAST_BIN * -16.0f), LAST_BIN * 16.0f));
}

// Makes place in a ring of bins for those above its highest.
template <uint32_t LEN> __device__ __forceinline__ void raise_ring(uint32_t* ring, int32_t top, int32_t new_top) {
#pragma unroll
    for (uint32_t place = threadIdx.x; place < LEN; place += SAMPLE_THREADS) {
        const int32_t bin = new_top - int32_t((uint32_t(new_top) - place) % LEN);
        if (bin > top) {
            ring[place] = 0;
        }
    }
}

// WANTED: one more than the tokens for certain.
template <uint32_t WANTED, uint32_t LIST_ROOM> struct List {
    // [LIST_ROOM]
    TopToken* entries;
    // Shared, [LIST_BINS]: threads' largest logits.
    uint32_t* counts;
    // Shared: entries that have a place; entries that are written; threads' largest at or above
    // `from`. All zero at first.
    uint32_t* taken;
    // All that follows is the same in every thread.
    int32_t top = LOWEST_BIN;
    // What is listed has this logit at least.
    float from = LOWEST_LOGIT;

    __device__ __forceinline__ uint32_t len() const { return taken[1]; }

    // Makes the ring's place for a slice's largest logit; whether the block must meet.
    __device__ __forceinline__ bool raise_top(float largest) {
        const int32_t bin = bin_of(largest);
        if (bin <= top) {
            return false;
        }
        raise_ring<LIST_BINS>(counts, top, bin);
        top = bin;
        return true;
    }

    // Counts a thread's largest logit; whether it is to be listed.
    __device__ __forceinline__ bool count(float mine) const {
        if (mine < from) {
            return false;
        }
        const int32_t bin = bin_of(mine);
        if (bin > top - int32_t(LIST_BINS) + 1) {
            atomicAdd(&counts[uint32_t(bin) % LIST_BINS], 1u);
        }
        return true;
    }

    // Raises the bound as far as enough have been counted above it; how many that are.
    __device__ __forceinline__ uint32_t raise_from(uint32_t above) {
        static_assert(LIST_BINS == 2 * SAMPLE_THREADS, "a thread has two bins");
        SHARED(int32_t, found, 2);
        const int32_t high = (top | 1) - 2 * int32_t(threadIdx.x);
        const uint32_t of_high = high > top ? 0 : counts[uint32_t(high) % LIST_BINS];
        const uint32_t own = of_high + counts[uint32_t(high - 1) % LIST_BINS];
        const auto sums = block_sums(own);
        if (sums.before < WANTED && WANTED <= sums.before + own) {
            const bool is_high = WANTED <= sums.before + of_high;
            found[0] = is_high ? high : high - 1;
            found[1] = int32_t(sums.before + (is_high ? of_high : own));
        }
        __syncthreads();
        if (sums.total < WANTED) {
            return above;
        }
        const float bound = float(found[0]) * (1.0f / 16.0f);
        if (bound <= from) {
            // A bin that was given up is still counted, and what it held is not listed.
            return above;
        }
        from = bound;
        return uint32_t(found[1]);
    }

    // Lists what is above the bound of a slice, in which so many threads have something.
    __device__ __forceinline__ void add(const Logits& own, uint32_t first, float mine, uint32_t num_threads) {
        if (num_threads == 0) {
            return;
        }
        uint32_t above = taken[2] + num_threads;
        if (above >= WANTED + (from == LOWEST_LOGIT ? 0 : WANTED / 2)) {
            above = raise_from(above);
        }
        for (bool is_thinned = false;; is_thinned = true) {
            uint32_t num = 0;
            if (mine >= from) {
#pragma unroll
                for (int i = 0; i < PIECES * 4; ++i) {
                    num += own.x[i] >= from;
                }
            }
            uint32_t place = num > 0 ? atomicAdd(taken, num) : 0;
            __syncthreads();
            const uint32_t total = taken[0];
            if (total <= LIST_ROOM) {
                if (num > 0) {
#pragma unroll
                    for (int i = 0; i < PIECES * 4; ++i) {
                        if (own.x[i] >= from) {
                            entries[place++] = {token_at(first, i), own.x[i]};
                        }
                    }
                }
                if (threadIdx.x == 0) {
                    taken[1] = total;
                    taken[2] = above;
                }
                return;
            }
            if (is_thinned) {
                // Too many between two bounds: they are given up.
                const float next = from == LOWEST_LOGIT ? float(top - int32_t(LIST_BINS) + 2) * (1.0f / 16.0f)
                                                        : from + 1.0f / 16.0f;
                // Bins end there, and steps of numbers so large are too many.
                from = from >= LAST_BIN ? -MINUS_INFINITY : next > from ? next : logit_of(key_of(from) + 1);
            }
            thin();
        }
    }

    // Leaves out what is below the bound by now.
    __device__ __forceinline__ void thin() {
        constexpr uint32_t OWN = LIST_ROOM / SAMPLE_THREADS;
        TopToken own[OWN];
#pragma unroll
        for (uint32_t i = 0; i < OWN; ++i) {
            const uint32_t place = threadIdx.x + i * SAMPLE_THREADS;
            own[i] = place < len() ? entries[place] : TopToken{0, MINUS_INFINITY};
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            taken[0] = 0;
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < OWN; ++i) {
            if (own[i].logprob >= from) {
                entries[atomicAdd(taken, 1u)] = own[i];
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            taken[1] = taken[0];
        }
        __syncthreads();
    }
};
