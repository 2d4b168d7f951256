// How a row is finished by searching it whole, where its slices do not settle it: wide
// nuclei, many equals.
#pragma once

#include "sample_finish.cuh"

// The likeliest tokens, at most `num`, of raw logits.
__device__ __forceinline__ uint32_t report_of_row(const Row& row, float largest, uint32_t num, float log_sum,
                                                  uint64_t* room, TopToken* top) {
    SHARED(uint32_t, count, 1);
    SHARED(uint64_t, sums, MAX_SLICES);
    const Amount counted{{0, NON_FINITE}, true, {largest, 1.0f}};
    const Amount kept{find_border(row, {false, 0.0f, num}, counted, room, sums), true, {largest, 1.0f}};
    if (threadIdx.x == 0) {
        count[0] = 0;
    }
    __syncthreads();
    for_row(row, [&](float logit, uint32_t token) {
        if (kept.of(logit, token) > 0) {
            room[atomicAdd(count, 1u)] = in_order(logit, token);
        }
    });
    __syncthreads();
    const uint32_t len = count[0];
    block_sort(room, len);
    return write_top(room, len, num, log_sum, top);
}

// Draws with filters by searching the whole row.
__device__ __forceinline__ uint32_t draw_of_row(const SampleRow& request, const Row& row, const Weights& weights,
                                                uint64_t* room) {
    SHARED(uint64_t, sums, MAX_SLICES);
    Amount amount{{least_key(request, weights), NON_FINITE}, true, weights};
    // Top-k by counts, then top-p by weights.
    for (int filter = 0; filter < 2; ++filter) {
        const bool is_top_p = filter == 1;
        if (is_top_p ? request.top_p < 1.0f : request.has_top_k(row.vocab_size)) {
            amount.counts = !is_top_p;
            amount.border = find_border(row, {is_top_p, request.top_p, request.top_k}, amount, room, sums);
        }
    }
    amount.counts = false;
    const uint64_t total = sum_slices(row, amount, room, sums);
    const uint64_t number = part_of(total, uniform_bits(request.seed, request.index));
    return token_in_slice(row, part_at(sums, (row.vocab_size + SLICE - 1) / SLICE, number), amount);
}

// Finishes what is left open of a row.
__device__ __forceinline__ void finish_rest(const Sampling& p, const SampleRow& request, const Row& row,
                                            const Slices& slices, uint32_t open, uint64_t* room, TopToken* top,
                                            SampledRow& result) {
    float log_sum = 0.0f;
    if (request.num_logprobs >= 0) {
        const float largest = slices.best(true).largest();
        log_sum = log_sum_exp(slices, largest);
        if (open & LIKELIEST_OPEN) {
            // Raw logits are searched, so they are put back for that.
            const Adjustment adjustment{p, request, row, 0, row.vocab_size};
            adjustment.undo();
            result.num_top = report_of_row(with_all(row), largest, uint32_t(request.num_logprobs), log_sum, room, top);
            adjustment.apply();
        }
    }
    if (open & DRAW_OPEN) {
        const Weights weights{slices.best(false).largest(), request.scale()};
        result.token = draw_of_row(request, row, weights, room);
    }
    if (request.num_logprobs >= 0 && result.token < NOTHING_ALLOWED) {
        result.logprob = raw_logit(p, request, row, result.token) - log_sum;
    }
}
