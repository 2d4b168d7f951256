// Products of one to four rows with a weight, on CUDA cores: out[r] = w x[r], whose time is
// that of reading the weight once.
//
// A warp reads R rows of the weight side by side, each in runs of 512 bytes, and asks for
// U runs of each before it uses the first, of the next rows too before it is done with these.
// x is in shared memory, read once for the R rows. An output's sum is that of 32 lanes'
// chains over k, whatever R, U, the number of rows and the grid are: so are its bits.
//
// A weight in e4m3 has a scale for each row, or for each run of 128 of a row's elements. It is
// widened in registers, and multiplied with the same x.
#include "few_rows.cuh"

struct Gemv {
    // [rows, k]
    const void* x;
    // [n, k]
    const void* w;
    // [n, runs], of a weight in e4m3.
    const float* scales;
    // [n], or null.
    const float* bias;
    // [k], of an RMSNorm of x's rows before the product, or null.
    const float* norm;
    // [rows, n], or [rows, n / 2] of gated units.
    void* out;
    // Rows of the weight; of gated units the first half are gates, with ROPE they are the heads of Q,
    // K and V.
    uint32_t n;
    // A multiple of 8; of a weight in e4m3 of 16.
    uint32_t k;
    // An Epilogue.
    uint32_t epilogue;
    // Scales of a row of the weight; of more than one each is of 128 elements.
    uint32_t runs;
    float eps;
    uint32_t padding;
    // Of the epilogue ROPE.
    RopeEnd rope;
};

static_assert(sizeof(Gemv) == 128, "as params.rs has it");

// A block, one a multiprocessor: what is in flight is then 64 KiB with R * U = 8.
constexpr int GEMV_THREADS = 512;

// Puts x into shared memory, zeros after each row of it up to `padded` times PARTS pieces. Those
// that belong to one piece of the weight lie in PARTS parts of a row, so that a warp that reads
// one part of each has no bank twice.
template <typename T, int M, int PARTS>
__device__ __forceinline__ void stage_rows(const Gemv& p, Vector<T>* staged, uint32_t padded) {
    using Piece = Vector<T>;
    const uint32_t pieces = p.k / Piece::LEN;
    const auto place = [padded](int m, uint32_t i) {
        return (m * PARTS + i % PARTS) * padded + i / PARTS;
    };
    const Piece* x = static_cast<const Piece*>(p.x);
    float squares[M] = {};
#pragma unroll
    for (int m = 0; m < M; ++m) {
        for (uint32_t i = threadIdx.x; i < padded * PARTS; i += blockDim.x) {
            Piece piece = {};
            if (i < pieces) {
                piece = x[m * pieces + i];
            }
            staged[place(m, i)] = piece;
            add_squares(squares[m], piece);
        }
    }
    if (p.norm != nullptr) {
        SHARED(float, partial, M * GEMV_THREADS / WARP);
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const float sum = warp_sum(squares[m]);
            if (lane_id() == 0) {
                partial[warp_id() * M + m] = sum;
            }
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M; ++m) {
            float sum = 0.0f;
            for (uint32_t warp = 0; warp < blockDim.x / WARP; ++warp) {
                sum += partial[warp * M + m];
            }
            const float scale = rsqrtf(sum / float(p.k) + p.eps);
            // A thread's own pieces, so nothing else has to be there yet.
            for (uint32_t i = threadIdx.x; i < pieces; i += blockDim.x) {
                staged[place(m, i)] = normed(staged[place(m, i)], i, scale, p.norm);
            }
        }
    }
    __syncthreads();
}

// Adds to `sums` what a lane's piece of R rows of the weight makes with its pieces of x.
template <typename T, int M, int R>
__device__ __forceinline__ void add_piece(const Vector<uint32_t> (&held)[R],
                                          const Vector<uint32_t>* staged, uint32_t padded,
                                          float (&sums)[R][M]) {
    using Piece = Vector<uint32_t>;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const Piece x = staged[m * padded];
#pragma unroll
        for (int i = 0; i < Piece::LEN; ++i) {
            float low, high;
            unpack<T>(x.x[i], low, high);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                float weight_low, weight_high;
                unpack<T>(held[r].x[i], weight_low, weight_high);
                sums[r][m] += weight_low * low;
                sums[r][m] += weight_high * high;
            }
        }
    }
}

// The same of a weight in e4m3, whose piece has 16 elements. Its own sum is scaled.
template <typename T, int M, int R>
__device__ __forceinline__ void add_narrow_piece(const Vector<uint32_t> (&held)[R],
                                                 const float (&scales)[R],
                                                 const Vector<uint32_t>* staged, uint32_t padded,
                                                 float (&sums)[R][M]) {
    using Piece = Vector<uint32_t>;
    float of_piece[R][M] = {};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        Piece x[M];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            x[m] = staged[(m * 2 + part) * padded];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                uint32_t pairs[2];
                widen(held[r].x[part * 2 + i], pairs[0], pairs[1]);
#pragma unroll
                for (int pair = 0; pair < 2; ++pair) {
                    float weight_low, weight_high;
                    unpack<f16>(pairs[pair], weight_low, weight_high);
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        float low, high;
                        unpack<T>(x[m].x[i * 2 + pair], low, high);
                        of_piece[r][m] += weight_low * low;
                        of_piece[r][m] += weight_high * high;
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
            sums[r][m] = fmaf(of_piece[r][m], scales[r], sums[r][m]);
        }
    }
}

// W: what the weight is of, T or e4m3. Of pairs a warp has one, whose two rows are side by side: R
// is 2 then. ROTATES: it has the epilogue ROPE, for which others have no registers left.
template <typename T, typename W, int M, int R, int U, bool ROTATES>
__device__ __forceinline__ void gemv(const Gemv& p) {
    using Piece = Vector<uint32_t>;
    constexpr bool IS_NARROW = sizeof(W) == 1;
    // Pieces of x that belong to one of the weight.
    constexpr int PARTS = IS_NARROW ? 2 : 1;
    // Pieces of the weight that have one scale, where a row has several.
    constexpr uint32_t RUN = 128 / 16;
    // Pieces of a row that are asked for at a time.
    constexpr int BATCH = U * WARP;
    static_assert(R <= 2);
    DYNAMIC_SHARED(dynamic);
    const Piece* const staged = reinterpret_cast<const Piece*>(dynamic);
    const uint32_t pieces = p.k / Vector<W>::LEN;
    const uint32_t padded = (pieces + BATCH - 1) / BATCH * BATCH;
    const Pairs<ROTATES> pairs(p);
    const uint32_t outputs = pairs.are ? p.n / 2 : p.n;
    const uint32_t of_task = pairs.are ? 1 : R;
    const uint32_t tasks = (outputs + of_task - 1) / of_task;
    // Neighbouring tasks on different multiprocessors, so that the last are spread over all.
    const uint32_t stride = gridDim.x * (blockDim.x / WARP);
    uint32_t task = warp_id() * gridDim.x + blockIdx.x;
    const int lane = lane_id();

    // The next pieces to ask for: where they are in R rows, and how many of them there are.
    const Piece* from[R];
    // Where the scales of these rows begin.
    uint32_t scales_at[IS_NARROW ? R : 1];
    int left = 0;
    const auto begin_task = [&](uint32_t task) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const uint32_t output = min(task * of_task + (pairs.are ? 0 : r), outputs - 1);
            const uint32_t row = pairs.row(output) + (pairs.are && r > 0 ? pairs.apart : 0);
            from[r] = static_cast<const Piece*>(p.w) + uint64_t(row) * pieces + lane;
            if constexpr (IS_NARROW) {
                scales_at[r] = row * p.runs;
            }
        }
        left = task < tasks ? int(pieces) - lane : 0;
    };
    Piece held[U][R];
    float held_scales[IS_NARROW ? U : 1][R];
    const auto ask = [&](int u) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            held[u][r] = load_stream(from[r] + u * WARP, u * WARP < left);
            if constexpr (IS_NARROW) {
                held_scales[u][r] = 1.0f;
                if (p.runs > 1 && u * WARP < left) {
                    const uint32_t run = (pieces - left + u * WARP) / RUN;
                    held_scales[u][r] = p.scales[scales_at[r] + run];
                }
            }
        }
    };
    begin_task(task);
#pragma unroll
    for (int u = 0; u < U; ++u) {
        ask(u);
    }
    if (p.norm != nullptr) {
        for (uint32_t i = threadIdx.x; i * 32 < p.k; i += blockDim.x) {
            prefetch(p.norm + i * 32);
        }
    }
    // The weights are on their way while x is still being computed.
    await_previous();
    stage_rows<T, M, PARTS>(p, reinterpret_cast<Vector<T>*>(dynamic), padded);

    for (; task < tasks; task += stride) {
        float sums[R][M] = {};
        for (uint32_t at = 0; at < padded; at += BATCH) {
            if (at + BATCH < padded) {
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    from[r] += BATCH;
                }
                left -= BATCH;
            } else {
                begin_task(task + stride);
            }
#pragma unroll
            for (int u = 0; u < U; ++u) {
                const Piece* const x = staged + at + u * WARP + lane;
                if constexpr (IS_NARROW) {
                    add_narrow_piece<T, M, R>(held[u], held_scales[u], x, padded, sums);
                } else {
                    add_piece<T, M, R>(held[u], x, padded, sums);
                }
                ask(u);
            }
        }

        // Lane r * M + m finishes the sum of row r with x's row m.
        float sum = 0.0f;
#pragma unroll
        for (int of = 0; of < R * M; ++of) {
            const float of_warp = warp_sum(sums[of / M][of % M]);
            sum = lane == of ? of_warp : sum;
        }
        float gated = __shfl_sync(ALL_LANES, sum, (lane + M) % WARP);
        const uint32_t output = task * of_task + lane / M;
        if (lane >= int(of_task) * M || output >= outputs) {
            continue;
        }
        if constexpr (IS_NARROW) {
            const bool is_per_row = p.runs == 1;
            const uint32_t row = pairs.row(output);
            sum *= WIDENED_UNIT * (is_per_row ? p.scales[row] : 1.0f);
            if (pairs.are) {
                gated *= WIDENED_UNIT * (is_per_row ? p.scales[row + pairs.apart] : 1.0f);
            }
        }
        finish_sum<T, ROTATES>(p, lane % M, output, outputs, sum, gated);
    }
}

// Told that a multiprocessor holds one block, the compiler asks for the next pieces before it
// adds these up, where registers last; of three and four rows they do not.
#define GEMV(name, T, W, M, R, U, ROTATES)                                                    \
    KERNEL_EARLY(name##_m##M##_r##R##_u##U, Gemv, GEMV_THREADS) {                             \
        gemv<T, W, M, R, U, ROTATES>(p);                                                      \
    }
#define GEMV_EARLY(name, T, W, M, R, U)                                                       \
    KERNEL_EARLY_RESIDENT(name##_m##M##_r##R##_u##U, Gemv, GEMV_THREADS, 1) {                 \
        gemv<T, W, M, R, U, (R > 1)>(p);                                                      \
    }
#define GEMV_TWO(name, T, W, M, R, U)                                                         \
    KERNEL_EARLY_RESIDENT(name##_m##M##_r##R##_u##U##_b2, Gemv, GEMV_THREADS, 2) {            \
        gemv<T, W, M, R, U, false>(p);                                                        \
    }

GEMV_EARLY(gemv_bf16, bf16, bf16, 1, 2, 4)
GEMV_EARLY(gemv_bf16, bf16, bf16, 2, 2, 4)
GEMV(gemv_bf16, bf16, bf16, 3, 2, 4, true)
GEMV(gemv_bf16, bf16, bf16, 4, 2, 4, true)
GEMV_EARLY(gemv_f16, f16, f16, 1, 2, 4)
GEMV_EARLY(gemv_f16, f16, f16, 2, 2, 4)
GEMV(gemv_f16, f16, f16, 3, 2, 4, true)
GEMV(gemv_f16, f16, f16, 4, 2, 4, true)

GEMV_TWO(gemv_bf16, bf16, bf16, 1, 2, 4)
GEMV_EARLY(gemv_bf16, bf16, bf16, 1, 1, 8)
GEMV_TWO(gemv_bf16, bf16, bf16, 1, 1, 8)
GEMV_EARLY(gemv_bf16, bf16, bf16, 2, 1, 8)

GEMV_EARLY(gemv_bf16_e4m3, bf16, e4m3, 1, 2, 4)
GEMV_EARLY(gemv_bf16_e4m3, bf16, e4m3, 2, 2, 4)
GEMV(gemv_bf16_e4m3, bf16, e4m3, 3, 2, 4, true)
GEMV(gemv_bf16_e4m3, bf16, e4m3, 4, 2, 4, false)
GEMV_EARLY(gemv_f16_e4m3, f16, e4m3, 1, 2, 4)
GEMV_EARLY(gemv_f16_e4m3, f16, e4m3, 2, 2, 4)
GEMV(gemv_f16_e4m3, f16, e4m3, 3, 2, 4, true)
GEMV(gemv_f16_e4m3, f16, e4m3, 4, 2, 4, false)
