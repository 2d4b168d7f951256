// Attention of decodes over a prefix that their sequences share: its pages are read once for all
// of them (Hydragen: Juravsky et al., 2024; cascade inference of FlashInfer: Ye et al., 2024).
//
// The rows of a block are of several sequences; all of them see all of its chunks. Results are
// partial ones, laid where `decode_attention.cu` adds each sequence's up in the order of chunks:
// so a row's bits are those that it has without its neighbours. The chunks of a block that begins
// the prefix are added up here, in that order, and are one partial result.
#include "prefill_warps.cuh"

// A sequence that shares the prefix, with one query.
struct Sharer {
    // Its row in the batch.
    uint32_t query;
    // Where its partials begin for KV head 0, and how many there are of a KV head's chunks: those
    // of the prefix first.
    uint32_t partial;
    uint32_t num_partials;
    uint32_t padding;
};

struct PrefixAttention {
    const Sharer* sharers;
    // Not causal, without a window: `first_query` and `num_queries` of its work are of `sharers`,
    // `context_len` is the prefix's, in whole chunks, `blocks` the table of one of them.
    PagedAttention attention;
};

// What a block's work refers to: as one sequence's, but that rows are those of sharers.
template <typename T, typename C, int D> struct Sharing : Sequence<T, C, D> {
    const Sharer* sharers;

    __device__ __forceinline__ Sharing(const PrefixAttention& p, const Work& work)
        : Sequence<T, C, D>(p.attention, work, blockIdx.x), sharers(p.sharers + work.first_query) {}

    __device__ __forceinline__ const Sharer& sharer(uint32_t row) const { return sharers[row / this->p.group]; }

    __device__ __forceinline__ const T* query(uint32_t row) const { return this->query_in(sharer(row).query, row); }

    // Where a row's partial result goes: that of a KV head's chunks of this index.
    __device__ __forceinline__ float* partial(uint32_t row, uint32_t index) const {
        const uint32_t group = this->p.group;
        const Sharer& own = sharer(row);
        const size_t at = size_t(this->kv_head) * own.num_partials + index;
        return this->p.partials + (own.partial + at * group + row % group) * (D + PARTIAL_HEAD);
    }
};

template <typename T, typename C, int D> __device__ __forceinline__ void prefix_attention(const PrefixAttention& p) {
    using Warp = PrefillWarp<T, C, D>;
    using Shared = PrefillShared<C, D>;
    DYNAMIC_SHARED(shared);
    auto* const queries = reinterpret_cast<typename Warp::M*>(shared + Shared::RING);
    const Work& work = p.attention.work[blockIdx.y];
    const Sharing<T, C, D> sequence(p, work);
    const uint32_t first = work.first_chunk * CHUNK;
    const uint32_t end = first + work.num_chunks * CHUNK;
    auto tiles = sequence.template tiles<PREFILL_WARPS>(reinterpret_cast<C*>(shared), first, end);
    tiles.start();
    stage_queries<T, C, D>(sequence, queries, warp_id(), PREFILL_WARPS, Shared::ROWS);

    const Warp warp{sequence};
    const auto store = [&](const Partial<Warp::OUT>& partial, uint32_t index) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t row = work.first_row + uint32_t(warp.own + lane_id() / 4 + 8 * r);
            if (row < sequence.num_rows) {
                float* to = sequence.partial(row, index);
                store_row<C>(partial, r, warp.first_dim == 0, to, to + PARTIAL_HEAD + warp.first_dim);
            }
        }
    };
    // A chunk's own result is not changed by being added to nothing.
    const uint32_t added_up = work.first_chunk == 0 ? end : first;
    Partial<Warp::OUT> all;
    all.clear();
    warp.walk(queries, tiles, first, end, [&](const Partial<Warp::OUT>& chunk, uint32_t token) {
        merge_chunk(all, chunk);
        if (token + TILE >= added_up) {
            store(all, token / CHUNK - work.first_partial);
            all.clear();
        }
    });
}

#define ATTENTION(name, T, C, D)                                                                   \
    KERNEL(name##_d##D, PrefixAttention, PREFILL_THREADS) { prefix_attention<T, C, D>(p); }

// Grid: [KV heads, work].
ATTENTION_OF_HEAD_DIMS(prefix_attention_bf16, bf16, bf16)
ATTENTION_OF_HEAD_DIMS(prefix_attention_f16, f16, f16)
ATTENTION_OF_HEAD_DIMS(prefix_attention_bf16_e4m3, bf16, e4m3)
ATTENTION_OF_HEAD_DIMS(prefix_attention_f16_e4m3, f16, e4m3)
