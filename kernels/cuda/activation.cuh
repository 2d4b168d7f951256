// The activations of gated units.
#pragma once

#include "sconce.cuh"

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// GELU in its tanh form (Hendrycks and Gimpel, 2016).
__device__ __forceinline__ float gelu(float x) {
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}
