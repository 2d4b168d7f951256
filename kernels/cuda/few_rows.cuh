// What becomes of a sum of a product of few rows, whichever kernel computed it.
#pragma once

#include "activation.cuh"

// It is stored, added to what `out` holds, stored in f32; or, of gated units, gates another.
enum Epilogue : uint32_t { STORE, ADD, STORE_F32, SILU, GELU };

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
