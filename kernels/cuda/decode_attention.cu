// Attention of few rows over the paged cache: decodes, and the ends of prompts.
// `attention.cuh` says in what order things are added up.
//
// A block has up to 8 or 16 packed rows of a sequence and some chunks of its context.
// Its four warps share each tile of 64 tokens: a warp scores one page of it for all
// rows, and weighs all of the tile's values in its share of the dimensions; maxima and
// probabilities cross through shared memory. So results lie spread over the block's
// registers, a few in each thread, and no two warps' have to be added up.
//
// Tensor cores have tokens, then dimensions as their 16 rows, and heads as their 8
// columns: few heads leave little of them idle, and each lane has to do with its two
// columns only.
#include "attention.cuh"

constexpr int DECODE_THREADS = 128;
constexpr int DECODE_WARPS = DECODE_THREADS / WARP;
static_assert(DECODE_WARPS == TILE_PAGES, "a warp scores a page");

// Chunks whose weights the merge holds at a time.
constexpr int MERGED_AT_ONCE = 64;

// A block's shared memory, in bytes; N is the rows of 8.
template <typename C, int D, int N> struct DecodeShared {
    static constexpr int SLOTS = D * int(sizeof(C)) > 256 ? 2 : 4;
    static constexpr int ROWS = 8 * N;
    static constexpr int RING = SLOTS * Tile<C, D>::LEN * int(sizeof(C));
    // [ROWS, D + 8], two bytes each: Q, at the end outputs.
    static constexpr int QUERIES = ROWS * (D + 8) * 2;
    // [N, TILE, 8], two bytes each.
    static constexpr int PROBABILITIES = N * TILE * 8 * 2;
    // [DECODE_WARPS, ROWS]
    static constexpr int MAXIMA = DECODE_WARPS * ROWS * 4;
    static_assert(ROWS * MERGED_AT_ONCE * 16 <= RING, "the merge's weights take the ring's place");
};

// Sum and outputs of a chunk, or of several: a lane has columns 2 * (lane % 4) + {0, 1}
// of N tiles of 8; of outputs also the dimensions of `dimension`.
template <int MINE, int N> struct Spread {
    float maximum[N][2];
    float sum[N][2];
    float out[MINE][N][4];
};

// The dimension that a lane has of a tile of 16, in the accumulator's low or high half.
template <typename C> __device__ __forceinline__ int dimension(int tile, int half) {
    const int g = lane_id() / 4;
    return tile * 16 + (sizeof(C) == 1 ? 2 * g + half : g + 8 * half);
}

// K's fragments of 16 tokens, for two steps of 16 dimensions.
template <typename M, typename C, int D>
__device__ __forceinline__ void load_keys(uint32_t (&a)[2][4], const C* keys, int k) {
    const int lane = lane_id();
    const C* row = keys + lane % 16 * Tile<C, D>::STRIDE + lane / 16 * (16 / int(sizeof(C)));
    if constexpr (sizeof(C) == 1) {
        uint32_t bytes[4];
        ldmatrix_x4(bytes, row + k * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            widen(bytes[i], a[i / 2][i % 2], a[i / 2][i % 2 + 2]);
        }
    } else {
        ldmatrix_x4(a[0], row + k * 16);
        if (k + 1 < D / 16) {
            ldmatrix_x4(a[1], row + (k + 1) * 16);
        }
    }
}

// V's fragments of 16 dimensions, for two steps of 16 tokens.
template <typename M, typename C, int D>
__device__ __forceinline__ void load_values(uint32_t (&a)[2][4], const C* values, int tile, int step) {
    const int lane = lane_id();
    if constexpr (sizeof(C) == 1) {
        uint32_t bytes[4];
        ldmatrix_x4_trans(bytes, values + (step * 16 + lane) * Tile<C, D>::STRIDE + tile * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            widen_crossed(bytes[i], a[i / 2][i % 2 * 2], a[i / 2][i % 2 * 2 + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int token = (step + i) * 16 + lane / 16 * 8 + lane % 8;
            ldmatrix_x4_trans(a[i], values + token * Tile<C, D>::STRIDE + tile * 16 + lane / 8 % 2 * 8);
        }
    }
}

template <typename T, typename C, int D, int N> struct Decode {
    using M = Multiplied<T, C>;
    using Shared = DecodeShared<C, D, N>;
    static constexpr int TILES = D / 16;
    // Tiles of 16 dimensions of a warp: `warp`, `warp + DECODE_WARPS` and so on.
    static constexpr int MINE = (TILES + DECODE_WARPS - 1) / DECODE_WARPS;
    using Partial = Spread<MINE, N>;

    Sequence<T, C, D> sequence;
    unsigned char* shared;
    uint32_t count;

    __device__ __forceinline__ Decode(const PagedAttention& p, const Work& work, unsigned char* shared)
        : sequence(p, work, blockIdx.x), shared(shared),
          count(min(uint32_t(Shared::ROWS), sequence.num_rows - work.first_row)) {}

    __device__ __forceinline__ M* queries() const {
        return reinterpret_cast<M*>(shared + Shared::RING);
    }
    __device__ __forceinline__ M* probabilities() const {
        return reinterpret_cast<M*>(shared + Shared::RING + Shared::QUERIES);
    }
    __device__ __forceinline__ float* maxima() const {
        return reinterpret_cast<float*>(shared + Shared::RING + Shared::QUERIES + Shared::PROBABILITIES);
    }

    static __device__ __forceinline__ int column(int n, int e) {
        return n * 8 + 2 * (lane_id() % 4) + e;
    }

    static __device__ __forceinline__ void clear(Partial& partial) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                partial.maximum[n][i % 2] = NEGATIVE_INFINITY;
                partial.sum[n][i % 2] = 0.0f;
#pragma unroll
                for (int m = 0; m < MINE; ++m) {
                    partial.out[m][n][i] = 0.0f;
                }
            }
        }
    }

    // Adds a chunk's partial.
    static __device__ __forceinline__ void merge(Partial& all, const Partial& chunk) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const Weights weights = merge_weights(all.maximum[n][e], chunk.maximum[n][e]);
                all.maximum[n][e] = weights.maximum;
                all.sum[n][e] = merged(weights, all.sum[n][e], chunk.sum[n][e]);
#pragma unroll
                for (int m = 0; m < MINE; ++m) {
                    all.out[m][n][e] = merged(weights, all.out[m][n][e], chunk.out[m][n][e]);
                    all.out[m][n][e + 2] = merged(weights, all.out[m][n][e + 2], chunk.out[m][n][e + 2]);
                }
            }
        }
    }

    // Scores of the warp's page.
    __device__ __forceinline__ void score(float (&scores)[N][4], const uint32_t (&q)[TILES][N][2],
                                          const C* keys) const {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[n][i] = 0.0f;
            }
        }
        const C* page = keys + warp_id() * BLOCK_TOKENS * Tile<C, D>::STRIDE;
#pragma unroll
        for (int k = 0; k < TILES; k += 2) {
            uint32_t a[2][4];
            load_keys<M, C, D>(a, page, k);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (k + i < TILES) {
#pragma unroll
                    for (int n = 0; n < N; ++n) {
                        mma<M>(scores[n], a[i], q[k + i][n]);
                    }
                }
            }
        }
    }

    // Leaves out what a row does not see of the page that begins with `token`.
    __device__ __forceinline__ void mask(float (&scores)[N][4], uint32_t token) const {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const uint32_t row = sequence.work.first_row + column(n, e);
                const int last = sequence.last_seen(row);
                const int first = sequence.first_seen(row);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int at = int(token) + lane_id() / 4 + 8 * half;
                    if (at > last || at < first) {
                        scores[n][2 * half + e] = NEGATIVE_INFINITY;
                    }
                }
            }
        }
    }

    // Adds the tile's values, weighed, to the chunk's sums.
    __device__ __forceinline__ void accumulate_values(Partial& chunk, const C* values) const {
        const int lane = lane_id();
        const uint32_t one = pack<M>(1.0f, 1.0f);
        const uint32_t ones[4] = {one, one, one, one};
        float sums[N][4];
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[n][i] = chunk.sum[n][i % 2];
            }
        }
#pragma unroll
        for (int step = 0; step < TILE_PAGES; step += 2) {
            uint32_t b[N][2][2];
#pragma unroll
            for (int n = 0; n < N; ++n) {
                uint32_t words[4];
                ldmatrix_x4_trans(words, probabilities() + (n * TILE + step * 16 + lane) * 8);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    b[n][i / 2][i % 2] = words[i];
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    mma<M>(sums[n], ones, b[n][i]);
                }
            }
#pragma unroll
            for (int m = 0; m < MINE; ++m) {
                const int tile = warp_id() + m * DECODE_WARPS;
                if (TILES % DECODE_WARPS == 0 || tile < TILES) {
                    uint32_t a[2][4];
                    load_values<M, C, D>(a, values, tile, step);
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
#pragma unroll
                        for (int n = 0; n < N; ++n) {
                            mma<M>(chunk.out[m][n], a[i], b[n][i]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
            chunk.sum[n][0] = sums[n][0];
            chunk.sum[n][1] = sums[n][1];
        }
    }

    // Where the block's rows' partials of a chunk start.
    __device__ __forceinline__ float* partials(uint32_t chunk) const {
        const Work& work = sequence.work;
        const size_t of_head = size_t(sequence.kv_head) * work.num_partials + (chunk - work.first_partial);
        return sequence.p.partials + (work.partial + of_head * count) * (D + PARTIAL_HEAD);
    }

    __device__ __forceinline__ void store_partial(const Partial& partial, uint32_t chunk) const {
        float* to = partials(chunk);
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                if (uint32_t(column(n, e)) >= count) {
                    continue;
                }
                float* row = to + column(n, e) * (D + PARTIAL_HEAD);
                if (threadIdx.x < 4) {
                    row[0] = partial.maximum[n][e];
                    row[1] = partial.sum[n][e];
                }
#pragma unroll
                for (int m = 0; m < MINE; ++m) {
                    const int tile = warp_id() + m * DECODE_WARPS;
                    if (TILES % DECODE_WARPS == 0 || tile < TILES) {
                        row[PARTIAL_HEAD + dimension<C>(tile, 0)] = partial.out[m][n][e];
                        row[PARTIAL_HEAD + dimension<C>(tile, 1)] = partial.out[m][n][e + 2];
                    }
                }
            }
        }
    }

    // Writes finished rows; Q is not needed any more.
    __device__ __forceinline__ void store(const Partial& partial) const {
        T* rows = reinterpret_cast<T*>(queries());
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float factor = sequence.normalizer(partial.sum[n][e]);
                T* row = rows + column(n, e) * sequence.Q_STRIDE;
#pragma unroll
                for (int m = 0; m < MINE; ++m) {
                    const int tile = warp_id() + m * DECODE_WARPS;
                    if (TILES % DECODE_WARPS == 0 || tile < TILES) {
                        row[dimension<C>(tile, 0)] = from_float<T>(partial.out[m][n][e] * factor);
                        row[dimension<C>(tile, 1)] = from_float<T>(partial.out[m][n][e + 2] * factor);
                    }
                }
            }
        }
        __syncthreads();
        sequence.store_rows(rows, warp_id(), DECODE_WARPS, int(count));
    }

    // Adds up the partials of all chunks, those of a shared prefix among them, and writes the
    // rows; what each chunk weighs is found for many at once.
    __device__ __forceinline__ void merge_partials() const {
        const Work& work = sequence.work;
        constexpr int LEN = 4;
        constexpr int HELD = (Shared::ROWS * D / LEN + DECODE_THREADS - 1) / DECODE_THREADS;
        // [rows, MERGED_AT_ONCE]: of what is there, of the chunk, and the chunk's sum.
        Vector<float>* weights = reinterpret_cast<Vector<float>*>(shared);
        const float* all = partials(work.first_partial);
        float out[HELD][LEN];
        float sum[HELD];
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            sum[h] = 0.0f;
#pragma unroll
            for (int i = 0; i < LEN; ++i) {
                out[h][i] = 0.0f;
            }
        }
        float maximum[Shared::ROWS / DECODE_WARPS];
#pragma unroll
        for (int r = 0; r < Shared::ROWS / DECODE_WARPS; ++r) {
            maximum[r] = NEGATIVE_INFINITY;
        }
        for (uint32_t first = 0; first < work.num_partials; first += MERGED_AT_ONCE) {
            const uint32_t num = min(work.num_partials - first, uint32_t(MERGED_AT_ONCE));
            // Those of the chunks before have been read.
            __syncthreads();
#pragma unroll
            for (int r = 0; r < Shared::ROWS / DECODE_WARPS; ++r) {
                const uint32_t row = warp_id() + r * DECODE_WARPS;
                if (row >= count) {
                    continue;
                }
                for (uint32_t c = lane_id(); c < uint32_t(MERGED_AT_ONCE); c += WARP) {
                    const float* from = all + (size_t(first + c) * count + row) * (D + PARTIAL_HEAD);
                    const float own = c < num ? from[0] : NEGATIVE_INFINITY;
                    // The largest of this chunk and those before it.
                    float largest = fmaxf(own, maximum[r]);
#pragma unroll
                    for (int offset = 1; offset < WARP; offset *= 2) {
                        const int before = lane_id() - offset;
                        const float other = __shfl_sync(ALL_LANES, largest, max(before, 0));
                        largest = before >= 0 ? fmaxf(largest, other) : largest;
                    }
                    float before = __shfl_sync(ALL_LANES, largest, max(lane_id() - 1, 0));
                    before = lane_id() == 0 ? maximum[r] : before;
                    maximum[r] = __shfl_sync(ALL_LANES, largest, WARP - 1);
                    if (c < num) {
                        const Weights of = merge_weights(before, own);
                        weights[row * MERGED_AT_ONCE + c] = {{of.of_a, of.of_b, from[1], 0.0f}};
                    }
                }
            }
            __syncthreads();
#pragma unroll
            for (int h = 0; h < HELD; ++h) {
                const uint32_t at = (threadIdx.x + h * DECODE_THREADS) * LEN;
                if (at >= count * D) {
                    continue;
                }
                const float* from = all + (size_t(first) * count + at / D) * (D + PARTIAL_HEAD) +
                                    PARTIAL_HEAD + at % D;
#pragma unroll 8
                for (uint32_t c = 0; c < num; ++c) {
                    const Vector<float> x = *reinterpret_cast<const Vector<float>*>(
                        from + size_t(c) * count * (D + PARTIAL_HEAD));
                    const Vector<float> w = weights[at / D * MERGED_AT_ONCE + c];
                    const Weights of = {0.0f, w.x[0], w.x[1]};
                    sum[h] = merged(of, sum[h], w.x[2]);
#pragma unroll
                    for (int i = 0; i < LEN; ++i) {
                        out[h][i] = merged(of, out[h][i], x.x[i]);
                    }
                }
            }
        }
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            const uint32_t at = (threadIdx.x + h * DECODE_THREADS) * LEN;
            if (at < count * D) {
                const float factor = sequence.normalizer(sum[h]);
                const uint32_t words[2] = {pack<T>(out[h][0] * factor, out[h][1] * factor),
                                           pack<T>(out[h][2] * factor, out[h][3] * factor)};
                uint32_t* to = reinterpret_cast<uint32_t*>(sequence.out(work.first_row + at / D) + at % D);
                to[0] = words[0];
                to[1] = words[1];
            }
        }
    }

    // Whether this block is the last that is done with the rows, so that it sees all
    // that the others wrote.
    __device__ __forceinline__ bool is_last() const {
        const Work& work = sequence.work;
        SHARED(bool, last, 1);
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t* ticket = sequence.p.tickets + work.ticket + sequence.kv_head;
            __threadfence();
            last[0] = atomicAdd(ticket, 1u) + 1 == work.num_blocks;
            __threadfence();
            if (last[0]) {
                *ticket = 0;
            }
        }
        __syncthreads();
        return last[0];
    }

    __device__ __forceinline__ void run() const {
        const Work& work = sequence.work;
        const uint32_t last_row = work.first_row + count - 1;
        const uint32_t chunks_end = (work.first_chunk + work.num_chunks) * CHUNK;
        const uint32_t end = min(chunks_end, uint32_t(sequence.last_seen(last_row)) + 1);
        // Tiles before the first that is seen would add nothing.
        const uint32_t seen = uint32_t(sequence.first_seen(work.first_row)) / TILE * TILE;
        const uint32_t first = max(work.first_chunk * CHUNK, seen);
        // All rows see all of [plain_first, plain_end).
        const uint32_t plain_first = uint32_t(sequence.first_seen(last_row));
        const uint32_t plain_end = uint32_t(sequence.last_seen(work.first_row)) + 1;

        auto ring = sequence.template ring<DECODE_WARPS, Shared::SLOTS>(reinterpret_cast<C*>(shared),
                                                                        first, end);
        ring.start();
        stage_queries<T, C, D>(sequence, queries(), warp_id(), DECODE_WARPS, Shared::ROWS);
        __syncthreads();
        uint32_t q[TILES][N][2];
        float scale[N][2];
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int k = 0; k < TILES; ++k) {
                const M* from = queries() + (n * 8 + lane_id() / 4) * sequence.Q_STRIDE + k * 16 +
                                2 * (lane_id() % 4);
                q[k][n][0] = *reinterpret_cast<const uint32_t*>(from);
                q[k][n][1] = *reinterpret_cast<const uint32_t*>(from + 8);
            }
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                scale[n][e] = sequence.scale(queries() + column(n, e) * sequence.Q_STRIDE);
            }
        }
        const bool caps = sequence.p.soft_cap > 0.0f;

        Partial all;
        Partial chunk;
        clear(all);
        clear(chunk);
        for (uint32_t token = first; token < end; token += TILE) {
            const C* keys = ring.take();
            const uint32_t page = token + warp_id() * BLOCK_TOKENS;
            float scores[N][4];
            score(scores, q, keys);
            float factor[N][2];
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    factor[n][e] = caps ? sequence.p.soft_cap : scale[n][e];
                }
            }
            if (caps) {
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        scores[n][i] = tanhf(scores[n][i] * scale[n][i % 2]);
                    }
                }
            }
            if (token < plain_first || token + TILE > plain_end) {
                mask(scores, page);
            }
            float largest[N][2];
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float x = fmaxf(scores[n][e], scores[n][e + 2]);
#pragma unroll
                    for (int offset = 4; offset < WARP; offset *= 2) {
                        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
                    }
                    largest[n][e] = x;
                    if (lane_id() < 4) {
                        maxima()[warp_id() * Shared::ROWS + column(n, e)] = x;
                    }
                }
            }
            __syncthreads();
            float base[N][2];
            float correction[N][2];
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
#pragma unroll
                    for (int w = 0; w < DECODE_WARPS; ++w) {
                        largest[n][e] = fmaxf(largest[n][e], maxima()[w * Shared::ROWS + column(n, e)]);
                    }
                    const float maximum = fmaxf(chunk.maximum[n][e], largest[n][e] * factor[n][e]);
                    base[n][e] = maximum == NEGATIVE_INFINITY ? 0.0f : maximum;
                    correction[n][e] = power_of_two(chunk.maximum[n][e] - base[n][e]);
                    chunk.maximum[n][e] = maximum;
                    chunk.sum[n][e] *= correction[n][e];
                }
                uint32_t* to = reinterpret_cast<uint32_t*>(probabilities()) +
                               (n * TILE + warp_id() * BLOCK_TOKENS + lane_id() / 4) * 4 + lane_id() % 4;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float weight[2];
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        weight[e] = power_of_two(fmaf(scores[n][2 * half + e], factor[n][e], -base[n][e]));
                    }
                    to[half * 8 * 4] = pack<M>(weight[0], weight[1]);
                }
#pragma unroll
                for (int m = 0; m < MINE; ++m) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        chunk.out[m][n][i] *= correction[n][i % 2];
                    }
                }
            }
            const C* values = ring.take();
            accumulate_values(chunk, values);
            if ((token + TILE) % CHUNK == 0 || token + TILE >= end) {
                if (work.num_blocks == 0) {
                    merge(all, chunk);
                } else {
                    store_partial(chunk, token / CHUNK);
                }
                clear(chunk);
            }
        }
        copy_async_wait<0>();
        // Not before: blocks of what comes next would be between those of this kernel.
        let_next_start();
        if (work.num_blocks == 0) {
            __syncthreads();
            store(all);
        } else if (is_last()) {
            merge_partials();
        }
    }
};

template <typename T, typename C, int D, int N>
__device__ __forceinline__ void decode_attention(const PagedAttention& p) {
    DYNAMIC_SHARED(shared);
    const Work& work = p.work[blockIdx.y];
    // A recorded launch has a block for the most work that there can be.
    if (work.num_queries == 0) {
        return;
    }
    Decode<T, C, D, N>(p, work, shared).run();
}

// Blocks that a multiprocessor's registers are to hold; shared memory holds 3 of 128
// dimensions of two bytes.
template <int D> constexpr int RESIDENT = D > 128 ? 3 : 4;

#define ATTENTION(name, T, C, D)                                                                   \
    KERNEL_LAST(name##_d##D##_r8, PagedAttention, DECODE_THREADS, RESIDENT<D>) {                   \
        decode_attention<T, C, D, 1>(p);                                                           \
    }                                                                                              \
    KERNEL_LAST(name##_d##D##_r16, PagedAttention, DECODE_THREADS, RESIDENT<D> - 1) {              \
        decode_attention<T, C, D, 2>(p);                                                           \
    }

// Grid: [KV heads, work].
ATTENTION_OF_HEAD_DIMS(decode_attention_bf16, bf16, bf16)
ATTENTION_OF_HEAD_DIMS(decode_attention_f16, f16, f16)
ATTENTION_OF_HEAD_DIMS(decode_attention_bf16_e4m3, bf16, e4m3)
ATTENTION_OF_HEAD_DIMS(decode_attention_f16_e4m3, f16, e4m3)
