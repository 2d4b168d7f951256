// What products of few rows have around them, whichever kernel computes them: RMSNorm of their
// rows before, and what becomes of a sum.
#pragma once

#include "activation.cuh"
#include "rope.cuh"

// It is stored, added to what `out` holds, stored in f32; or, of a pair of outputs, gates the
// other, or is rotated with it and goes to the cache.
enum Epilogue : uint32_t { STORE, ADD, STORE_F32, SILU, GELU, ROPE };

// What becomes of Q, K and V where they are rotated in the launch of their product.
struct RopeEnd {
    // [max_positions, head_dim], f32: half of cosines, half of sines.
    const float* table;
    // [rows]
    const uint32_t* positions;
    // [rows]: block * 16 + offset, or NOWHERE
    const uint32_t* slot_mapping;
    // The layer's cache, of the dtype of activations, or of e4m3.
    void* cache;
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t is_e4m3;
    // What an element of the cache is multiplied with when it is read.
    float k_scale;
    float v_scale;
};

// Which rows of a weight belong together where outputs come in pairs: a gate and what it gates,
// half of the rows apart, or the dimensions of a head that are rotated with each other, half a head
// apart. ROTATES: whether there may be such.
template <bool ROTATES> struct Pairs {
    bool are;
    // From a pair's first row to its second.
    uint32_t apart;

    template <typename P>
    __device__ __forceinline__ explicit Pairs(const P& p)
        : are(p.epilogue >= SILU), apart(ROTATES && p.epilogue == ROPE ? p.rope.head_dim / 2 : p.n / 2) {}

    // The first row of a pair; of one output its row.
    __device__ __forceinline__ uint32_t row(uint32_t output) const {
        return ROTATES && are ? output + output / apart * apart : output;
    }
};

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

// Rotates two outputs of a head of Q or K, and writes Q where outputs go, K and V into the cache;
// all as if they had been stored before.
template <typename T, typename P>
__device__ __forceinline__ void finish_rope(const P& p, uint32_t row, uint32_t first, float low, float high) {
    const RopeEnd& end = p.rope;
    const uint32_t half = end.head_dim / 2;
    const uint32_t head = first / end.head_dim, dim = first % end.head_dim;
    const bool is_value = head >= end.num_heads + end.num_kv_heads;
    if (p.bias != nullptr) {
        low += p.bias[first];
        high += p.bias[first + half];
    }
    low = to_float(from_float<T>(low));
    high = to_float(from_float<T>(high));
    if (!is_value) {
        const float* table = end.table + size_t(end.positions[row]) * end.head_dim;
        rotate(low, high, table[dim], table[half + dim]);
    }
    if (head < end.num_heads) {
        T* const out = static_cast<T*>(p.out) + uint64_t(row) * p.n + first;
        out[0] = from_float<T>(low);
        out[half] = from_float<T>(high);
        return;
    }
    const uint32_t slot = end.slot_mapping[row];
    if (slot == NOWHERE) {
        return;
    }
    const uint32_t kv_head = (head - end.num_heads) % end.num_kv_heads;
    const size_t at = cache_row(slot / BLOCK_TOKENS, is_value ? VALUES : KEYS, kv_head, end.num_kv_heads,
                                slot % BLOCK_TOKENS, end.head_dim) + dim;
    const float inverse = 1.0f / (is_value ? end.v_scale : end.k_scale);
    if (end.is_e4m3 != 0) {
        e4m3* const cached = static_cast<e4m3*>(end.cache) + at;
        cached[0] = from_float<e4m3>(low * inverse);
        cached[half] = from_float<e4m3>(high * inverse);
    } else {
        T* const cached = static_cast<T*>(end.cache) + at;
        cached[0] = from_float<T>(low * inverse);
        cached[half] = from_float<T>(high * inverse);
    }
}

// Writes the output `output` of `outputs` of a row, or the pair of that number, whose other output
// `gated` is. Of gated units that is what the sum gates, and biases and sums of `outputs` more follow
// those of the gates.
template <typename T, bool ROTATES, typename P>
__device__ __forceinline__ void finish_sum(const P& p, uint32_t row, uint32_t output, uint32_t outputs, float sum,
                                           float gated) {
    if constexpr (ROTATES) {
        if (p.epilogue == ROPE) {
            finish_rope<T>(p, row, Pairs<true>(p).row(output), sum, gated);
            return;
        }
    }
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
