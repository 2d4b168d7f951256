// How a row is finished that its runs do not settle: wide nuclei by a second look at its
// slices, many equals by a search of the whole of it.
#pragma once

#include "sample_second.cuh"

// The likeliest tokens, at most `num`, of raw logits: those as far as a border.
__device__ __forceinline__ uint32_t report_above(const Row& row, const Amount& kept, uint32_t num, float log_sum,
                                                 uint64_t* room, TopToken* top) {
    SHARED(uint32_t, count, 1);
    if (threadIdx.x == 0) {
        count[0] = 0;
    }
    __syncthreads();
    for_tokens(row, 0, row.vocab_size, [&](float logit, uint32_t token) {
        if (kept.of(logit, token) > 0) {
            room[atomicAdd(count, 1u)] = in_order(logit, token);
        }
    });
    __syncthreads();
    const uint32_t len = count[0];
    block_sort(room, len);
    return write_top(room, len, num, log_sum, top);
}

// Of raw logits all tokens count alike.
__device__ __forceinline__ Amount raw_amount(float largest) { return {{0, NON_FINITE}, true, {largest, 1.0f}}; }

// Borders of a row, each by a search of the whole of it.
enum class Searched { LIKELIEST, TOP_K, TOP_P, DONE };

// Finishes what is left open of a row.
__device__ __forceinline__ void finish_rest(const Sampling& p, const SampleRow& request, const Row& row,
                                            const RowWork& work, uint32_t open, const Range& range,
                                            uint64_t* room, TopToken* top, SampledRow& out, RowState& state) {
    SHARED(uint64_t, sums, MAX_SLICES);
    SHARED(uint64_t, searched_sums, MAX_SLICES);
    SHARED(Rejection, rejection, 1);
    Amount drawn{{0, NON_FINITE}, false, {work.best(false).largest(), request.scale()}};
    if ((open & (DRAW_OPEN | SEARCH_OPEN)) == DRAW_OPEN) {
        open |= settle(request, row, work, drawn.weights, range, room, sums, drawn.border) ? 0 : SEARCH_OPEN;
    }
    if (open & SEARCH_OPEN) {
        drawn.border = {key_of(least_logit(request, drawn.weights)), NON_FINITE};
    }
#pragma unroll 1
    for (int step = 0; step < int(Searched::DONE); ++step) {
        const Searched border = Searched(step);
        const bool is_wanted = border == Searched::LIKELIEST ? (open & LIKELIEST_OPEN) != 0
                               : (open & SEARCH_OPEN) == 0   ? false
                               : border == Searched::TOP_K   ? request.has_top_k(row.vocab_size)
                                                             : request.top_p < 1.0f;
        if (!is_wanted) {
            continue;
        }
        Row searched = row;
        Amount amount = drawn;
        amount.counts = border == Searched::TOP_K;
        Target target{border == Searched::TOP_P, request.top_p, request.top_k};
        const Adjustment adjustment{p, request, row, 0, row.vocab_size};
        if (border == Searched::LIKELIEST) {
            // Raw logits are searched, so they are put back for that.
            adjustment.undo();
            searched = with_all(row);
            amount = raw_amount(work.best(true).largest());
            target.number = uint32_t(request.num_logprobs);
        }
        amount.border = find_border(searched, target, amount, room, searched_sums);
        if (border == Searched::LIKELIEST) {
            const uint32_t num_top = report_above(searched, amount, uint32_t(request.num_logprobs),
                                                  log_sum_exp(work, amount.weights.largest), room, top);
            if (threadIdx.x == 0) {
                out.num_top = num_top;
            }
            adjustment.apply();
        } else {
            drawn.border = amount.border;
        }
    }
    uint32_t token = out.token;
    if (open & DRAW_OPEN) {
        const bool by_rejection = request.is_drawn_by_rejection(row.vocab_size);
        const uint64_t total = by_rejection ? scale_slices(work, drawn.weights, searched_sums) : 0;
        if (threadIdx.x == 0) {
            rejection[0].total = total;
            rejection[0].certain = rejection[0].possible = drawn.border;
            rejection[0].draw = by_rejection ? 0 : REJECTIONS;
        }
        __syncthreads();
        token = draw_by_rejection(request, row, work, searched_sums, drawn.weights.scale, rejection[0]);
        if (token == NOT_ENOUGH) {
            drawn.border = rejection[0].certain;
            if (open & SEARCH_OPEN) {
                sum_slices(row, drawn, room, sums);
            }
            const uint64_t total = block_total(threadIdx.x < work.num_slices ? sums[threadIdx.x] : 0);
            const uint32_t draw = by_rejection ? REJECTIONS : 0;
            const uint64_t number = part_of(total, uniform_bits(request.seed, request.index, draw));
            token = token_of_row(row, work, sums, number, drawn.border, drawn.weights.scale);
        }
    }
    // All have read what was there.
    __syncthreads();
    if (threadIdx.x == 0) {
        out.token = token;
        p.keep(request, token);
        state.open = open;
    }
    if (request.num_logprobs >= 0 && token < NOTHING_ALLOWED) {
        const float logprob = raw_logit(p, request, row, token) - log_sum_exp(work, work.best(true).largest());
        if (threadIdx.x == 0) {
            out.logprob = logprob;
        }
    }
}
