// Attention of prompts over the paged cache. `attention.cuh` says in what order
// things are added up, `prefill_warps.cuh` how a block's warps share its rows.
#include "prefill_warps.cuh"

template <typename T, typename C, int D> __device__ __forceinline__ void prefill_attention(const PagedAttention& p) {
    using Warp = PrefillWarp<T, C, D>;
    using Shared = PrefillShared<C, D>;
    DYNAMIC_SHARED(shared);
    auto* const queries = reinterpret_cast<typename Warp::M*>(shared + Shared::RING);
    const Work& work = p.work[blockIdx.y];
    const Sequence<T, C, D> sequence(p, work, blockIdx.x);
    const int count = int(min(uint32_t(Shared::ROWS), sequence.num_rows - work.first_row));
    const uint32_t end = uint32_t(sequence.last_seen(work.first_row + count - 1)) + 1;
    const uint32_t first = uint32_t(sequence.first_seen(work.first_row)) / TILE * TILE;
    auto tiles = sequence.template tiles<PREFILL_WARPS>(reinterpret_cast<C*>(shared), first, end);
    tiles.start();
    stage_queries<T, C, D>(sequence, queries, warp_id(), PREFILL_WARPS, Shared::ROWS);

    const Warp warp{sequence};
    Partial<Warp::OUT> all;
    all.clear();
    warp.walk(queries, tiles, first, end,
              [&](const Partial<Warp::OUT>& chunk, uint32_t) { merge_chunk(all, chunk); });
    // Q has been read by all; outputs take its place.
    __syncthreads();
    T* const outputs = reinterpret_cast<T*>(queries);
    stage_outputs<Warp::OUT>(sequence, all, outputs, warp.own, warp.first_dim);
    __syncthreads();
    sequence.store_rows(outputs, warp_id(), PREFILL_WARPS, count);
}

#define ATTENTION(name, T, C, D)                                                                   \
    KERNEL(name##_d##D, PagedAttention, PREFILL_THREADS) { prefill_attention<T, C, D>(p); }

// Grid: [KV heads, work].
ATTENTION_OF_HEAD_DIMS(prefill_attention_bf16, bf16, bf16)
ATTENTION_OF_HEAD_DIMS(prefill_attention_f16, f16, f16)
ATTENTION_OF_HEAD_DIMS(prefill_attention_bf16_e4m3, bf16, e4m3)
ATTENTION_OF_HEAD_DIMS(prefill_attention_f16_e4m3, f16, e4m3)
