// x[r][i] += bias[i].
#include "sconce.cuh"

struct AddBias {
    // [cols], f32
    const float* bias;
    // [rows, cols]
    void* x;
    // 16-byte pieces of a row.
    uint32_t pieces;
    uint32_t rows;
};

template <typename T> __device__ __forceinline__ void add_bias(const AddBias& p) {
    using Piece = Vector<T>;
    const uint64_t total = uint64_t(p.rows) * p.pieces;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
        const float* bias = p.bias + i % p.pieces * Piece::LEN;
        Piece x = static_cast<Piece*>(p.x)[i];
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            x.x[e] = from_float<T>(to_float(x.x[e]) + bias[e]);
        }
        static_cast<Piece*>(p.x)[i] = x;
    }
}

KERNEL(add_bias_bf16, AddBias, 256) { add_bias<bf16>(p); }
KERNEL(add_bias_f16, AddBias, 256) { add_bias<f16>(p); }
