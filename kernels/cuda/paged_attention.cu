// Causal attention over the paged cache, ragged: prefill chunks and decodes of one
// batch in one launch.
//
// A warp has 16 packed rows: the Q heads of one KV head (GQA) of one or more query
// tokens. The context is walked in chunks of CHUNK tokens; a chunk's partial result
// (maximum, sum, output) starts afresh, and partials are merged in the order of the
// chunks, whoever computed them. So a row's result depends on its own context only:
// not on its neighbours, not on how the prompt was cut up, not on how many blocks
// shared a context out. Inside a chunk it is FlashAttention-2's online softmax
// (Dao, 2023) over tiles of TILE tokens, products on tensor cores.
//
// Two kinds of work: a block of SPLIT work gives each warp a chunk of the same rows
// (decode), and the block that finishes last merges; a block of ROWS work gives each
// warp 16 rows of one prompt, and its warps share the tiles of K and V.
#include "kv_tiles.cuh"

enum WorkKind : uint32_t { SPLIT = 0, ROWS = 1 };

// What one block does.
struct Work {
    uint32_t kind;
    uint32_t sequence;
    // The first packed row: (row in its sequence) * group + head in its group.
    uint32_t first_row;
    // SPLIT: the first chunk, of those that are seen, and how many, at most WARPS.
    uint32_t first_chunk;
    uint32_t num_chunks;
    // SPLIT: where the sequence's partials start, and its ticket; both for KV head 0.
    uint32_t partial;
    uint32_t ticket;
    // SPLIT: blocks that share the rows, by KV head.
    uint32_t num_blocks;
};

struct PagedAttention {
    // [num_work]
    const Work* work;
    // [tokens, q_stride]: Q comes first in a row.
    const void* q;
    // The layer's cache.
    const void* cache;
    // [tokens, num_kv_heads * group * head_dim]
    void* out;
    // [num_seqs + 1]
    const uint32_t* cu_seqlens_q;
    // [num_seqs]
    const uint32_t* context_lens;
    // Of all sequences, end to end.
    const uint32_t* block_tables;
    // [num_seqs + 1]
    const uint32_t* cu_blocks;
    // [partials, 16, head_dim + 2], f32: outputs, then maximum and sum.
    float* partials;
    // [tickets], zero before and after.
    uint32_t* tickets;
    uint32_t q_stride;
    uint32_t num_kv_heads;
    // Q heads of a KV head.
    uint32_t group;
    // Positions a query sees, its own included; 0: all.
    uint32_t window;
    // Factor on q . k; with an e4m3 cache, of K's scale too.
    float scale;
    // Scores become cap * tanh(score / cap); 0: they do not.
    float soft_cap;
    // Factor on outputs: V's scale.
    float v_scale;
};

constexpr int ATTENTION_THREADS = 256;
constexpr int WARPS = ATTENTION_THREADS / WARP;
constexpr int ROWS_OF_WARP = 16;
constexpr uint32_t CHUNK = 256;

constexpr float LOG2E = 1.4426950408889634f;
#define NEGATIVE_INFINITY (-__builtin_inff())

// A warp's 16 rows, as its lanes hold them: lane l has rows l / 4 and l / 4 + 8.
struct Rows {
    // Each row's position; rows that do not exist see nothing.
    int64_t position[2];
    // The first position that it sees.
    int64_t first[2];
};

// Maximum, sum and outputs of 16 rows; an output tile of 8 dimensions is four
// floats: dimensions 2 * (l % 4) + {0, 1} of both rows.
template <int D> struct Partial {
    float maximum[2];
    float sum[2];
    float out[D / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            maximum[r] = NEGATIVE_INFINITY;
            sum[r] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                out[n][i] = 0.0f;
            }
        }
    }
};

// 2^x; 0 for -infinity, exactly 1 for 0.
__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }

// The factors by which a partial of maximum `a` and one of maximum `b` are summed
// under their common maximum. A partial that saw nothing leaves the other's bits.
struct Weights {
    float maximum;
    float of_a;
    float of_b;
};

__device__ __forceinline__ Weights merge_weights(float a, float b) {
    const float maximum = fmaxf(a, b);
    const float base = maximum == NEGATIVE_INFINITY ? 0.0f : maximum;
    return {maximum, power_of_two(a - base), power_of_two(b - base)};
}

__device__ __forceinline__ float merged(const Weights& weights, float a, float b) {
    return fmaf(b, weights.of_b, a * weights.of_a);
}

// Adds one tile's tokens to a chunk's partial.
template <typename T, int D>
__device__ __forceinline__ void score_tile(const uint32_t (&q)[D / 16][4], const T* keys,
                                           const Rows& rows, uint32_t first_token,
                                           const PagedAttention& p, Partial<D>& partial,
                                           uint32_t (&probabilities)[Shape<D>::TILE / 16][4]) {
    constexpr int TILE = Shape<D>::TILE;
    constexpr int STRIDE = Shape<D>::template STRIDE<T>;
    const int lane = lane_id();
    float scores[TILE / 8][4];
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            scores[n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int n = 0; n < TILE / 16; ++n) {
            // Tokens 0-7 and 8-15 of the 16, dimensions 0-7 and 8-15 of each.
            const int token = n * 16 + (lane / 16) * 8 + lane % 8;
            const int dim = k * 16 + (lane / 8 % 2) * 8;
            uint32_t b[4];
            ldmatrix_x4(b, keys + token * STRIDE + dim);
            const uint32_t low[2] = {b[0], b[1]};
            const uint32_t high[2] = {b[2], b[3]};
            mma<T>(scores[2 * n], q[k], low);
            mma<T>(scores[2 * n + 1], q[k], high);
        }
    }
    float maximum[2] = {partial.maximum[0], partial.maximum[1]};
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = i / 2;
            const int64_t token = int64_t(first_token) + n * 8 + (lane % 4) * 2 + i % 2;
            float score = scores[n][i] * p.scale;
            if (p.soft_cap > 0.0f) {
                score = p.soft_cap * tanhf(score / p.soft_cap);
            }
            const bool seen = token <= rows.position[r] && token >= rows.first[r];
            scores[n][i] = seen ? score * LOG2E : NEGATIVE_INFINITY;
            maximum[r] = fmaxf(maximum[r], scores[n][i]);
        }
    }
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        maximum[r] = fmaxf(maximum[r], __shfl_xor_sync(ALL_LANES, maximum[r], 1));
        maximum[r] = fmaxf(maximum[r], __shfl_xor_sync(ALL_LANES, maximum[r], 2));
        const float base = maximum[r] == NEGATIVE_INFINITY ? 0.0f : maximum[r];
        correction[r] = power_of_two(partial.maximum[r] - base);
        partial.maximum[r] = maximum[r];
        partial.sum[r] *= correction[r];
        maximum[r] = base;
    }
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            scores[n][i] = power_of_two(scores[n][i] - maximum[i / 2]);
            partial.sum[i / 2] += scores[n][i];
        }
    }
    // The maximum seldom grows, and multiplying with 1 changes nothing.
    if (__any_sync(ALL_LANES, correction[0] != 1.0f || correction[1] != 1.0f)) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                partial.out[n][i] *= correction[i / 2];
            }
        }
    }
#pragma unroll
    for (int n = 0; n < TILE / 16; ++n) {
        probabilities[n][0] = pack<T>(scores[2 * n][0], scores[2 * n][1]);
        probabilities[n][1] = pack<T>(scores[2 * n][2], scores[2 * n][3]);
        probabilities[n][2] = pack<T>(scores[2 * n + 1][0], scores[2 * n + 1][1]);
        probabilities[n][3] = pack<T>(scores[2 * n + 1][2], scores[2 * n + 1][3]);
    }
}

template <typename T, int D>
__device__ __forceinline__ void weigh_tile(const uint32_t (&probabilities)[Shape<D>::TILE / 16][4],
                                           const T* values, Partial<D>& partial) {
    constexpr int STRIDE = Shape<D>::template STRIDE<T>;
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < Shape<D>::TILE / 16; ++k) {
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            const int token = k * 16 + (lane / 8 % 2) * 8 + lane % 8;
            const int dim = n * 16 + (lane / 16) * 8;
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + token * STRIDE + dim);
            const uint32_t low[2] = {b[0], b[1]};
            const uint32_t high[2] = {b[2], b[3]};
            mma<T>(partial.out[2 * n], probabilities[k], low);
            mma<T>(partial.out[2 * n + 1], probabilities[k], high);
        }
    }
}

// Sums that four lanes hold parts of.
template <int D> __device__ __forceinline__ void finish_chunk(Partial<D>& partial) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        partial.sum[r] += __shfl_xor_sync(ALL_LANES, partial.sum[r], 1);
        partial.sum[r] += __shfl_xor_sync(ALL_LANES, partial.sum[r], 2);
    }
}

template <int D>
__device__ __forceinline__ void merge_chunk(Partial<D>& all, const Partial<D>& chunk) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const Weights weights = merge_weights(all.maximum[r], chunk.maximum[r]);
        all.maximum[r] = weights.maximum;
        all.sum[r] = merged(weights, all.sum[r], chunk.sum[r]);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& out = all.out[n][2 * r + e];
                out = merged(weights, out, chunk.out[n][2 * r + e]);
            }
        }
    }
}

// What a block's work refers to.
template <typename T, int D> struct Sequence {
    uint32_t first_token;
    // Packed rows.
    uint32_t num_rows;
    uint32_t context_len;
    uint32_t num_queries;
    Context context;

    __device__ __forceinline__ Sequence(const PagedAttention& p, const Work& work) {
        first_token = p.cu_seqlens_q[work.sequence];
        num_queries = p.cu_seqlens_q[work.sequence + 1] - first_token;
        num_rows = num_queries * p.group;
        context_len = p.context_lens[work.sequence];
        context = {p.block_tables + p.cu_blocks[work.sequence], p.num_kv_heads, blockIdx.y,
                   context_len};
    }

    __device__ __forceinline__ int64_t position(const PagedAttention& p, uint32_t row) const {
        return int64_t(context_len) - num_queries + row / p.group;
    }

    __device__ __forceinline__ Rows rows(const PagedAttention& p, uint32_t first_row) const {
        Rows rows;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t row = first_row + lane_id() / 4 + 8 * r;
            rows.position[r] = row < num_rows ? position(p, row) : -1;
            rows.first[r] = p.window > 0 ? rows.position[r] + 1 - int64_t(p.window) : 0;
        }
        return rows;
    }

    // The first chunk that any row from `first_row` on sees.
    __device__ __forceinline__ uint32_t first_chunk(const PagedAttention& p, uint32_t first_row) const {
        const int64_t seen = position(p, first_row) + 1 - int64_t(p.window);
        return p.window > 0 && seen > 0 ? uint32_t(seen) / CHUNK : 0;
    }

    // Q's fragments of 16 rows from `first_row` on.
    __device__ __forceinline__ void queries(const PagedAttention& p, uint32_t first_row,
                                            uint32_t (&q)[D / 16][4]) const {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t row = first_row + lane_id() / 4 + 8 * (i % 2);
                const uint32_t dim = k * 16 + 8 * (i / 2) + 2 * (lane_id() % 4);
                q[k][i] = 0;
                if (row < num_rows) {
                    const size_t token = first_token + row / p.group;
                    const size_t head = size_t(blockIdx.y) * p.group + row % p.group;
                    const T* x = static_cast<const T*>(p.q) + token * p.q_stride + head * D + dim;
                    memcpy(&q[k][i], x, sizeof(uint32_t));
                }
            }
        }
    }

    __device__ __forceinline__ T* out(const PagedAttention& p, uint32_t row) const {
        const size_t token = first_token + row / p.group;
        const size_t heads = size_t(p.num_kv_heads) * p.group;
        const size_t head = size_t(blockIdx.y) * p.group + row % p.group;
        return static_cast<T*>(p.out) + (token * heads + head) * D;
    }

    // Writes 16 finished rows.
    __device__ __forceinline__ void store(const PagedAttention& p, uint32_t first_row,
                                          const Partial<D>& partial) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t row = first_row + lane_id() / 4 + 8 * r;
            if (row >= num_rows) {
                continue;
            }
            const float factor = p.v_scale / partial.sum[r];
            T* to = out(p, row);
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const uint32_t pair = pack<T>(partial.out[n][2 * r] * factor,
                                              partial.out[n][2 * r + 1] * factor);
                memcpy(to + n * 8 + 2 * (lane_id() % 4), &pair, sizeof(pair));
            }
        }
    }
};

// Walks the tiles of [first, end) and adds each to `chunk`; `first` starts a chunk.
// At each chunk's end `each` gets its partial.
template <typename T, typename C, int D, typename Sync, typename Each>
__device__ __forceinline__ void walk(const PagedAttention& p, Ring<T, C, D, Sync>& ring,
                                     const uint32_t (&q)[D / 16][4], const Rows& rows, Each each) {
    constexpr int TILE = Shape<D>::TILE;
    for (int i = 0; i < RING; ++i) {
        ring.ask();
    }
    Partial<D> chunk;
    chunk.clear();
    for (uint32_t token = ring.first; token < ring.end; token += TILE) {
        uint32_t probabilities[TILE / 16][4];
        score_tile<T, D>(q, ring.take(), rows, token, p, chunk, probabilities);
        ring.release();
        weigh_tile<T, D>(probabilities, ring.take(), chunk);
        ring.release();
        if ((token + TILE) % CHUNK == 0 || token + TILE >= ring.end) {
            finish_chunk(chunk);
            each(chunk);
            chunk.clear();
        }
    }
    copy_async_wait<0>();
}

template <typename T, typename C, int D>
__device__ __forceinline__ void split(const PagedAttention& p, const Work& work, unsigned char* shared) {
    const Sequence<T, D> sequence(p, work);
    const uint32_t begin = sequence.first_chunk(p, work.first_row);
    const uint32_t chunks = (sequence.context_len + CHUNK - 1) / CHUNK - begin;
    // Counted from the first that is seen.
    const uint32_t chunk = work.first_chunk + warp_id();
    const bool works = uint32_t(warp_id()) < work.num_chunks && chunk < chunks;
    const uint32_t slot = work.partial + blockIdx.y * chunks;
    if (works) {
        uint32_t q[D / 16][4];
        sequence.queries(p, work.first_row, q);
        const Rows rows = sequence.rows(p, work.first_row);
        constexpr size_t SLOTS = size_t(RING) * Shape<D>::template SLOT<C> * sizeof(C);
        constexpr size_t WIDENED = Shape<D>::template SLOT<T> * sizeof(T);
        constexpr size_t BYTES = SLOTS + (sizeof(C) == sizeof(T) ? 0 : WIDENED);
        unsigned char* own = shared + warp_id() * BYTES;
        const uint32_t first = (begin + chunk) * CHUNK;
        const uint32_t end = min(first + CHUNK, sequence.context_len);
        Ring<T, C, D, SyncWarp> ring{reinterpret_cast<C*>(own), reinterpret_cast<T*>(own + SLOTS),
                                     static_cast<const C*>(p.cache), sequence.context, first, end,
                                     lane_id(), WARP, SyncWarp{}};
        walk<T, C, D>(p, ring, q, rows, [&](const Partial<D>& partial) {
            if (chunks == 1) {
                sequence.store(p, work.first_row, partial);
                return;
            }
            float* to = p.partials + size_t(slot + chunk) * ROWS_OF_WARP * (D + 2);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float* row = to + (lane_id() / 4 + 8 * r) * (D + 2);
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    row[n * 8 + 2 * (lane_id() % 4)] = partial.out[n][2 * r];
                    row[n * 8 + 2 * (lane_id() % 4) + 1] = partial.out[n][2 * r + 1];
                }
                if (lane_id() % 4 == 0) {
                    row[D] = partial.maximum[r];
                    row[D + 1] = partial.sum[r];
                }
            }
        });
    }
    if (chunks == 1) {
        return;
    }
    SHARED(bool, last, 1);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* ticket = p.tickets + work.ticket + blockIdx.y;
        last[0] = atomicAdd(ticket, 1u) + 1 == work.num_blocks;
        if (last[0]) {
            *ticket = 0;
        }
    }
    __syncthreads();
    if (!last[0]) {
        return;
    }
    __threadfence();
    for (int i = threadIdx.x; i < ROWS_OF_WARP * D; i += ATTENTION_THREADS) {
        const uint32_t row = work.first_row + i / D;
        if (row >= sequence.num_rows) {
            break;
        }
        float maximum = NEGATIVE_INFINITY;
        float sum = 0.0f;
        float out = 0.0f;
        for (uint32_t c = 0; c < chunks; ++c) {
            const float* from = p.partials + (size_t(slot + c) * ROWS_OF_WARP + i / D) * (D + 2);
            const Weights weights = merge_weights(maximum, from[D]);
            maximum = weights.maximum;
            sum = merged(weights, sum, from[D + 1]);
            out = merged(weights, out, from[i % D]);
        }
        sequence.out(p, row)[i % D] = from_float<T>(out * (p.v_scale / sum));
    }
}

template <typename T, typename C, int D>
__device__ __forceinline__ void rows_of_prompt(const PagedAttention& p, const Work& work,
                                               unsigned char* shared) {
    const Sequence<T, D> sequence(p, work);
    const uint32_t first_row = work.first_row + warp_id() * ROWS_OF_WARP;
    uint32_t q[D / 16][4];
    sequence.queries(p, first_row, q);
    const Rows rows = sequence.rows(p, first_row);
    const uint32_t last_row = min(work.first_row + WARPS * ROWS_OF_WARP, sequence.num_rows) - 1;
    const uint32_t end = uint32_t(sequence.position(p, last_row)) + 1;
    const uint32_t first = sequence.first_chunk(p, work.first_row) * CHUNK;
    constexpr size_t SLOTS = size_t(RING) * Shape<D>::template SLOT<C> * sizeof(C);
    Ring<T, C, D, SyncBlock> ring{reinterpret_cast<C*>(shared), reinterpret_cast<T*>(shared + SLOTS),
                                  static_cast<const C*>(p.cache), sequence.context, first, end,
                                  int(threadIdx.x), ATTENTION_THREADS, SyncBlock{}};
    Partial<D> all;
    all.clear();
    walk<T, C, D>(p, ring, q, rows, [&](const Partial<D>& chunk) { merge_chunk(all, chunk); });
    sequence.store(p, first_row, all);
}

template <typename T, typename C, int D> __device__ __forceinline__ void attend(const PagedAttention& p) {
    DYNAMIC_SHARED(shared);
    const Work work = p.work[blockIdx.x];
    if (work.kind == SPLIT) {
        split<T, C, D>(p, work, shared);
    } else {
        rows_of_prompt<T, C, D>(p, work, shared);
    }
}

#define ATTENTION(name, T, C)                                                                     \
    KERNEL(name##_d64, PagedAttention, ATTENTION_THREADS) { attend<T, C, 64>(p); }                \
    KERNEL(name##_d80, PagedAttention, ATTENTION_THREADS) { attend<T, C, 80>(p); }                \
    KERNEL(name##_d96, PagedAttention, ATTENTION_THREADS) { attend<T, C, 96>(p); }                \
    KERNEL(name##_d128, PagedAttention, ATTENTION_THREADS) { attend<T, C, 128>(p); }              \
    KERNEL(name##_d256, PagedAttention, ATTENTION_THREADS) { attend<T, C, 256>(p); }

// Grid: [work, KV heads].
ATTENTION(paged_attention_bf16, bf16, bf16)
ATTENTION(paged_attention_f16, f16, f16)
ATTENTION(paged_attention_bf16_e4m3, bf16, e4m3)
ATTENTION(paged_attention_f16_e4m3, f16, e4m3)
