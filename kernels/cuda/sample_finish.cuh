// How a row's last block finishes it with what its runs told of.
#pragma once

#include "sample_border.cuh"
#include "sample_slice.cuh"

// Of tokens, where what slices told of does not settle it.
constexpr uint32_t NOT_ENOUGH = 0xffffffffu;

// In order: larger logit first, then lower id.
__device__ __forceinline__ uint64_t in_order(float logit, uint32_t token) {
    return uint64_t(~key_of(logit)) << 32 | token;
}
__device__ __forceinline__ float logit_in_order(uint64_t word) { return logit_of(~uint32_t(word >> 32)); }

// ln of the sum of exp(raw logit), in an order of its own.
__device__ __forceinline__ float log_sum_exp(const RowWork& work, float largest) {
    float sum = 0.0f;
    if (threadIdx.x < work.num_slices) {
        const SliceResult& slice = work.slices[threadIdx.x];
        sum = slice.sum > 0.0f ? slice.sum * expf(slice.raw.largest() - largest) : 0.0f;
    }
    return largest + logf(block_total(sum));
}

// Calls visit(logit, token) for all that runs told of in a list and that has `from` at least;
// then the block meets. Warps share the runs.
template <typename Visit>
__device__ __forceinline__ void for_listed(const RowWork& work, Listed RunResult::* list, const TopToken* entries,
                                           uint32_t room, float from, Visit visit) {
    const uint32_t parts = max(uint32_t(SAMPLE_WARPS) / work.num_runs, 1u);
    const uint32_t part = uint32_t(warp_id()) % parts;
    for (uint32_t run = uint32_t(warp_id()) / parts; run < work.num_runs; run += uint32_t(SAMPLE_WARPS) / parts) {
        const uint32_t len = (work.runs[run].*list).len;
        for (uint32_t place = part * WARP + lane_id(); place < len; place += parts * WARP) {
            const TopToken own = entries[run * room + place];
            if (own.logprob >= from) {
                visit(own.logprob, own.token);
            }
        }
    }
    __syncthreads();
}

// A row's first tokens, in order, in the block's room.
struct Firsts {
    uint32_t len;
    // Whether there are no others.
    bool is_all;
};

// At most `most` of a row's first tokens, by whole bins, of what its runs told of.
__device__ __forceinline__ Firsts first_tokens(const RowWork& work, Listed RunResult::* list,
                                               const TopToken* entries, uint32_t entries_room, float largest,
                                               uint32_t most, uint64_t* room) {
    static_assert(LIST_BINS == 2 * SAMPLE_THREADS, "a thread has two bins");
    SHARED(uint32_t, cell, 2);
    const float from =
        block_largest(threadIdx.x < work.num_runs ? (work.runs[threadIdx.x].*list).from : LOWEST_LOGIT);
    const int32_t top = bin_of(largest);
    // The last bin has all that is further down.
    const auto bin = [&](float logit) { return min(uint32_t(top - bin_of(logit)), LIST_BINS - 1); };
    uint32_t* counts = reinterpret_cast<uint32_t*>(room);
    counts[threadIdx.x] = counts[threadIdx.x + SAMPLE_THREADS] = 0;
    if (threadIdx.x == 0) {
        cell[0] = LIST_BINS;
        cell[1] = 0;
    }
    __syncthreads();
    for_listed(work, list, entries, entries_room, from,
               [&](float logit, uint32_t) { atomicAdd(&counts[bin(logit)], 1u); });
    const uint32_t of_high = counts[2 * threadIdx.x];
    const uint32_t own = of_high + counts[2 * threadIdx.x + 1];
    const uint32_t before = block_sums(own).before;
    if (before <= most && most < before + own) {
        cell[0] = 2 * threadIdx.x + (before + of_high <= most);
    }
    __syncthreads();
    const uint32_t end = cell[0];
    for_listed(work, list, entries, entries_room, from, [&](float logit, uint32_t token) {
        if (bin(logit) < end) {
            room[atomicAdd(&cell[1], 1u)] = in_order(logit, token);
        }
    });
    const Firsts firsts{cell[1], end == LIST_BINS && from == LOWEST_LOGIT};
    block_sort(room, firsts.len);
    return firsts;
}

// Writes the first of the words in order as likeliest tokens; how many there are.
__device__ __forceinline__ uint32_t write_top(const uint64_t* words, uint32_t len, uint32_t num, float log_sum,
                                              TopToken* top) {
    const uint32_t reported = min(len, num);
    if (threadIdx.x < reported) {
        const uint64_t word = words[threadIdx.x];
        top[threadIdx.x] = {uint32_t(word), logit_in_order(word) - log_sum};
    }
    __syncthreads();
    return reported;
}

// The likeliest tokens, at most `num`, of those that runs told of.
__device__ __forceinline__ uint32_t report_listed(const RowWork& work, float largest, uint32_t num, float log_sum,
                                                  uint64_t* room, TopToken* top) {
    if (num == 0) {
        return 0;
    }
    const Firsts firsts =
        first_tokens(work, &RunResult::likeliest, work.likeliest, LIKELIEST_ROOM, largest, LIKELIEST, room);
    if (firsts.len < num && !firsts.is_all) {
        return NOT_ENOUGH;
    }
    return write_top(room, firsts.len, num, log_sum, top);
}

// A token's logit before it was adjusted.
__device__ __forceinline__ float raw_logit(const Sampling& p, const SampleRow& request, const Row& row,
                                           uint32_t token) {
    SHARED(float, raw, 1);
    if (threadIdx.x == 0) {
        raw[0] = row.logits[token];
    }
    __syncthreads();
    // A token in several lists has the same raw logit in each.
    const Adjustment adjustment{p, request, row, token, token + 1};
    adjustment.for_lists([&](uint32_t, float& saved) { raw[0] = saved; });
    return raw[0];
}

// Each slice's weight beside the row's largest, and their sum.
__device__ __forceinline__ uint64_t scale_slices(const RowWork& work, const Weights& weights, uint64_t* sums) {
    uint64_t own = 0;
    if (threadIdx.x < work.num_slices) {
        const SliceResult& slice = work.slices[threadIdx.x];
        if (slice.weight > 0.0f) {
            const float factor = expf((slice.adjusted.largest() - weights.largest) * weights.scale);
            own = uint64_t(double(slice.weight) * double(factor) * double(ONE));
        }
        sums[threadIdx.x] = own;
    }
    return block_total(own);
}

// The token of a row at which amounts pass a number below the sum of its slices' sums. What is
// left of the number for its slice is a share of it: there weights are beside its own largest.
__device__ __forceinline__ uint32_t token_of_row(const Row& row, const RowWork& work, const uint64_t* sums,
                                                 uint64_t number, const Border& border, float scale) {
    const Part part = part_at(sums, work.num_slices, number);
    const double share = double(part.left) / double(sums[part.index]);
    const Amount amount{border, false, {work.slices[part.index].adjusted.largest(), scale}};
    return token_in_slice(row, part.index, amount,
                          [&](uint64_t total) { return min(uint64_t(share * double(total)), total - 1); });
}

// The least logit that min-p keeps, and that has a weight at all.
__device__ __forceinline__ float least_logit(const SampleRow& request, const Weights& weights) {
    const float depth = request.min_p > 0.0f ? fminf(-logf(fminf(request.min_p, 1.0f)), NO_WEIGHT) : NO_WEIGHT;
    return fminf(weights.largest - depth / weights.scale, weights.largest);
}

// What rejections need of a row, shared: registers are few.
struct Rejection {
    // Of all weights, where slices were weighed.
    uint64_t total;
    // What is kept as far as it is known: what the one border keeps, and perhaps what is between
    // them.
    Border certain;
    Border possible;
    // How many tokens were drawn, none of which is kept.
    uint32_t draw;
    // What is open if lists do not settle it; how many tokens the list keeps that does.
    uint32_t open;
    uint32_t len;
};

// Draws from a whole row until a token is kept: slices' sums of all weights lead to them.
// NOT_ENOUGH where it is not known whether a token is, and after the last draw. The block has met
// since `rejection` was written.
__device__ __forceinline__ uint32_t draw_by_rejection(const SampleRow& request, const Row& row,
                                                      const RowWork& work, const uint64_t* sums, float scale,
                                                      Rejection& rejection) {
    uint32_t draw = rejection.draw;
#pragma unroll 1
    for (; draw < REJECTIONS; ++draw) {
        const uint64_t number = part_of(rejection.total, uniform_bits(request.seed, request.index, draw));
        const uint32_t token = token_of_row(row, work, sums, number, Border{0, NON_FINITE}, scale);
        const float logit = row.logits[token];
        if (rejection.certain.keeps(logit, token)) {
            return token;
        }
        if (rejection.possible.keeps(logit, token)) {
            break;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        rejection.draw = draw;
    }
    __syncthreads();
    return NOT_ENOUGH;
}

// The place in the block's room with which sums pass a number, or `len`.
__device__ __forceinline__ uint32_t place_passing(uint32_t len, uint64_t own, uint64_t before, uint64_t number) {
    SHARED(uint32_t, cell, 1);
    if (threadIdx.x == 0) {
        cell[0] = len;
    }
    __syncthreads();
    if (before <= number && number < before + own) {
        cell[0] = threadIdx.x;
    }
    __syncthreads();
    const uint32_t place = cell[0];
    __syncthreads();
    return place;
}

// Puts what a row with filters keeps into the block's room, in order, from what runs told of; how
// many that are, or NOT_ENOUGH if that does not settle it. `total`: of all weights, where there is
// a nucleus of all.
__device__ __forceinline__ uint32_t list_kept(const SampleRow& request, const Row& row, const RowWork& work,
                                              const Weights& weights, uint64_t total, uint64_t* room) {
    static_assert(CANDIDATES <= SAMPLE_THREADS, "a thread has one");
    const bool has_top_k = request.has_top_k(row.vocab_size);
    const Firsts firsts = first_tokens(work, &RunResult::candidates, work.candidates, CANDIDATE_ROOM,
                                       weights.largest, CANDIDATES, room);
    // min-p leaves the first so many, for they are in order.
    const uint32_t least = key_of(least_logit(request, weights));
    const uint32_t word_key = threadIdx.x < firsts.len ? ~uint32_t(room[threadIdx.x] >> 32) : 0;
    uint32_t len = __syncthreads_count(threadIdx.x < firsts.len && word_key >= least);
    bool is_all = firsts.is_all || len < firsts.len;
    if (has_top_k && request.top_k <= len) {
        len = request.top_k;
        is_all = true;
    }
    if (!is_all && (has_top_k || request.min_p > 0.0f || !(request.top_p < 1.0f))) {
        return NOT_ENOUGH;
    }
    if (request.top_p < 1.0f) {
        const uint64_t own = threadIdx.x < len ? weights.of(logit_of(word_key)) : 0;
        const auto before = block_sums(own);
        const uint64_t target = Target{true, request.top_p, 0}.of(is_all ? before.total : total);
        const uint32_t last = place_passing(len, own, before.before, target - 1);
        if (last == len && !is_all) {
            return NOT_ENOUGH;
        }
        len = min(last + 1, len);
    }
    return len;
}

// Draws from the first tokens of the block's room, in order of their ids.
__device__ __forceinline__ uint32_t draw_listed(const SampleRow& request, const Weights& weights, uint64_t* room,
                                                uint32_t len, uint32_t draw) {
    const uint64_t word = threadIdx.x < len ? room[threadIdx.x] : 0;
    if (threadIdx.x < len) {
        room[threadIdx.x] = word << 32 | ~uint32_t(word >> 32);
    }
    block_sort(room, len);
    const uint64_t own = threadIdx.x < len ? weights.of(logit_of(uint32_t(room[threadIdx.x]))) : 0;
    const auto before = block_sums(own);
    const uint64_t number = part_of(before.total, uniform_bits(request.seed, request.index, draw));
    return uint32_t(room[place_passing(len, own, before.before, number)] >> 32);
}

// What is open of a draw that lists do not settle; where the border lies as far as bins tell.
// `total`: of all weights, where there is a nucleus of all.
__device__ __forceinline__ uint32_t open_draw(const SampleRow& request, const Row& row, const RowWork& work,
                                              const Weights& weights, uint64_t total, Range& range) {
    const bool has_top_k = request.has_top_k(row.vocab_size);
    const float least = least_logit(request, weights);
    if (!request.needs_bins(row.vocab_size)) {
        // min-p alone is a border that is known.
        range = {least, least};
        return has_top_k || request.top_p < 1.0f ? DRAW_OPEN | SEARCH_OPEN : DRAW_OPEN;
    }
    const uint64_t target = has_top_k ? request.top_k : Target{true, request.top_p, 0}.of(total);
    const Counted row_counted = counted(request, row.vocab_size);
    WeightBins bins{nullptr, &row_counted};
    bins.largest = weights.largest;
    if (!bins.is_usable()) {
        return DRAW_OPEN | SEARCH_OPEN;
    }
    if (find_range(work, bins, weights, target, range)) {
        return DRAW_OPEN;
    }
    // Fewer tokens than top-k keeps have a weight.
    range = {least, least};
    return has_top_k ? DRAW_OPEN : DRAW_OPEN | SEARCH_OPEN;
}

// Draws a token of a row: by rejection with the border that bins tell of, then, where that is too
// little, with what is listed. NOT_ENOUGH if both are; `state` then says what a second look needs.
__device__ __forceinline__ uint32_t draw_of_row(const SampleRow& request, const Row& row, const RowWork& work,
                                                const Best& best, uint64_t* room, RowState& state) {
    const Weights weights{best.largest(), request.scale()};
    SHARED(uint64_t, sums, MAX_SLICES);
    SHARED(Rejection, rejection, 1);
    const bool is_filtered = request.is_filtered(row.vocab_size);
    const bool by_rejection = !is_filtered || request.is_drawn_by_rejection(row.vocab_size);
    const uint64_t total = by_rejection ? scale_slices(work, weights, sums) : 0;
    bool by_list = false;
    if (is_filtered) {
        Range range{0.0f, 0.0f};
        const uint32_t draw_open = open_draw(request, row, work, weights, total, range);
        by_list = (draw_open & SEARCH_OPEN) != 0;
        if (threadIdx.x == 0) {
            state.range = range;
            rejection[0].open = draw_open;
            // The best is always kept.
            rejection[0].certain = range.high <= weights.largest ? Border{key_of(range.high), NON_FINITE}
                                                                 : Border{key_of(weights.largest), best.token()};
            rejection[0].possible = {key_of(range.low), NON_FINITE};
        }
    } else if (threadIdx.x == 0) {
        rejection[0].certain = {0, NON_FINITE};
    }
    if (threadIdx.x == 0) {
        rejection[0].total = total;
        rejection[0].draw = by_rejection ? 0 : REJECTIONS;
    }
    __syncthreads();
#pragma unroll 1
    for (;; by_list = true) {
        if (by_list) {
            const uint32_t len = request.needs_list(row.vocab_size)
                                     ? list_kept(request, row, work, weights, rejection[0].total, room)
                                     : NOT_ENOUGH;
            if (len == NOT_ENOUGH) {
                if (threadIdx.x == 0) {
                    state.open |= rejection[0].open;
                }
                return NOT_ENOUGH;
            }
            if (threadIdx.x == 0) {
                rejection[0].len = len;
                const uint64_t last = room[len - 1];
                rejection[0].certain = rejection[0].possible = {~uint32_t(last >> 32), uint32_t(last)};
            }
            __syncthreads();
        }
        const uint32_t token = draw_by_rejection(request, row, work, sums, weights.scale, rejection[0]);
        if (token != NOT_ENOUGH) {
            return token;
        }
        if (by_list) {
            return draw_listed(request, weights, room, rejection[0].len, by_rejection ? REJECTIONS : 0);
        }
    }
}

// Finishes a row, but for what is left open.
__device__ __forceinline__ void finish_row(const Sampling& p, const SampleRow& request, const Row& row,
                                           const RowWork& work, uint64_t* room, TopToken* top, SampledRow& out,
                                           RowState& state) {
    const Best raw = work.best(true);
    const bool has_logprobs = request.num_logprobs >= 0 && raw.drawable();
    if (threadIdx.x == 0) {
        state.open = 0;
    }
    if (has_logprobs) {
        const float log_sum = log_sum_exp(work, raw.largest());
        const uint32_t num_top =
            report_listed(work, raw.largest(), uint32_t(request.num_logprobs), log_sum, room, top);
        if (threadIdx.x == 0) {
            out.num_top = num_top;
            state.open = num_top == NOT_ENOUGH ? LIKELIEST_OPEN : 0;
        }
    }
    const Best best = request.is_adjusted() ? work.best(false) : raw;
    uint32_t token = NON_FINITE;
    if (raw.drawable() && !best.drawable()) {
        token = best.word == Best::BAD ? NON_FINITE : NOTHING_ALLOWED;
    } else if (raw.drawable() && request.is_greedy()) {
        token = best.token();
    } else if (raw.drawable()) {
        token = draw_of_row(request, row, work, best, room, state);
    }
    if (threadIdx.x == 0) {
        out.token = token;
        p.keep(request, token);
        out.num_top = has_logprobs ? out.num_top : 0;
    }
    if (has_logprobs && token < NOTHING_ALLOWED) {
        const float logprob = raw_logit(p, request, row, token) - log_sum_exp(work, raw.largest());
        if (threadIdx.x == 0) {
            out.logprob = logprob;
        }
    }
}
