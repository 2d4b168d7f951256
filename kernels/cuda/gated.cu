// out[r][i] = act(x[r][i]) * x[r][intermediate + i], where act is SiLU or, for
// gelu_mul, GELU.
#include "activation.cuh"

struct Gated {
    // [rows, 2 * intermediate]
    const void* x;
    // [rows, intermediate]
    void* out;
    // 16-byte pieces of a row of `out`.
    uint32_t pieces;
    uint32_t rows;
};

template <typename T, float (*ACT)(float)>
__device__ __forceinline__ void gated(const Gated& p) {
    using Piece = Vector<T>;
    const uint64_t total = uint64_t(p.rows) * p.pieces;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
        const uint64_t row = i / p.pieces;
        const Piece* x = static_cast<const Piece*>(p.x) + row * 2 * p.pieces + i % p.pieces;
        const Piece gate = x[0];
        const Piece up = x[p.pieces];
        Piece out;
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            out.x[e] = from_float<T>(ACT(to_float(gate.x[e])) * to_float(up.x[e]));
        }
        static_cast<Piece*>(p.out)[i] = out;
    }
}

KERNEL(silu_mul_bf16, Gated, 256) { gated<bf16, silu>(p); }
KERNEL(silu_mul_f16, Gated, 256) { gated<f16, silu>(p); }
KERNEL(gelu_mul_bf16, Gated, 256) { gated<bf16, gelu>(p); }
KERNEL(gelu_mul_f16, Gated, 256) { gated<f16, gelu>(p); }
