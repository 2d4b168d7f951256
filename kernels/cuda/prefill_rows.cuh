// What a warp holds of its 16 rows of a prompt, and what becomes of their scores, however
// these were multiplied.
#pragma once

#include "attention.cuh"

// A warp's 16 rows, as its lanes hold them: lane l has rows l / 4 and l / 4 + 8.
struct Rows {
    // As Sequence::scale.
    float scale[2];
    // All rows see all of [plain_first, plain_end).
    int plain_first;
    int plain_end;
};

// Maximum, sum and outputs of 16 rows. A tile of 8 columns is four floats: columns
// 2 * (l % 4) + {0, 1} of both rows.
template <int OUT> struct Partial {
    float maximum[2];
    float sum[2];
    float out[OUT / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            maximum[i / 2] = NEGATIVE_INFINITY;
            sum[i / 2] = 0.0f;
#pragma unroll
            for (int n = 0; n < OUT / 8; ++n) {
                out[n][i] = 0.0f;
            }
        }
    }
};

// Scores of 16 rows and a tile's tokens, as they come from tensor cores.
struct Scores {
    float x[TILE / 8][4];
};

// Caps scores, and leaves out what a row does not see of the tile that begins with `token`;
// the lane's first row is `row`.
template <typename S>
__device__ __forceinline__ void cap_and_mask(Scores& scores, const Rows& rows, const S& sequence, uint32_t row,
                                             int token, float soft_cap) {
    if (soft_cap > 0.0f) {
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores.x[n][i] = tanhf(scores.x[n][i] * rows.scale[i / 2]);
            }
        }
    }
    if (token < rows.plain_first || token + TILE > rows.plain_end) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int newest = sequence.last_seen(row + 8 * r);
            const int oldest = sequence.first_seen(row + 8 * r);
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int at = token + n * 8 + lane_id() % 4 * 2 + e;
                    if (at > newest || at < oldest) {
                        scores.x[n][2 * r + e] = NEGATIVE_INFINITY;
                    }
                }
            }
        }
    }
}

// What makes weights of a tile's scores: 2 to (score * factor - base).
struct Exponents {
    float factor[2];
    float base[2];
    // What the chunk's sums so far are multiplied with.
    float correction[2];
};

// What exponents are relative to: rows that have seen nothing yet have weights of 0, not of NaN.
__device__ __forceinline__ float base_of(float maximum) {
    return maximum == NEGATIVE_INFINITY ? 0.0f : maximum;
}

// Adds the tile's scores to the chunk's maxima.
__device__ __forceinline__ Exponents raise_maxima(const Scores& scores, const Rows& rows, float soft_cap,
                                                  float (&maxima)[2]) {
    Exponents of;
    float largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            largest[r] = fmaxf(largest[r], fmaxf(scores.x[n][2 * r], scores.x[n][2 * r + 1]));
        }
    }
    // Both rows side by side: a lane waits for two exchanges, not for four.
#pragma unroll
    for (int with = 1; with < 4; with *= 2) {
        float others[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            others[r] = __shfl_xor_sync(ALL_LANES, largest[r], with);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            largest[r] = fmaxf(largest[r], others[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        of.factor[r] = soft_cap > 0.0f ? soft_cap : rows.scale[r];
        const float maximum = fmaxf(maxima[r], largest[r] * of.factor[r]);
        of.base[r] = base_of(maximum);
        of.correction[r] = power_of_two(maxima[r] - of.base[r]);
        maxima[r] = maximum;
    }
    return of;
}

// Weights of the tile's columns [8 * n, 8 * n + 8) as powers of two, in the scores' place.
__device__ __forceinline__ void shift(Scores& scores, const Exponents& of, int n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        scores.x[n][i] = fmaf(scores.x[n][i], of.factor[i / 2], -of.base[i / 2]);
    }
}

// These weights, as tensor cores have them.
template <typename M>
__device__ __forceinline__ void weigh(const Scores& shifted, int n, uint32_t (&weights)[TILE / 16][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float low = power_of_two(shifted.x[n][2 * r]);
        const float high = power_of_two(shifted.x[n][2 * r + 1]);
        weights[n / 2][n % 2 * 2 + r] = pack<M>(low, high);
    }
}

// Brings the chunk's sums to its new maxima.
template <int OUT> __device__ __forceinline__ void correct(Partial<OUT>& chunk, const Exponents& of) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        chunk.sum[r] *= of.correction[r];
#pragma unroll
        for (int n = 0; n < OUT / 8; ++n) {
            chunk.out[n][2 * r] *= of.correction[r];
            chunk.out[n][2 * r + 1] *= of.correction[r];
        }
    }
}

// Adds a tile's weights to the chunk's sum of them.
template <typename M, int OUT>
__device__ __forceinline__ void add_weights(Partial<OUT>& chunk, const uint32_t (&weights)[TILE / 16][4]) {
    const uint32_t one = pack<M>(1.0f, 1.0f);
    const uint32_t ones[2] = {one, one};
    // All columns are the same.
    float sum[4] = {chunk.sum[0], chunk.sum[0], chunk.sum[1], chunk.sum[1]};
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k) {
        mma<M>(sum, weights[k], ones);
    }
    chunk.sum[0] = sum[0];
    chunk.sum[1] = sum[2];
}

// Two floats, stored at once.
struct alignas(8) Pair {
    float x[2];
};

template <int OUT>
__device__ __forceinline__ void merge_chunk(Partial<OUT>& all, const Partial<OUT>& chunk) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const Weights weights = merge_weights(all.maximum[r], chunk.maximum[r]);
        all.maximum[r] = weights.maximum;
        all.sum[r] = merged(weights, all.sum[r], chunk.sum[r]);
#pragma unroll
        for (int n = 0; n < OUT / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& out = all.out[n][2 * r + e];
                out = merged(weights, out, chunk.out[n][2 * r + e]);
            }
        }
    }
}

// Writes a lane's share of one of its two rows: `out` is where the partial's dimensions go, `head`
// where maximum and sum do, if they are to be written.
template <typename C, int OUT>
__device__ __forceinline__ void store_row(const Partial<OUT>& partial, int r, bool has_head, float* head, float* out) {
    const int j = lane_id() % 4;
    if (has_head && j == 0) {
        head[0] = partial.maximum[r];
        head[1] = partial.sum[r];
    }
#pragma unroll
    for (int n = 0; n < OUT / 16; ++n) {
        const float(&low)[4] = partial.out[2 * n];
        const float(&high)[4] = partial.out[2 * n + 1];
        // Of e4m3 one tile of 8 columns has the even dimensions of 16, the other the odd ones.
        if constexpr (sizeof(C) == 1) {
            *reinterpret_cast<Vector<float>*>(out + n * 16 + 4 * j) = {
                {low[2 * r], high[2 * r], low[2 * r + 1], high[2 * r + 1]}};
        } else {
            *reinterpret_cast<Pair*>(out + n * 16 + 2 * j) = {{low[2 * r], low[2 * r + 1]}};
            *reinterpret_cast<Pair*>(out + n * 16 + 8 + 2 * j) = {{high[2 * r], high[2 * r + 1]}};
        }
    }
}

// Puts a warp's 16 finished rows, `own` rows from the block's first, and their dimensions from
// `first_dim` on, OUT of them, into shared memory, for `Sequence::store_rows`.
template <int OUT, typename T, typename C, int D, int SUMMED>
__device__ __forceinline__ void stage_outputs(const Sequence<T, C, D>& sequence, const Partial<SUMMED>& all, T* shared,
                                              int own, int first_dim) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float factor = sequence.normalizer(all.sum[r]);
        T* row = shared + (own + lane_id() / 4 + 8 * r) * sequence.Q_STRIDE + first_dim;
#pragma unroll
        for (int n = 0; n < OUT / 16; ++n) {
            const float(&low)[4] = all.out[2 * n];
            const float(&high)[4] = all.out[2 * n + 1];
            uint32_t* to = reinterpret_cast<uint32_t*>(row + n * 16);
            const int j = lane_id() % 4;
            if constexpr (sizeof(C) == 1) {
                to[2 * j] = pack<T>(low[2 * r] * factor, high[2 * r] * factor);
                to[2 * j + 1] = pack<T>(low[2 * r + 1] * factor, high[2 * r + 1] * factor);
            } else {
                to[j] = pack<T>(low[2 * r] * factor, low[2 * r + 1] * factor);
                to[4 + j] = pack<T>(high[2 * r] * factor, high[2 * r + 1] * factor);
            }
        }
    }
}
