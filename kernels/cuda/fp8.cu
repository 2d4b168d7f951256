// What products with weights in e4m3 need beside the products themselves: activations in e4m3
// with a scale a row, weights widened for products in two bytes, and sums of e4m3 numbers
// scaled.
#include "sconce.cuh"

struct QuantizeRows {
    // [rows, k]
    const void* x;
    // [rows, k], e4m3
    void* out;
    // [rows]: x is `out` times this.
    float* scales;
    // 16-byte pieces of a row of x, an even number.
    uint32_t pieces;
    uint32_t rows;
};

constexpr int QUANTIZE_THREADS = 256;
// The largest number of e4m3.
constexpr float LARGEST = 448.0f;
// Rows of no larger numbers are zeros: what scales them would have no inverse.
constexpr float SMALLEST = 1e-30f;

// The largest over a block, the same in every thread.
__device__ __forceinline__ float block_largest(float x) {
    SHARED(float, partial, QUANTIZE_THREADS / WARP);
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x = max_or_nan(x, __shfl_xor_sync(ALL_LANES, x, offset));
    }
    if (lane_id() == 0) {
        partial[warp_id()] = x;
    }
    __syncthreads();
    x = partial[0];
#pragma unroll
    for (int warp = 1; warp < QUANTIZE_THREADS / WARP; ++warp) {
        x = max_or_nan(x, partial[warp]);
    }
    return x;
}

// A block a row. The scale is the largest magnitude over 448, and 1 where that is as good as
// nothing; of a row with NaN in it NaN, as are then all sums with it.
template <typename T> __device__ __forceinline__ void quantize_rows(const QuantizeRows& p) {
    using Piece = Vector<T>;
    const uint64_t row = blockIdx.x;
    const Piece* x = static_cast<const Piece*>(p.x) + row * p.pieces;
    float largest = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.pieces; i += blockDim.x) {
        const Piece piece = x[i];
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            largest = max_or_nan(largest, fabsf(to_float(piece.x[e])));
        }
    }
    largest = block_largest(largest);
    const float scale = largest <= SMALLEST ? 1.0f : largest / LARGEST;
    if (threadIdx.x == 0) {
        p.scales[row] = scale;
    }
    // The row is in a cache by now.
    Vector<e4m3>* out = static_cast<Vector<e4m3>*>(p.out) + row * (p.pieces / 2);
    for (uint32_t i = threadIdx.x; i < p.pieces / 2; i += blockDim.x) {
        Vector<e4m3> narrow;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const Piece piece = x[i * 2 + part];
#pragma unroll
            for (int e = 0; e < Piece::LEN; ++e) {
                narrow.x[part * Piece::LEN + e] = from_float<e4m3>(to_float(piece.x[e]) / scale);
            }
        }
        out[i] = narrow;
    }
}

KERNEL(quantize_rows_bf16, QuantizeRows, QUANTIZE_THREADS) { quantize_rows<bf16>(p); }
KERNEL(quantize_rows_f16, QuantizeRows, QUANTIZE_THREADS) { quantize_rows<f16>(p); }

struct WidenWeight {
    // [rows, k], e4m3
    const void* w;
    // [rows, runs]
    const float* scales;
    // [rows, k]
    void* out;
    // 16-byte pieces of a row of w.
    uint32_t pieces;
    uint32_t rows;
    // Scales of a row; of more than one each is of 128 elements.
    uint32_t runs;
    uint32_t padding;
};

template <typename T> __device__ __forceinline__ void widen_weight(const WidenWeight& p) {
    constexpr uint32_t RUN = 128 / 16;
    const uint64_t total = uint64_t(p.rows) * p.pieces;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
        const uint32_t row = uint32_t(i / p.pieces);
        const uint32_t run = p.runs == 1 ? 0 : uint32_t(i % p.pieces) / RUN;
        const float scale = p.scales[uint64_t(row) * p.runs + run];
        const Vector<uint32_t> piece = load_stream(static_cast<const Vector<uint32_t>*>(p.w) + i, true);
        Vector<uint32_t>* out = static_cast<Vector<uint32_t>*>(p.out) + i * 2;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            out[part] = widened<T>(piece.x[part * 2], piece.x[part * 2 + 1], scale);
        }
    }
}

KERNEL(widen_weight_bf16, WidenWeight, 256) { widen_weight<bf16>(p); }
KERNEL(widen_weight_f16, WidenWeight, 256) { widen_weight<f16>(p); }

struct ScaleSums {
    // [rows, cols]
    const float* sums;
    // [rows], and [n] of all columns.
    const float* row_scales;
    const float* col_scales;
    // [rows, n]
    void* out;
    uint32_t rows;
    // A multiple of 8.
    uint32_t cols;
    // The first of the columns in `out`.
    uint32_t first;
    uint32_t n;
    // 1: added to what `out` holds.
    uint32_t adds;
    uint32_t padding;
};

template <typename T> __device__ __forceinline__ void scale_sums(const ScaleSums& p) {
    constexpr int LEN = Vector<T>::LEN;
    const uint32_t pieces = p.cols / LEN;
    const uint64_t total = uint64_t(p.rows) * pieces;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
        const uint64_t row = i / pieces;
        const uint32_t column = p.first + uint32_t(i % pieces) * LEN;
        const float row_scale = p.row_scales[row];
        T* const at = static_cast<T*>(p.out) + row * p.n + column;
        Vector<T> out = {};
        if (p.adds != 0) {
            out = *reinterpret_cast<const Vector<T>*>(at);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Vector<float> sums =
                *reinterpret_cast<const Vector<float>*>(p.sums + i * LEN + half * 4);
            const Vector<float> scales =
                *reinterpret_cast<const Vector<float>*>(p.col_scales + column + half * 4);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                T& x = out.x[half * 4 + e];
                const float sum = sums.x[e] * row_scale * scales.x[e];
                x = from_float<T>(p.adds != 0 ? to_float(x) + sum : sum);
            }
        }
        *reinterpret_cast<Vector<T>*>(at) = out;
    }
}

KERNEL(scale_sums_bf16, ScaleSums, 256) { scale_sums<bf16>(p); }
KERNEL(scale_sums_f16, ScaleSums, 256) { scale_sums<f16>(p); }
