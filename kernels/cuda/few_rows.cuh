// What products of few rows have around them, whichever kernel computes them: RMSNorm of their
// rows before, and what becomes of a sum.
#pragma once

#include "activation.cuh"

// It is stored, added to what `out` holds, stored in f32; or, of gated units, gates another.
enum Epilogue : uint32_t { STORE, ADD, STORE_F32, SILU, GELU };

// Adds the squares of a piece's elements, one after the other.
template <typename T> __device__ __forceinline__ void add_squares(float& squares, const Vector<T>& piece) {
#pragma unroll
    for (int e = 0; e < Vector<T>::LEN; ++e) {
        const float value = to_float(piece.x[e]);
        squares += value * value;
    }
}

// A row's piece number `i`, times the row's scale and the norm's weights.
template <typename T>
__device__ __forceinline__ Vector<T> normed(Vector<T> piece, uint32_t i, float scale, const float* norm) {
    const Vector<float>* weights = reinterpret_cast<const Vector<float>*>(norm + i * Vector<T>::LEN);
#pragma unroll
    for (int e = 0; e < Vector<T>::LEN; ++e) {
        const float weight = weights[e / Vector<float>::LEN].x[e % Vector<float>::LEN];
        piece.x[e] = from_float<T>(to_float(piece.x[e]) * scale * weight);
    }
    return piece;
}

// Writes the output `output` of `outputs` of a row; of gated units `gated` is what the sum gates,
// and biases and sums of `outputs` more follow those of the gates.
template <typename T, typename P>
__device__ __forceinline__ void finish_sum(const P& p, uint32_t row, uint32_t output, uint32_t outputs, float sum,
                                           float gated) {
    if (p.bias != nullptr) {
        sum += p.bias[output];
    }
    const uint64_t to = uint64_t(row) * outputs + output;
    T* const out = static_cast<T*>(p.out);
    if (p.epilogue == STORE_F32) {
        static_cast<float*>(p.out)[to] = sum;
    } else if (p.epilogue == ADD) {
        out[to] = from_float<T>(to_float(out[to]) + sum);
    } else if (p.epilogue < SILU) {
        out[to] = from_float<T>(sum);
    } else {
        const float up = gated + (p.bias != nullptr ? p.bias[outputs + output] : 0.0f);
        out[to] = from_float<T>((p.epilogue == SILU ? silu(sum) : gelu(sum)) * up);
    }
}
