// RMSNorm (Zhang and Sennrich, 2019), with the residual added first where there is
// one: residual[r] += x[r]; out[r] = residual[r] / sqrt(mean(residual[r]^2) + eps) *
// weight. A block a row; its elements stay in registers between the two passes, and
// the sum's order depends on the row's length only.
#include "sconce.cuh"

struct RmsNorm {
    // [rows, hidden]
    const void* x;
    // [rows, hidden], or null: read and written, rounded to its dtype.
    void* residual;
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

template <typename T> __device__ __forceinline__ void rms_norm(const RmsNorm& p) {
    using Piece = Vector<T>;
    const uint32_t pieces = p.hidden / Piece::LEN;
    const size_t start = size_t(blockIdx.x) * pieces;
    const Piece* x = static_cast<const Piece*>(p.x) + start;
    Piece* residual = static_cast<Piece*>(p.residual);
    Piece* out = static_cast<Piece*>(p.out) + start;
    float values[NORM_PIECES][Piece::LEN];
    float sum = 0.0f;
#pragma unroll
    for (int held = 0; held < NORM_PIECES; ++held) {
        const uint32_t i = threadIdx.x + held * NORM_THREADS;
        if (i >= pieces) {
            break;
        }
        Piece piece = x[i];
        if (residual != nullptr) {
            Piece old = residual[start + i];
#pragma unroll
            for (int e = 0; e < Piece::LEN; ++e) {
                piece.x[e] = from_float<T>(to_float(old.x[e]) + to_float(piece.x[e]));
            }
            residual[start + i] = piece;
        }
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            values[held][e] = to_float(piece.x[e]);
            sum += values[held][e] * values[held][e];
        }
    }
    const float mean = block_sum<NORM_THREADS / WARP>(sum) / float(p.hidden);
    const float scale = rsqrtf(mean + p.eps);
#pragma unroll
    for (int held = 0; held < NORM_PIECES; ++held) {
        const uint32_t i = threadIdx.x + held * NORM_THREADS;
        if (i >= pieces) {
            break;
        }
        Piece piece;
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            const float weight = p.weight[i * Piece::LEN + e];
            piece.x[e] = from_float<T>(values[held][e] * scale * weight);
        }
        out[i] = piece;
    }
}

KERNEL(rms_norm_bf16, RmsNorm, NORM_THREADS) { rms_norm<bf16>(p); }
KERNEL(rms_norm_f16, RmsNorm, NORM_THREADS) { rms_norm<f16>(p); }
