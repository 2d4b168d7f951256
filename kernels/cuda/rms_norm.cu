// RMSNorm (Zhang and Sennrich, 2019): out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, or,
// with _add, that on top of what out[r] holds.
// A block takes rows in turn, and asks for the next row before it works on the one it has; a
// row's elements stay in registers between the two passes, and the sum's order depends on the
// row's length only.
#include "sconce.cuh"

struct RmsNorm {
    // [rows, hidden]
    const void* x;
    // [hidden], f32
    const float* weight;
    // [rows, hidden]
    void* out;
    // A multiple of 8, at most 8 * 8 * 256.
    uint32_t hidden;
    float eps;
    uint32_t rows;
};

constexpr int NORM_THREADS = 256;
// 16-byte pieces of a row that one thread holds at most.
constexpr int NORM_PIECES = 8;

// Two elements of one word.
template <typename T> __device__ __forceinline__ void unpack(uint32_t word, float (&pair)[2]) {
    T x[2];
    memcpy(x, &word, sizeof(word));
    pair[0] = to_float(x[0]);
    pair[1] = to_float(x[1]);
}

// A thread's pieces of a row, at most HELD; elements stay two in a register.
template <int HELD> struct Pieces {
    Vector<uint32_t> x[HELD];

    __device__ __forceinline__ void load(const void* rows, uint32_t row, uint32_t num) {
        const Vector<uint32_t>* from = static_cast<const Vector<uint32_t>*>(rows) + size_t(row) * num;
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            const uint32_t i = threadIdx.x + h * NORM_THREADS;
            if (i < num) {
                x[h] = from[i];
            }
        }
    }
};

// Rows of at most HELD pieces a thread. Those of few pieces leave registers for the next row
// and, where no residual takes them, for the weights, which serve all rows.
template <typename T, int HELD, bool ADD> __device__ __forceinline__ void norm_rows(const RmsNorm& p) {
    constexpr int LEN = Vector<T>::LEN;
    constexpr bool IS_NARROW = HELD <= 2;
    constexpr bool HOLDS_WEIGHTS = IS_NARROW && !ADD;
    const uint32_t num = p.hidden / LEN;
    Pieces<HELD> own;
    Pieces<IS_NARROW ? HELD : 1> next;
    Vector<float> weights[HOLDS_WEIGHTS ? HELD : 1][LEN / 4];
    const auto load_weights = [&](int h, Vector<float>(&to)[LEN / 4]) {
        const uint32_t i = threadIdx.x + h * NORM_THREADS;
#pragma unroll
        for (int e = 0; e < LEN / 4; ++e) {
            to[e] = reinterpret_cast<const Vector<float>*>(p.weight + i * LEN)[e];
        }
    };
    if (IS_NARROW) {
        next.load(p.x, blockIdx.x, num);
    }
    if (HOLDS_WEIGHTS) {
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            if (threadIdx.x + h * NORM_THREADS < num) {
                load_weights(h, weights[HOLDS_WEIGHTS ? h : 0]);
            }
        }
    }
    for (uint32_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        if constexpr (IS_NARROW) {
            own = next;
            if (row + gridDim.x < p.rows) {
                next.load(p.x, row + gridDim.x, num);
            }
        } else {
            own.load(p.x, row, num);
        }
        Pieces<ADD ? HELD : 1> residual;
        if (ADD && IS_NARROW) {
            residual.load(p.out, row, num);
        }
        float sum = 0.0f;
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            if (threadIdx.x + h * NORM_THREADS < num) {
#pragma unroll
                for (int word = 0; word < LEN / 2; ++word) {
                    float pair[2];
                    unpack<T>(own.x[h].x[word], pair);
                    sum += pair[0] * pair[0];
                    sum += pair[1] * pair[1];
                }
            }
        }
        const float mean = block_sum<NORM_THREADS / WARP>(sum) / float(p.hidden);
        const float scale = rsqrtf(mean + p.eps);
        if (ADD && !IS_NARROW) {
            residual.load(p.out, row, num);
        }
        Vector<uint32_t>* out = static_cast<Vector<uint32_t>*>(p.out) + size_t(row) * num;
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            const uint32_t i = threadIdx.x + h * NORM_THREADS;
            if (i < num) {
                if (!HOLDS_WEIGHTS) {
                    load_weights(h, weights[0]);
                }
#pragma unroll
                for (int word = 0; word < LEN / 2; ++word) {
                    float pair[2];
                    float to[2] = {0.0f, 0.0f};
                    unpack<T>(own.x[h].x[word], pair);
                    if (ADD) {
                        unpack<T>(residual.x[ADD ? h : 0].x[word], to);
                    }
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float weight = weights[HOLDS_WEIGHTS ? h : 0][word / 2].x[word % 2 * 2 + e];
                        const float normed = pair[e] * scale * weight;
                        to[e] = ADD ? to[e] + normed : normed;
                    }
                    own.x[h].x[word] = pack<T>(to[0], to[1]);
                }
                out[i] = own.x[h];
            }
        }
    }
}

// Rows of at most 4,096 elements; wider ones take registers that would leave fewer blocks.
template <typename T, bool ADD> __device__ __forceinline__ void rms_norm(const RmsNorm& p) {
    if (p.hidden <= NORM_THREADS * Vector<T>::LEN) {
        norm_rows<T, 1, ADD>(p);
    } else {
        norm_rows<T, 2, ADD>(p);
    }
}

template <typename T, bool ADD> __device__ __forceinline__ void rms_norm_wide(const RmsNorm& p) {
    if (p.hidden <= 4 * NORM_THREADS * Vector<T>::LEN) {
        norm_rows<T, 4, ADD>(p);
    } else {
        norm_rows<T, NORM_PIECES, ADD>(p);
    }
}

// Grid: any number of blocks, rows are theirs in turn.
KERNEL_RESIDENT(rms_norm_bf16, RmsNorm, NORM_THREADS, 4) { rms_norm<bf16, false>(p); }
KERNEL_RESIDENT(rms_norm_f16, RmsNorm, NORM_THREADS, 4) { rms_norm<f16, false>(p); }
KERNEL_RESIDENT(rms_norm_wide_bf16, RmsNorm, NORM_THREADS, 2) { rms_norm_wide<bf16, false>(p); }
KERNEL_RESIDENT(rms_norm_wide_f16, RmsNorm, NORM_THREADS, 2) { rms_norm_wide<f16, false>(p); }
KERNEL_RESIDENT(rms_norm_add_bf16, RmsNorm, NORM_THREADS, 4) { rms_norm<bf16, true>(p); }
KERNEL_RESIDENT(rms_norm_add_f16, RmsNorm, NORM_THREADS, 4) { rms_norm<f16, true>(p); }
KERNEL_RESIDENT(rms_norm_add_wide_bf16, RmsNorm, NORM_THREADS, 2) { rms_norm_wide<bf16, true>(p); }
KERNEL_RESIDENT(rms_norm_add_wide_f16, RmsNorm, NORM_THREADS, 2) { rms_norm_wide<f16, true>(p); }
