// The rotation of a pair of dimensions of a head (RoPE, Su et al., 2021, in the half-split form of
// rotate_half), and where keys and values are written to.
#pragma once

#include "kv_cache.cuh"

// Of a padded row, whose key and value are not written.
constexpr uint32_t NOWHERE = 0xffffffffu;

// Rotates dimension `low` of a head's first half and its partner of the second: the same bits
// whichever kernel does it.
__device__ __forceinline__ void rotate(float& low, float& high, float cosine, float sine) {
    const float rotated = fmaf(low, cosine, -(high * sine));
    high = fmaf(high, cosine, low * sine);
    low = rotated;
}
