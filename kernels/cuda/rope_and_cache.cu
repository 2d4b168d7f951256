// Norms Q and K where a model does, rotates them (RoPE, Su et al., 2021, in the
// half-split form of rotate_half), and writes K and V to their places in the cache.
// A warp has one head of one token; a lane has two neighbouring dimensions and the
// two they are rotated with.
#include "kv_cache.cuh"

struct RopeAndCache {
    // [tokens, (num_heads + 2 * num_kv_heads) * head_dim]: Q, K, V; Q is rotated in place.
    void* qkv;
    // [max_positions, head_dim], f32: half of cosines, half of sines.
    const float* rope;
    // [tokens]
    const uint32_t* positions;
    // [tokens]: block * 16 + offset
    const uint32_t* slot_mapping;
    // [head_dim], f32, or null
    const float* q_norm;
    const float* k_norm;
    // The layer's cache.
    void* cache;
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    float eps;
    // What an element of the cache is multiplied with when it is read.
    float k_scale;
    float v_scale;
};

constexpr int ROPE_THREADS = 128;
// Pairs of dimensions that a lane holds at most: head_dim 256.
constexpr int ROPE_HELD = 2;

template <typename T, typename C> __device__ __forceinline__ void rope_and_cache(const RopeAndCache& p) {
    const uint32_t head = blockIdx.y * (ROPE_THREADS / WARP) + warp_id();
    const uint32_t num_heads = p.num_heads + 2 * p.num_kv_heads;
    if (head >= num_heads) {
        return;
    }
    const size_t token = blockIdx.x;
    const uint32_t half_dim = p.head_dim / 2;
    T* x = static_cast<T*>(p.qkv) + (token * num_heads + head) * p.head_dim;
    const bool is_query = head < p.num_heads;
    const bool is_value = head >= p.num_heads + p.num_kv_heads;
    // [held][first or second half][two neighbours]
    float values[ROPE_HELD][2][2];
    float sum = 0.0f;
#pragma unroll
    for (int held = 0; held < ROPE_HELD; ++held) {
        const uint32_t i = 2 * (lane_id() + held * WARP);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float value = i < half_dim ? to_float(x[half * half_dim + i + e]) : 0.0f;
                values[held][half][e] = value;
                sum += value * value;
            }
        }
    }
    const float* norm = is_query ? p.q_norm : p.k_norm;
    if (!is_value && norm != nullptr) {
        const float scale = rsqrtf(warp_sum(sum) / float(p.head_dim) + p.eps);
#pragma unroll
        for (int held = 0; held < ROPE_HELD; ++held) {
            const uint32_t i = 2 * (lane_id() + held * WARP);
            if (i < half_dim) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        values[held][half][e] *= scale * norm[half * half_dim + i + e];
                    }
                }
            }
        }
    }
    if (!is_value) {
        const float* table = p.rope + size_t(p.positions[token]) * p.head_dim;
#pragma unroll
        for (int held = 0; held < ROPE_HELD; ++held) {
            const uint32_t i = 2 * (lane_id() + held * WARP);
            if (i < half_dim) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float cosine = table[i + e];
                    const float sine = table[half_dim + i + e];
                    const float a = values[held][0][e];
                    const float b = values[held][1][e];
                    values[held][0][e] = a * cosine - b * sine;
                    values[held][1][e] = b * cosine + a * sine;
                }
            }
        }
    }
    const uint32_t slot = p.slot_mapping[token];
    const uint32_t kv_head = is_query ? 0 : (head - p.num_heads) % p.num_kv_heads;
    C* cached = static_cast<C*>(p.cache) + cache_row(slot / BLOCK_TOKENS, is_value ? VALUES : KEYS,
                                                     kv_head, p.num_kv_heads, slot % BLOCK_TOKENS,
                                                     p.head_dim);
    const float inverse = 1.0f / (is_value ? p.v_scale : p.k_scale);
#pragma unroll
    for (int held = 0; held < ROPE_HELD; ++held) {
        const uint32_t i = 2 * (lane_id() + held * WARP);
        if (i < half_dim) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const uint32_t at = half * half_dim + i + e;
                    if (is_query) {
                        x[at] = from_float<T>(values[held][half][e]);
                    } else {
                        cached[at] = from_float<C>(values[held][half][e] * inverse);
                    }
                }
            }
        }
    }
}

// Grid: [tokens, heads of Q, K and V by 4].
KERNEL(rope_and_cache_bf16, RopeAndCache, ROPE_THREADS) { rope_and_cache<bf16, bf16>(p); }
KERNEL(rope_and_cache_f16, RopeAndCache, ROPE_THREADS) { rope_and_cache<f16, f16>(p); }
KERNEL(rope_and_cache_bf16_e4m3, RopeAndCache, ROPE_THREADS) { rope_and_cache<bf16, e4m3>(p); }
KERNEL(rope_and_cache_f16_e4m3, RopeAndCache, ROPE_THREADS) { rope_and_cache<f16, e4m3>(p); }
