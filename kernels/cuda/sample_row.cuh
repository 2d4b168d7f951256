// A row of logits as sampling's blocks see it: slices of 8,192 logits and how they come,
// the order of candidates, weights, and sums and orders over a block.
#pragma once

#include "sconce.cuh"

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / WARP;
// Logits of a slice: each thread has so many pieces of four neighbours.
constexpr int PIECES = 4;
constexpr uint32_t SLICE = PIECES * 4 * SAMPLE_THREADS;
constexpr uint32_t MAX_SLICES = 40;

__device__ __forceinline__ uint32_t num_slices(uint32_t vocab_size) { return (vocab_size + SLICE - 1) / SLICE; }

// Words of the block's working memory, which lists and histograms share.
constexpr uint32_t ROOM = 2048;
// A weight of 1; weights of 2^23 tokens sum to less than 2^64.
constexpr float ONE = 1099511627776.0f;

#define MINUS_INFINITY (-__builtin_inff())

// Larger for larger logits, in the order of unsigned numbers; the zeros are equal.
__device__ __forceinline__ uint32_t key_of(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

struct Row {
    float* logits;
    uint32_t vocab_size;
    // [mask_words(vocab_size)]: a bit for each token that may be drawn; nullptr allows all.
    const uint32_t* allowed;
};

__device__ __forceinline__ uint32_t mask_words(uint32_t vocab_size) { return (vocab_size + 31) / 32; }

// A thread's logits of a slice; beyond the vocabulary, and where not allowed, -infinity.
struct Logits {
    float x[PIECES * 4];
};

// The token of a thread's i-th logit.
__device__ __forceinline__ uint32_t token_at(uint32_t first, int i) {
    return first + (uint32_t(i / 4) * SAMPLE_THREADS + threadIdx.x) * 4 + uint32_t(i % 4);
}

// Makes the logits of tokens that are not allowed -infinity. Four neighbours are of one word.
__device__ __forceinline__ void leave_out(const Row& row, uint32_t first, Logits& own) {
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        const uint32_t token = token_at(first, piece * 4);
        const uint32_t bits = token < row.vocab_size ? row.allowed[token / 32] >> token % 32 : 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            own.x[piece * 4 + e] = bits >> e & 1 ? own.x[piece * 4 + e] : MINUS_INFINITY;
        }
    }
}

// Whether a row's pieces start at 16 bytes. Who has which logit does not depend on it.
__device__ __forceinline__ bool is_aligned(const Row& row) {
    return row.vocab_size % 4 == 0 && reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;
}

// Four neighbours, the first of which is a multiple of four: like a thread's logits of a slice.
__device__ __forceinline__ Vector<float> load_piece(const Row& row, uint32_t token) {
    Vector<float> four{{MINUS_INFINITY, MINUS_INFINITY, MINUS_INFINITY, MINUS_INFINITY}};
    if (token >= row.vocab_size) {
        return four;
    }
    if (is_aligned(row)) {
        four = *reinterpret_cast<const Vector<float>*>(row.logits + token);
    } else {
#pragma unroll
        for (uint32_t e = 0; e < 4; ++e) {
            four.x[e] = token + e < row.vocab_size ? row.logits[token + e] : MINUS_INFINITY;
        }
    }
    if (row.allowed != nullptr) {
        const uint32_t bits = row.allowed[token / 32] >> token % 32;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            four.x[e] = bits >> e & 1 ? four.x[e] : MINUS_INFINITY;
        }
    }
    return four;
}

__device__ __forceinline__ Logits load_slice(const Row& row, uint32_t first) {
    Logits own;
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        const Vector<float> four = load_piece(row, token_at(first, piece * 4));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            own.x[piece * 4 + e] = four.x[e];
        }
    }
    return own;
}

// Slices that a block takes in turn. Each thread asks for its pieces of the next AHEAD
// slices before it needs them, so that memory is busy while a slice is looked at; no other
// thread touches them, so that no barrier is needed.
struct Stream {
    static constexpr uint32_t AHEAD = 2;

    // Without its mask.
    Row row;
    // Shared, [AHEAD, PIECES, SAMPLE_THREADS]
    Vector<float>* slots;
    // Slices of the run.
    uint32_t first;
    uint32_t end;
    bool asks;

    __device__ __forceinline__ Stream(const Row& row, void* slots, uint32_t first, uint32_t end)
        : row(row), slots(static_cast<Vector<float>*>(slots)), first(first), end(end), asks(is_aligned(row)) {
        for (uint32_t i = 0; i < AHEAD; ++i) {
            ask(first + i);
        }
    }

    __device__ __forceinline__ Vector<float>* slot(uint32_t slice, int piece) const {
        return slots + ((slice - first) % AHEAD * PIECES + piece) * SAMPLE_THREADS + threadIdx.x;
    }

    __device__ __forceinline__ void ask(uint32_t slice) const {
        if (!asks) {
            return;
        }
        if (slice < end) {
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const uint32_t token = token_at(slice * SLICE, piece * 4);
                const bool is_inside = token < row.vocab_size;
                copy_async(slot(slice, piece), row.logits + (is_inside ? token : 0), is_inside);
            }
        }
        copy_async_commit();
    }

    __device__ __forceinline__ Logits take(uint32_t slice) const {
        if (!asks) {
            return load_slice(row, slice * SLICE);
        }
        Logits own;
        copy_async_wait<AHEAD - 1>();
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const Vector<float> four = *slot(slice, piece);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                own.x[piece * 4 + e] = four.x[e];
            }
        }
        if ((slice + 1) * SLICE > row.vocab_size) {
#pragma unroll
            for (int i = 0; i < PIECES * 4; ++i) {
                own.x[i] = token_at(slice * SLICE, i) < row.vocab_size ? own.x[i] : MINUS_INFINITY;
            }
        }
        ask(slice + AHEAD);
        return own;
    }
};

constexpr uint32_t STREAM_BYTES = Stream::AHEAD * SLICE * 4;

// Likelihoods in fixed point, whose sums are the same in any order.
struct Weights {
    float largest;
    float scale;

    __device__ __forceinline__ uint64_t of(float logit) const {
        return uint64_t(expf((logit - largest) * scale) * ONE);
    }
};

// A candidate's place in the order (larger logit first, then lower id): those before
// the border and itself stay.
struct Border {
    uint32_t key;
    uint32_t token;

    __device__ __forceinline__ bool keeps(float logit, uint32_t candidate) const {
        const uint32_t own = key_of(logit);
        return own > key || (own == key && candidate <= token);
    }
};

// What a token adds to a sum: 1 or its weight; nothing if it is out already.
struct Amount {
    Border border;
    bool counts;
    Weights weights;

    __device__ __forceinline__ uint64_t of(float logit, uint32_t token) const {
        if (!is_finite(logit) || !border.keeps(logit, token)) {
            return 0;
        }
        return counts ? 1 : weights.of(logit);
    }
};

template <typename T, typename Combine> __device__ __forceinline__ T warp_reduce(T x, Combine combine) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x = combine(x, __shfl_xor_sync(ALL_LANES, x, offset));
    }
    return x;
}

template <typename T> __device__ __forceinline__ T warp_total(T x) {
    return warp_reduce(x, [](T a, T b) { return a + b; });
}

// The same in every thread of the block.
template <typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T x, Combine combine) {
    SHARED(T, partial, SAMPLE_WARPS);
    x = warp_reduce(x, combine);
    if (lane_id() == 0) {
        partial[warp_id()] = x;
    }
    __syncthreads();
    x = partial[0];
#pragma unroll
    for (int warp = 1; warp < SAMPLE_WARPS; ++warp) {
        x = combine(x, partial[warp]);
    }
    // The next one may overwrite what others still read.
    __syncthreads();
    return x;
}

template <typename T> __device__ __forceinline__ T block_total(T x) {
    return block_reduce(x, [](T a, T b) { return a + b; });
}

template <typename T> __device__ __forceinline__ T block_largest(T x) {
    return block_reduce(x, [](T a, T b) { return max(a, b); });
}

// The sum of the lanes before this one.
template <typename T> __device__ __forceinline__ T warp_sum_before(T x) {
    T sum = x;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const T lower = __shfl_up_sync(ALL_LANES, sum, offset);
        sum += lane_id() >= offset ? lower : T(0);
    }
    return sum - x;
}

// The sum of the threads before this one, and of all.
template <typename T> struct Sums {
    T before;
    T total;
};

template <typename T> __device__ __forceinline__ Sums<T> block_sums(T x) {
    SHARED(T, partial, SAMPLE_WARPS);
    Sums<T> sums{warp_sum_before(x), 0};
    if (lane_id() == WARP - 1) {
        partial[warp_id()] = sums.before + x;
    }
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < SAMPLE_WARPS; ++warp) {
        sums.before += warp < warp_id() ? partial[warp] : T(0);
        sums.total += partial[warp];
    }
    __syncthreads();
    return sums;
}

// Sorts the first `len` words, at most ROOM, smallest first. No two are equal. What is
// beyond them up to a power of two may be overwritten.
__device__ __forceinline__ void block_sort(uint64_t* words, uint32_t len) {
    __syncthreads();
    if (len <= SAMPLE_THREADS) {
        // Few: each finds its own place, without a barrier for each step.
        const uint64_t own = threadIdx.x < len ? words[threadIdx.x] : 0;
        uint32_t place = 0;
        if (threadIdx.x < len) {
#pragma unroll 8
            for (uint32_t i = 0; i < len; ++i) {
                place += words[i] < own;
            }
        }
        __syncthreads();
        if (threadIdx.x < len) {
            words[place] = own;
        }
        __syncthreads();
        return;
    }
    // A bitonic network.
    uint32_t padded = 2;
    while (padded < len) {
        padded *= 2;
    }
    for (uint32_t i = len + threadIdx.x; i < padded; i += SAMPLE_THREADS) {
        words[i] = ~uint64_t(0);
    }
    __syncthreads();
    for (uint32_t run = 2; run <= padded; run *= 2) {
        for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
            for (uint32_t pair = threadIdx.x; pair < padded / 2; pair += SAMPLE_THREADS) {
                const uint32_t low = pair / distance * distance + pair;
                const uint64_t a = words[low];
                const uint64_t b = words[low + distance];
                if ((a > b) == ((low & run) == 0)) {
                    words[low] = b;
                    words[low + distance] = a;
                }
            }
            __syncthreads();
        }
    }
}

// A number in [0, 1), of 53 bits, of the request's own sequence: for each token's draws one after
// another (Philox4x32-10, Salmon et al., 2011).
__device__ __forceinline__ uint64_t uniform_bits(const uint32_t (&seed)[2], uint32_t index, uint32_t draw) {
    uint32_t counter[4] = {index, draw, 0, 0};
    uint32_t key[2] = {seed[0], seed[1]};
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            key[0] += 0x9e3779b9u;
            key[1] += 0xbb67ae85u;
        }
        const uint32_t high0 = __umulhi(0xd2511f53u, counter[0]);
        const uint32_t low0 = 0xd2511f53u * counter[0];
        const uint32_t high1 = __umulhi(0xcd9e8d57u, counter[2]);
        const uint32_t low1 = 0xcd9e8d57u * counter[2];
        const uint32_t next[4] = {high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0};
        for (int i = 0; i < 4; ++i) {
            counter[i] = next[i];
        }
    }
    return (uint64_t(counter[0]) << 32 | counter[1]) >> 11;
}

// floor(uniform * total / 2^53) without a 128-bit product: below total always.
__device__ __forceinline__ uint64_t part_of(uint64_t total, uint64_t uniform) {
    const uint64_t high = uniform >> 27;
    const uint64_t low = uniform & ((uint64_t(1) << 27) - 1);
    return (total >> 26) * high + ((total & ((uint64_t(1) << 26) - 1)) * high >> 26) +
           ((total >> 26) * low >> 27);
}
