// RMSNorm (Zhang and Sennrich, 2019): out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, or,
// with _add, that on top of what out[r] holds.
// A block a row; its elements stay in registers between the two passes, and the sum's
// order depends on the row's length only.
#include "sconce.cuh"

struct RmsNorm {
    // [rows, hidden]
    const void* x;
    // [hidden], f32
    const float* weight;
    // [rows, hidden]
    void* out;
    // A multiple of 8, at most 8 * 8 * 256.
    uint32_t hidden;
    float eps;
};

constexpr int NORM_THREADS = 256;
// 16-byte pieces of a row that one thread holds at most.
constexpr int NORM_PIECES = 8;

// For rows of at most HELD pieces a thread; all of them are asked for before one is used.
template <typename T, int HELD, bool ADD>
__device__ __forceinline__ void norm_row(const RmsNorm& p) {
    using Piece = Vector<T>;
    const uint32_t pieces = p.hidden / Piece::LEN;
    const size_t start = size_t(blockIdx.x) * pieces;
    const Piece* x = static_cast<const Piece*>(p.x) + start;
    Piece* out = static_cast<Piece*>(p.out) + start;
    Piece held[HELD];
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        const uint32_t i = threadIdx.x + h * NORM_THREADS;
        if (i < pieces) {
            held[h] = x[i];
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        if (threadIdx.x + h * NORM_THREADS < pieces) {
#pragma unroll
            for (int e = 0; e < Piece::LEN; ++e) {
                const float value = to_float(held[h].x[e]);
                sum += value * value;
            }
        }
    }
    const float mean = block_sum<NORM_THREADS / WARP>(sum) / float(p.hidden);
    const float scale = rsqrtf(mean + p.eps);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        const uint32_t i = threadIdx.x + h * NORM_THREADS;
        if (i < pieces) {
            const Vector<float>* weights = reinterpret_cast<const Vector<float>*>(p.weight + i * Piece::LEN);
            Piece residual;
            if (ADD) {
                residual = out[i];
            }
#pragma unroll
            for (int e = 0; e < Piece::LEN; ++e) {
                const float weight = weights[e / Vector<float>::LEN].x[e % Vector<float>::LEN];
                const float normed = to_float(held[h].x[e]) * scale * weight;
                held[h].x[e] = from_float<T>(ADD ? to_float(residual.x[e]) + normed : normed);
            }
            out[i] = held[h];
        }
    }
}

// Rows of at most 4,096 elements; wider ones take registers that would leave fewer blocks.
template <typename T, bool ADD> __device__ __forceinline__ void rms_norm(const RmsNorm& p) {
    if (p.hidden <= NORM_THREADS * Vector<T>::LEN) {
        norm_row<T, 1, ADD>(p);
    } else {
        norm_row<T, 2, ADD>(p);
    }
}

template <typename T, bool ADD> __device__ __forceinline__ void rms_norm_wide(const RmsNorm& p) {
    if (p.hidden <= 4 * NORM_THREADS * Vector<T>::LEN) {
        norm_row<T, 4, ADD>(p);
    } else {
        norm_row<T, NORM_PIECES, ADD>(p);
    }
}

KERNEL(rms_norm_bf16, RmsNorm, NORM_THREADS) { rms_norm<bf16, false>(p); }
KERNEL(rms_norm_f16, RmsNorm, NORM_THREADS) { rms_norm<f16, false>(p); }
KERNEL(rms_norm_wide_bf16, RmsNorm, NORM_THREADS) { rms_norm_wide<bf16, false>(p); }
KERNEL(rms_norm_wide_f16, RmsNorm, NORM_THREADS) { rms_norm_wide<f16, false>(p); }
KERNEL(rms_norm_add_bf16, RmsNorm, NORM_THREADS) { rms_norm<bf16, true>(p); }
KERNEL(rms_norm_add_f16, RmsNorm, NORM_THREADS) { rms_norm<f16, true>(p); }
KERNEL(rms_norm_add_wide_bf16, RmsNorm, NORM_THREADS) { rms_norm_wide<bf16, true>(p); }
KERNEL(rms_norm_add_wide_f16, RmsNorm, NORM_THREADS) { rms_norm_wide<f16, true>(p); }
