// x[i] = cap * tanh(x[i] / cap), of logits.
#include "sconce.cuh"

struct SoftCap {
    // [elements], f32
    float* x;
    uint32_t elements;
    float cap;
};

KERNEL(soft_cap, SoftCap, 256) {
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < p.elements; i += stride) {
        p.x[i] = p.cap * tanhf(p.x[i] / p.cap);
    }
}
