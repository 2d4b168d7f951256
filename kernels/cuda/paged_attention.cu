// Attention of prompts over the paged cache. `attention.cuh` says in what order
// things are added up.
//
// A block has up to 128 packed rows of one sequence, a warp 16 of them, and the warps
// share the tiles of K and V. With heads of 256 dimensions two warps have the same 16
// rows and half of the outputs each.
#include "attention.cuh"

constexpr int ROWS_THREADS = 256;
constexpr int ROWS_WARPS = ROWS_THREADS / WARP;
constexpr int ROWS_OF_WARP = 16;

template <typename C, int D> struct RowsShared {
    static constexpr int SLOTS = D * int(sizeof(C)) > 256 ? 2 : 3;
    // Warps of the same rows, and the dimensions of outputs of each.
    static constexpr int SHARING = D > 128 ? 2 : 1;
    static constexpr int OUT = D / SHARING;
    static constexpr int ROWS = ROWS_WARPS / SHARING * ROWS_OF_WARP;
    static constexpr int RING = SLOTS * Tile<C, D>::LEN * int(sizeof(C));
    // [ROWS, D + 8], two bytes each: Q, at the end outputs.
    static constexpr int QUERIES = ROWS * (D + 8) * 2;
};

// A warp's 16 rows, as its lanes hold them: lane l has rows l / 4 and l / 4 + 8.
struct Rows {
    // The last position that each row sees, and the first.
    int last[2];
    int first[2];
    // As Sequence::scale.
    float scale[2];
    // All rows see all of [plain_first, plain_end), and none sees beyond [first, end).
    int plain_first;
    int plain_end;
    int seen_first;
    int seen_end;
};

// Maximum, sum and outputs of 16 rows. A tile of 8 columns is four floats: columns
// 2 * (l % 4) + {0, 1} of both rows; of a sum all columns are the same.
template <int OUT> struct Partial {
    float maximum[2];
    float sum[4];
    float out[OUT / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            maximum[i / 2] = NEGATIVE_INFINITY;
            sum[i] = 0.0f;
#pragma unroll
            for (int n = 0; n < OUT / 8; ++n) {
                out[n][i] = 0.0f;
            }
        }
    }
};

// Two tiles' fragments of K: 16 tokens, two steps of 16 dimensions: [step][tile of tokens].
template <typename M, typename C, int D>
__device__ __forceinline__ void load_keys(uint32_t (&b)[2][2][2], const C* keys, int n, int k) {
    const int lane = lane_id();
    if constexpr (sizeof(C) == 1) {
        uint32_t bytes[4];
        ldmatrix_x4(bytes, keys + (n * 16 + lane % 16) * Tile<C, D>::STRIDE + k * 16 + lane / 16 * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            widen(bytes[i], b[i / 2][i % 2][0], b[i / 2][i % 2][1]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            if (k + step < D / 16) {
                // Tokens 0-7 and 8-15 of the 16, dimensions 0-7 and 8-15 of each.
                const int token = n * 16 + lane / 16 * 8 + lane % 8;
                uint32_t words[4];
                ldmatrix_x4(words, keys + token * Tile<C, D>::STRIDE + (k + step) * 16 + lane / 8 % 2 * 8);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    b[step][i / 2][i % 2] = words[i];
                }
            }
        }
    }
}

// Two tiles' fragments of V: 16 dimensions, two steps of 16 tokens: [step][tile of
// dimensions]. Of e4m3 the first tile has the even dimensions, the second the odd ones.
template <typename M, typename C, int D>
__device__ __forceinline__ void load_values(uint32_t (&b)[2][2][2], const C* values, int dim, int k) {
    const int lane = lane_id();
    if constexpr (sizeof(C) == 1) {
        uint32_t bytes[4];
        ldmatrix_x4_trans(bytes, values + (k * 16 + lane) * Tile<C, D>::STRIDE + dim);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            widen_crossed(bytes[i], b[i / 2][0][i % 2], b[i / 2][1][i % 2]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            const int token = (k + step) * 16 + lane / 8 % 2 * 8 + lane % 8;
            uint32_t words[4];
            ldmatrix_x4_trans(words, values + token * Tile<C, D>::STRIDE + dim + lane / 16 * 8);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                b[step][i / 2][i % 2] = words[i];
            }
        }
    }
}

// Adds one tile's tokens to a chunk's maximum; what is there is multiplied accordingly.
template <typename M, typename C, int D, int OUT>
__device__ __forceinline__ void score_tile(const M* queries, const C* keys, const Rows& rows, int first_token,
                                           float soft_cap, Partial<OUT>& partial,
                                           uint32_t (&probabilities)[TILE / 16][4]) {
    const int lane = lane_id();
    float scores[TILE / 8][4];
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            scores[n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < D / 16; k += 2) {
        uint32_t q[2][4];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            if (k + step < D / 16) {
                ldmatrix_x4(q[step], queries + lane % 16 * (D + 8) + (k + step) * 16 + lane / 16 * 8);
            }
        }
#pragma unroll
        for (int n = 0; n < TILE / 16; ++n) {
            uint32_t b[2][2][2];
            load_keys<M, C, D>(b, keys, n, k);
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                if (k + step < D / 16) {
                    mma<M>(scores[2 * n], q[step], b[step][0]);
                    mma<M>(scores[2 * n + 1], q[step], b[step][1]);
                }
            }
        }
    }
    float factor[2] = {rows.scale[0], rows.scale[1]};
    if (soft_cap > 0.0f) {
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[n][i] = tanhf(scores[n][i] * rows.scale[i / 2]);
            }
        }
        factor[0] = factor[1] = soft_cap;
    }
    if (first_token < rows.plain_first || first_token + TILE > rows.plain_end) {
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int token = first_token + n * 8 + lane % 4 * 2 + i % 2;
                if (token > rows.last[i / 2] || token < rows.first[i / 2]) {
                    scores[n][i] = NEGATIVE_INFINITY;
                }
            }
        }
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float largest = NEGATIVE_INFINITY;
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
            largest = fmaxf(largest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
        const float maximum = fmaxf(partial.maximum[r], largest * factor[r]);
        base[r] = maximum == NEGATIVE_INFINITY ? 0.0f : maximum;
        const float correction = power_of_two(partial.maximum[r] - base[r]);
        partial.maximum[r] = maximum;
        partial.sum[2 * r] *= correction;
        partial.sum[2 * r + 1] *= correction;
#pragma unroll
        for (int n = 0; n < OUT / 8; ++n) {
            partial.out[n][2 * r] *= correction;
            partial.out[n][2 * r + 1] *= correction;
        }
    }
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float low = power_of_two(fmaf(scores[n][2 * r], factor[r], -base[r]));
            const float high = power_of_two(fmaf(scores[n][2 * r + 1], factor[r], -base[r]));
            probabilities[n / 2][n % 2 * 2 + r] = pack<M>(low, high);
        }
    }
}

// Adds the tile's values from dimension `first_dim` on, weighed, to the chunk's sums.
template <typename M, typename C, int D, int OUT>
__device__ __forceinline__ void accumulate_values(const uint32_t (&probabilities)[TILE / 16][4], const C* values,
                                           int first_dim, Partial<OUT>& partial) {
    const uint32_t one = pack<M>(1.0f, 1.0f);
    const uint32_t ones[2] = {one, one};
#pragma unroll
    for (int k = 0; k < TILE / 16; k += 2) {
        mma<M>(partial.sum, probabilities[k], ones);
        mma<M>(partial.sum, probabilities[k + 1], ones);
#pragma unroll
        for (int n = 0; n < OUT / 16; ++n) {
            uint32_t b[2][2][2];
            load_values<M, C, D>(b, values, first_dim + n * 16, k);
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                mma<M>(partial.out[2 * n], probabilities[k + step], b[step][0]);
                mma<M>(partial.out[2 * n + 1], probabilities[k + step], b[step][1]);
            }
        }
    }
}

template <int OUT>
__device__ __forceinline__ void merge_chunk(Partial<OUT>& all, const Partial<OUT>& chunk) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const Weights weights = merge_weights(all.maximum[r], chunk.maximum[r]);
        all.maximum[r] = weights.maximum;
        all.sum[2 * r] = merged(weights, all.sum[2 * r], chunk.sum[2 * r]);
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

template <typename T, typename C, int D> __device__ __forceinline__ void attend(const PagedAttention& p) {
    using M = Multiplied<T, C>;
    using Shared = RowsShared<C, D>;
    constexpr int OUT = Shared::OUT;
    DYNAMIC_SHARED(shared);
    M* const all_queries = reinterpret_cast<M*>(shared + Shared::RING);
    const Work& work = p.work[blockIdx.y];
    const Sequence<T, C, D> sequence(p, work, blockIdx.x);
    const int count = int(min(uint32_t(Shared::ROWS), sequence.num_rows - work.first_row));
    const uint32_t end = uint32_t(sequence.last_seen(work.first_row + count - 1)) + 1;
    const uint32_t first = uint32_t(sequence.first_seen(work.first_row)) / TILE * TILE;
    auto ring = sequence.template ring<ROWS_WARPS, Shared::SLOTS>(reinterpret_cast<C*>(shared), first, end);
    ring.start();
    sequence.stage_queries(all_queries, warp_id(), ROWS_WARPS, Shared::ROWS);
    __syncthreads();

    // The warp's first row of the block's.
    const int own = warp_id() / Shared::SHARING * ROWS_OF_WARP;
    const M* queries = all_queries + own * sequence.Q_STRIDE;
    const int first_dim = warp_id() % Shared::SHARING * OUT;
    Rows rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = own + lane_id() / 4 + 8 * r;
        rows.last[r] = sequence.last_seen(work.first_row + row);
        rows.first[r] = sequence.first_seen(work.first_row + row);
        rows.scale[r] = sequence.scale(all_queries + row * sequence.Q_STRIDE);
    }
    const uint32_t last_row = work.first_row + min(own + ROWS_OF_WARP, count) - 1;
    rows.plain_first = sequence.first_seen(last_row);
    rows.plain_end = sequence.last_seen(work.first_row + own) + 1;
    rows.seen_first = sequence.first_seen(work.first_row + own);
    rows.seen_end = own < count ? sequence.last_seen(last_row) + 1 : 0;

    Partial<OUT> all;
    Partial<OUT> chunk;
    all.clear();
    chunk.clear();
    for (uint32_t token = first; token < end; token += TILE) {
        // What no row sees changes no bit.
        const bool sees = int(token) < rows.seen_end && int(token) + TILE > rows.seen_first;
        uint32_t probabilities[TILE / 16][4];
        const C* keys = ring.take();
        if (sees) {
            score_tile<M, C, D>(queries, keys, rows, int(token), p.soft_cap, chunk, probabilities);
        }
        const C* values = ring.take();
        if (sees) {
            accumulate_values<M, C, D>(probabilities, values, first_dim, chunk);
        }
        if ((token + TILE) % CHUNK == 0 || token + TILE >= end) {
            merge_chunk(all, chunk);
            chunk.clear();
        }
    }
    copy_async_wait<0>();
    // Q has been read by all; outputs take its place.
    __syncthreads();
    T* out = reinterpret_cast<T*>(all_queries);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float factor = sequence.normalizer(all.sum[2 * r]);
        T* row = out + (own + lane_id() / 4 + 8 * r) * sequence.Q_STRIDE + first_dim;
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
    __syncthreads();
    sequence.store_rows(out, warp_id(), ROWS_WARPS, count);
}

#define ATTENTION(name, T, C, D)                                                                   \
    KERNEL(name##_d##D, PagedAttention, ROWS_THREADS) { attend<T, C, D>(p); }

// Grid: [KV heads, work].
ATTENTION_OF_HEAD_DIMS(paged_attention_bf16, bf16, bf16)
ATTENTION_OF_HEAD_DIMS(paged_attention_f16, f16, f16)
ATTENTION_OF_HEAD_DIMS(paged_attention_bf16_e4m3, bf16, e4m3)
ATTENTION_OF_HEAD_DIMS(paged_attention_f16_e4m3, f16, e4m3)
