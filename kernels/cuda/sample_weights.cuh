// Where in the order of a row's tokens their weights reach a sum: counted by bins.
//
// A logit in steps, 128 to a bin, is a fused multiply-add, whose sum has the step as its
// lowest bits: the bin is some of them, and the weight within the bin, exp(steps / 8192) to
// first order, the others. A bin spans 1/64 in the exponent, so that sums are right to
// 2 in 10,000: enough to say which bins the border is in. Sums are integers, and a step does
// not depend on what it is counted from.
#pragma once

#include "sample_list.cuh"

constexpr int STEP_BITS = 7;
// Steps of a ring.
constexpr float RING_STEPS = float(WEIGHT_BINS << STEP_BITS);
// A float's bits above 2^23, where they count by ones, with room on both sides.
constexpr float STEPS_ORIGIN = 12582912.0f;
constexpr uint32_t STEPS_ORIGIN_BITS = 0x4b400000u;
// A bin's first weight, beside which a step more is one more.
constexpr uint32_t BIN_WEIGHT = 8192;
// Beyond so much below the largest a weight in fixed point is zero.
constexpr float NO_WEIGHT = 29.0f;
// How far sums of a bin's weights may be off: rounding to steps, first order, float.
constexpr float SUMS_ERROR = 2e-4f;

// How a row's tokens are counted.
struct Counted {
    // Of a logit's unit.
    float steps;
    // Logits so much below the largest do not matter to where sums reach their target.
    float depth;
    // Or their weights.
    bool counts_tokens;
};

__device__ __forceinline__ Counted counted(const SampleRow& request, uint32_t vocab_size) {
    static_assert(NO_WEIGHT * 64.0f < WEIGHT_BINS - 8, "the ring is deep enough");
    const bool counts_tokens = request.has_top_k(vocab_size);
    // All tokens with less than a share of 1 - top_p of the largest's weight together have
    // less than that of the sum.
    const float spare = fmaxf(1.0f - request.top_p, 1e-9f);
    const float depth = counts_tokens ? NO_WEIGHT : fminf(logf(float(vocab_size) / spare) + 0.1f, NO_WEIGHT);
    return {request.scale() * float(64 << STEP_BITS), depth / request.scale(), counts_tokens};
}

struct WeightBins {
    // Shared, [WEIGHT_BINS]: a ring that goes down from the largest logit's bin.
    uint32_t* sums;
    // Shared: how a row's logits are counted.
    const Counted* row;
    // The same in every thread.
    float largest = LOWEST_LOGIT;
    int32_t top = LOWEST_BIN;

    // Beyond that steps are no integers any more; such rows are searched.
    __device__ __forceinline__ bool is_usable() const { return fabsf(largest * row->steps) <= 6e10f; }

    // What steps are counted from, a multiple of the ring.
    __device__ __forceinline__ float origin() const {
        return floorf(largest * row->steps * (1.0f / RING_STEPS)) * RING_STEPS;
    }

    // The float whose lowest bits are a logit's steps above the origin.
    __device__ __forceinline__ uint32_t steps_bits(float logit, float from) const {
        return __float_as_uint(fmaf(logit, row->steps, STEPS_ORIGIN - from));
    }

    __device__ __forceinline__ int32_t bin(float logit, float from) const {
        const int32_t above = int32_t(steps_bits(logit, from) - STEPS_ORIGIN_BITS);
        return int32_t(from * (1.0f / (1 << STEP_BITS))) + (above >> STEP_BITS);
    }

    // Makes the ring's place for a slice's largest logit; whether the block must meet.
    __device__ __forceinline__ bool raise_top(float of_slice) {
        if (of_slice <= largest) {
            return false;
        }
        largest = of_slice;
        if (!is_usable()) {
            top = LOWEST_BIN;
            return false;
        }
        const int32_t bin_of_largest = bin(largest, origin());
        if (bin_of_largest <= top) {
            return false;
        }
        raise_ring<WEIGHT_BINS>(sums, top, bin_of_largest);
        top = bin_of_largest;
        return true;
    }

    __device__ __forceinline__ void add(const Logits& own) const {
        if (top == LOWEST_BIN) {
            return;
        }
        const float from = origin();
        const float least = largest - row->depth;
        const uint32_t step_mask = row->counts_tokens ? 0 : (1u << STEP_BITS) - 1;
        const uint32_t weight = row->counts_tokens ? 1 : BIN_WEIGHT;
#pragma unroll
        for (int i = 0; i < PIECES * 4; ++i) {
            const uint32_t bits = steps_bits(own.x[i], from);
            uint32_t* bin = &sums[(bits >> STEP_BITS) % WEIGHT_BINS];
            if (own.x[i] >= least) {
                atomicAdd(bin, (bits & step_mask) | weight);
            }
        }
    }
};

// The bins of a row among which sums reach a target: tokens in order, or weights in units of
// ONE. False if they are not all counted.
__device__ __forceinline__ bool find_range(const RowWork& work, const WeightBins& bins, const Weights& weights,
                                           uint64_t target, Range& range) {
    static_assert(WEIGHT_BINS == 4 * SAMPLE_THREADS, "a thread has four bins");
    SHARED(int32_t, found, 2);
    SHARED(int32_t, tops, MAX_SLICES);
    if (threadIdx.x < work.num_runs) {
        tops[threadIdx.x] = work.runs[threadIdx.x].top_bin;
    }
    if (threadIdx.x < 2) {
        found[threadIdx.x] = LOWEST_BIN;
    }
    const float origin = bins.origin();
    const int32_t top = bins.bin(bins.largest, origin);
    const int32_t least = bins.bin(bins.largest - bins.row->depth, origin);
    __syncthreads();
    // A thread's four bins, which lie together.
    const int32_t high = (top | 3) - 4 * int32_t(threadIdx.x);
    uint32_t sums[4] = {0, 0, 0, 0};
    for (uint32_t run = 0; run < work.num_runs; ++run) {
        const Vector<uint32_t> own = *reinterpret_cast<const Vector<uint32_t>*>(
            work.bins + run * WEIGHT_BINS + uint32_t(high - 3) % WEIGHT_BINS);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[i] += high - i <= tops[run] && high - i > least ? own.x[3 - i] : 0;
        }
    }
    // The largest logit's steps in its bin, and how far down a bin's lower end is from it.
    const float top_steps = fmaf(bins.largest, bins.row->steps, -origin) -
                            float((top - int32_t(origin * (1.0f / (1 << STEP_BITS)))) * (1 << STEP_BITS));
    const auto depth_of = [&](int32_t bin) {
        return (float(top - bin) * float(1 << STEP_BITS) + top_steps) / bins.row->steps;
    };
    uint64_t own[4];
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // The second order of exp over a bin, on the average.
        constexpr float UNIT = ONE / float(BIN_WEIGHT) * (1.0f + 1.0f / (6.0f * 64.0f * 64.0f));
        const float unit = bins.row->counts_tokens ? 1.0f : UNIT * expf(-depth_of(high - i) * weights.scale);
        own[i] = sums[i] > 0 ? uint64_t(float(sums[i]) * unit) : 0;
        sum += own[i];
    }
    uint64_t before = block_sums(sum).before;
    const double error = bins.row->counts_tokens ? 0.0 : double(SUMS_ERROR);
    // The first bin that may reach it, and the first that does.
    const uint64_t bounds[2] = {max(uint64_t(double(target) * (1.0 - error)), uint64_t(1)),
                                max(uint64_t(double(target) * (1.0 + error)), uint64_t(1))};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            if (before < bounds[b] && bounds[b] <= before + own[i]) {
                found[b] = high - i;
            }
        }
        before += own[i];
    }
    __syncthreads();
    // Steps are rounded to nearest.
    const auto edge = [&](int32_t bin) { return bins.largest - depth_of(bin) - 0.5f / bins.row->steps; };
    range = {found[0] == top ? -MINUS_INFINITY : edge(found[0] + 1), edge(found[1])};
    return found[0] != LOWEST_BIN && found[1] != LOWEST_BIN;
}
