// Norms Q and K where a model does, rotates them (RoPE, Su et al., 2021, in the
// half-split form of rotate_half), and writes K and V to their places in the cache.
// A head of a token has 4, 8 or 16 lanes; a lane has 8 neighbouring dimensions and the
// 8 that they are rotated with, each read and written at once.
#include "rope.cuh"

struct RopeAndCache {
    // [tokens, (num_heads + 2 * num_kv_heads) * head_dim]: Q, K, V; Q is rotated in place.
    void* qkv;
    // [max_positions, head_dim], f32: half of cosines, half of sines.
    const float* rope;
    // [tokens]
    const uint32_t* positions;
    // [tokens]: block * 16 + offset, or NOWHERE
    const uint32_t* slot_mapping;
    // [head_dim], f32, or null
    const float* q_norm;
    const float* k_norm;
    // The layer's cache.
    void* cache;
    uint32_t num_heads;
    uint32_t num_kv_heads;
    // A multiple of 16, at most 256.
    uint32_t head_dim;
    float eps;
    // What an element of the cache is multiplied with when it is read.
    float k_scale;
    float v_scale;
};

constexpr int ROPE_THREADS = 128;
// Dimensions of a lane in each half of a head.
constexpr uint32_t ROPE_DIMS = 8;

template <typename T> __device__ __forceinline__ void read_dims(float (&values)[ROPE_DIMS], const T* from) {
    constexpr int LEN = Vector<T>::LEN;
#pragma unroll
    for (int i = 0; i < int(ROPE_DIMS); i += LEN) {
        const Vector<T> piece = *reinterpret_cast<const Vector<T>*>(from + i);
#pragma unroll
        for (int e = 0; e < LEN; ++e) {
            values[i + e] = to_float(piece.x[e]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void write_dims(T* to, const float (&values)[ROPE_DIMS], float factor) {
    struct alignas(ROPE_DIMS * sizeof(T)) Piece {
        T x[ROPE_DIMS];
    } piece;
#pragma unroll
    for (int e = 0; e < int(ROPE_DIMS); ++e) {
        piece.x[e] = from_float<T>(values[e] * factor);
    }
    *reinterpret_cast<Piece*>(to) = piece;
}

template <typename T, typename C> __device__ __forceinline__ void rope_and_cache(const RopeAndCache& p) {
    const uint32_t half_dim = p.head_dim / 2;
    const uint32_t pieces = half_dim / ROPE_DIMS;
    const uint32_t lanes = pieces <= 4 ? 4 : pieces <= 8 ? 8 : 16;
    const uint32_t head = (blockIdx.y * ROPE_THREADS + threadIdx.x) / lanes;
    const uint32_t num_heads = p.num_heads + 2 * p.num_kv_heads;
    const uint32_t lane = threadIdx.x % lanes;
    // All lanes of a warp take part in its sums.
    const bool works = head < num_heads && lane < pieces;
    const size_t token = blockIdx.x;
    const uint32_t low = lane * ROPE_DIMS;
    const uint32_t high = half_dim + low;
    T* x = static_cast<T*>(p.qkv) + (token * num_heads + head) * p.head_dim;
    const bool is_query = head < p.num_heads;
    const bool is_value = head >= p.num_heads + p.num_kv_heads;
    float a[ROPE_DIMS] = {};
    float b[ROPE_DIMS] = {};
    if (works) {
        read_dims(a, x + low);
        read_dims(b, x + high);
    }
    if (p.q_norm != nullptr) {
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < int(ROPE_DIMS); ++e) {
            sum += a[e] * a[e];
            sum += b[e] * b[e];
        }
        for (uint32_t offset = lanes / 2; offset > 0; offset /= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, offset);
        }
        if (works && !is_value) {
            const float scale = rsqrtf(sum / float(p.head_dim) + p.eps);
            const float* norm = is_query ? p.q_norm : p.k_norm;
            float weights[ROPE_DIMS];
            read_dims(weights, norm + low);
#pragma unroll
            for (int e = 0; e < int(ROPE_DIMS); ++e) {
                a[e] *= scale * weights[e];
            }
            read_dims(weights, norm + high);
#pragma unroll
            for (int e = 0; e < int(ROPE_DIMS); ++e) {
                b[e] *= scale * weights[e];
            }
        }
    }
    if (!works) {
        return;
    }
    if (!is_value) {
        const float* table = p.rope + size_t(p.positions[token]) * p.head_dim;
        float cosines[ROPE_DIMS];
        float sines[ROPE_DIMS];
        read_dims(cosines, table + low);
        read_dims(sines, table + high);
#pragma unroll
        for (int e = 0; e < int(ROPE_DIMS); ++e) {
            rotate(a[e], b[e], cosines[e], sines[e]);
        }
    }
    if (is_query) {
        write_dims(x + low, a, 1.0f);
        write_dims(x + high, b, 1.0f);
        return;
    }
    const uint32_t slot = p.slot_mapping[token];
    if (slot == NOWHERE) {
        return;
    }
    const uint32_t kv_head = (head - p.num_heads) % p.num_kv_heads;
    C* cached = static_cast<C*>(p.cache) + cache_row(slot / BLOCK_TOKENS, is_value ? VALUES : KEYS,
                                                     kv_head, p.num_kv_heads, slot % BLOCK_TOKENS,
                                                     p.head_dim);
    const float inverse = 1.0f / (is_value ? p.v_scale : p.k_scale);
    write_dims(cached + low, a, inverse);
    write_dims(cached + high, b, inverse);
}

// Grid: [tokens, lanes of all heads of Q, K and V by ROPE_THREADS].
KERNEL(rope_and_cache_bf16, RopeAndCache, ROPE_THREADS) { rope_and_cache<bf16, bf16>(p); }
KERNEL(rope_and_cache_f16, RopeAndCache, ROPE_THREADS) { rope_and_cache<f16, f16>(p); }
KERNEL(rope_and_cache_bf16_e4m3, RopeAndCache, ROPE_THREADS) { rope_and_cache<bf16, e4m3>(p); }
KERNEL(rope_and_cache_f16_e4m3, RopeAndCache, ROPE_THREADS) { rope_and_cache<f16, e4m3>(p); }
