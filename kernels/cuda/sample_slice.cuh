// What a block finds in the slices of its run and leaves for the row's last block.
#pragma once

#include "sample_adjust.cuh"
#include "sample_weights.cuh"

// A row's first tokens, by whole bins, that its last block has for certain: of those that may
// be drawn, and of raw logits for log-probabilities.
constexpr uint32_t CANDIDATES = 192;
constexpr uint32_t LIKELIEST = 64;

constexpr float LOG2_E = 1.4426950408889634f;

using Candidates = List<CANDIDATES + 1, CANDIDATE_ROOM>;
using Likeliest = List<LIKELIEST + 1, LIKELIEST_ROOM>;

// A block's dynamic shared memory: the slices that come, later the last block's room; then
// rings of bins.
struct SampleShared {
    static constexpr uint32_t BYTES = STREAM_BYTES + (2 * LIST_BINS + WEIGHT_BINS) * 4;
    static_assert(BYTES == 81920, "what launches ask for");
    static_assert(ROOM * 8 <= STREAM_BYTES, "the last block's room takes the place of slices");

    unsigned char* start;

    __device__ __forceinline__ uint64_t* room() const { return reinterpret_cast<uint64_t*>(start); }
    __device__ __forceinline__ uint32_t* bins() const { return reinterpret_cast<uint32_t*>(start + STREAM_BYTES); }
    __device__ __forceinline__ uint32_t* list_bins(int list) const { return bins() + WEIGHT_BINS + list * LIST_BINS; }
};

// Largest of a, b; NaN if one is.
__device__ __forceinline__ float larger(float a, float b) { return max_or_nan(a, b); }

__device__ __forceinline__ float largest_of(const Logits& own) {
    float largest = own.x[0];
#pragma unroll
    for (int i = 1; i < PIECES * 4; ++i) {
        largest = larger(largest, own.x[i]);
    }
    return largest;
}

// What a look at a slice finds; complete in thread 0 only.
struct Look {
    Best best;
    // Of exp(logit - largest) with an exponent's factor.
    float sum;
};

// No bins of weights.
struct NoBins {
    __device__ __forceinline__ bool raise_top(float) { return false; }
    __device__ __forceinline__ void add(const Logits&) const {}
};

// Looks at a slice: finds its largest, sums with a factor that is not zero, lists and counts
// if it is to.
template <typename Listing, typename Bins>
__device__ __forceinline__ Look look_at(const Logits& own, uint32_t first, float factor, bool lists, Listing& list,
                                        bool counts, Bins& bins) {
    SHARED(float, maxima, SAMPLE_WARPS);
    SHARED(float, sums, SAMPLE_WARPS);
    SHARED(uint32_t, lowest, 1);
    const float mine = largest_of(own);
    const float of_warp = warp_reduce(mine, larger);
    if (lane_id() == 0) {
        maxima[warp_id()] = of_warp;
    }
    if (threadIdx.x == 0) {
        lowest[0] = 0xffffffffu;
    }
    __syncthreads();
    float largest = maxima[0];
#pragma unroll
    for (int warp = 1; warp < SAMPLE_WARPS; ++warp) {
        largest = larger(largest, maxima[warp]);
    }
    if (!is_finite(largest)) {
        // Nothing to draw, unless it is wrong. The next look must not overwrite what is read.
        __syncthreads();
        return {{largest == MINUS_INFINITY ? uint64_t(key_of(largest)) << 32 : Best::BAD}, 0.0f};
    }
    if (mine == largest) {
        int at = 0;
#pragma unroll
        for (int i = PIECES * 4 - 1; i > 0; --i) {
            at = own.x[i] == largest ? i : at;
        }
        at = own.x[0] == largest ? 0 : at;
        atomicMin(lowest, token_at(first, at));
    }
    bool is_raised = false;
    if (lists) {
        is_raised = list.raise_top(largest);
    }
    if (counts) {
        is_raised = bins.raise_top(largest) || is_raised;
    }
    if (is_raised) {
        __syncthreads();
    }
    if (factor != 0.0f) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PIECES * 4; ++i) {
            sum += power_of_two((own.x[i] - largest) * factor);
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) {
            sums[warp_id()] = sum;
        }
    }
    if (counts) {
        bins.add(own);
    }
    const bool is_listed = lists && list.count(mine);
    const uint32_t num_listed = __syncthreads_count(is_listed);
    Look look{{0}, 0.0f};
    if (threadIdx.x == 0) {
        look.best.word = uint64_t(key_of(largest)) << 32 | (0xffffffffu - lowest[0]);
        if (factor != 0.0f) {
            for (int warp = 0; warp < SAMPLE_WARPS; ++warp) {
                look.sum += sums[warp];
            }
        }
    }
    if (lists) {
        list.add(own, first, mine, num_listed);
    }
    return look;
}

// Leaves this block's slices of a row described.
__device__ __forceinline__ void scan_run(const Sampling& p, const SampleRow& request, const Row& row,
                                         const RowWork& work, const Stream& stream, const SampleShared& shared) {
    SHARED(uint32_t, taken, 6);
    SHARED(Counted, row_counted, 1);
    if (threadIdx.x < 6) {
        taken[threadIdx.x] = 0;
    }
    // What is asked, in one register.
    constexpr uint32_t HAS_LISTS = 1, LISTS_DRAWN = 2, HAS_BINS = 4, LISTS_RAW = 8, LOOKS_RAW = 16, LOOKS_DRAWN = 32,
                       SUMS_RAW = 64, SUMS_WEIGHTS = 128;
    uint32_t asked = 0;
    if (request.num_logprobs >= 0) {
        asked |= LOOKS_RAW | SUMS_RAW | (request.num_logprobs > 0 ? LISTS_RAW : 0);
    }
    if (request.is_adjusted()) {
        asked |= LOOKS_RAW | LOOKS_DRAWN | (request.has_lists() ? HAS_LISTS : 0);
    }
    if (request.is_greedy()) {
        asked |= LOOKS_RAW;
    } else {
        // One look is enough for both where the raw row is drawn from.
        const bool is_filtered = request.is_filtered(p.vocab_size);
        const bool has_bins = is_filtered && request.needs_bins(p.vocab_size);
        asked |= LOOKS_DRAWN | (request.needs_list(p.vocab_size) ? LISTS_DRAWN : 0) | (has_bins ? HAS_BINS : 0);
        if (!is_filtered || request.is_drawn_by_rejection(p.vocab_size)) {
            asked |= SUMS_WEIGHTS;
        }
        if (threadIdx.x == 0) {
            row_counted[0] = counted(request, p.vocab_size);
        }
    }
    Likeliest likeliest{work.likeliest + blockIdx.x * LIKELIEST_ROOM, shared.list_bins(0), &taken[0]};
    Candidates candidates{work.candidates + blockIdx.x * CANDIDATE_ROOM, shared.list_bins(1), &taken[3]};
    WeightBins bins{shared.bins(), row_counted};
    NoBins no_bins;
    for (uint32_t slice = stream.first; slice < stream.end; ++slice) {
        const uint32_t first = slice * SLICE;
        Logits own = stream.take(slice);
        SliceResult& result = work.slices[slice];
        if (asked & LOOKS_RAW) {
            const Look look = look_at(own, first, asked & SUMS_RAW ? LOG2_E : 0.0f, (asked & LISTS_RAW) != 0, likeliest, false, no_bins);
            if (threadIdx.x == 0) {
                result.raw = result.adjusted = look.best;
                result.sum = look.sum;
            }
        }
        if (asked & LOOKS_DRAWN) {
            if (asked & HAS_LISTS) {
                const Adjustment adjustment{p, request, row, first, min(first + SLICE, row.vocab_size)};
                adjustment.save();
                adjustment.apply();
                own = load_slice(row, first);
            } else if (row.allowed != nullptr) {
                leave_out(row, first, own);
            }
            const float factor = asked & SUMS_WEIGHTS ? request.scale() * LOG2_E : 0.0f;
            const Look look = look_at(own, first, factor, (asked & LISTS_DRAWN) != 0, candidates,
                                      (asked & HAS_BINS) != 0, bins);
            if (threadIdx.x == 0) {
                result.adjusted = look.best;
                result.weight = look.sum;
                if (!(asked & LOOKS_RAW)) {
                    result.raw = look.best;
                }
            }
        }
    }
    if (asked & HAS_BINS) {
        __syncthreads();
        Vector<uint32_t>* to = reinterpret_cast<Vector<uint32_t>*>(work.bins + blockIdx.x * WEIGHT_BINS);
        to[threadIdx.x] = reinterpret_cast<const Vector<uint32_t>*>(bins.sums)[threadIdx.x];
    }
    if (threadIdx.x == 0) {
        work.runs[blockIdx.x] = {{candidates.from, candidates.len()}, {likeliest.from, likeliest.len()}, bins.top, 0};
    }
}
