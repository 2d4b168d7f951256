// How a row's last block finishes it with what its slices told of.
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
__device__ __forceinline__ float log_sum_exp(const Slices& slices, float largest) {
    float sum = 0.0f;
    if (threadIdx.x < slices.num) {
        const SliceResult& slice = slices.results[threadIdx.x];
        sum = slice.sum > 0.0f ? slice.sum * expf(slice.raw.largest() - largest) : 0.0f;
    }
    return largest + logf(block_total(sum));
}

// The bin above which all slices told of all they have.
__device__ __forceinline__ int32_t highest_threshold(const Slices& slices, Listed SliceResult::* list) {
    return block_largest(threadIdx.x < slices.num ? (slices.results[threadIdx.x].*list).lowest : LOWEST_BIN);
}

// Calls visit(slice, place) for all that slices told of in a list; then the block meets.
template <typename Visit>
__device__ __forceinline__ void for_listed(const Slices& slices, Listed SliceResult::* list, Visit visit) {
    for (uint32_t slice = warp_id(); slice < slices.num; slice += SAMPLE_WARPS) {
        const uint32_t count = (slices.results[slice].*list).count;
        for (uint32_t place = lane_id(); place < count; place += WARP) {
            visit(slice, place);
        }
    }
    __syncthreads();
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

// The likeliest tokens, at most `num`, of those that slices told of.
__device__ __forceinline__ uint32_t report_listed(const Slices& slices, uint32_t num, float log_sum,
                                                  uint64_t* room, TopToken* top) {
    SHARED(uint32_t, count, 1);
    static_assert(MAX_SLICES * TOP_ROOM <= ROOM, "all have room");
    if (num == 0) {
        return 0;
    }
    if (threadIdx.x == 0) {
        count[0] = 0;
    }
    const int32_t lowest = highest_threshold(slices, &SliceResult::likeliest);
    for_listed(slices, &SliceResult::likeliest, [&](uint32_t slice, uint32_t place) {
        const TopToken own = slices.likeliest[slice * TOP_ROOM + place];
        if (bin_of(own.logprob) >= lowest) {
            room[atomicAdd(count, 1u)] = in_order(own.logprob, own.token);
        }
    });
    const uint32_t len = count[0];
    if (len < num && lowest > LOWEST_BIN) {
        return NOT_ENOUGH;
    }
    block_sort(room, len);
    return write_top(room, len, num, log_sum, top);
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
__device__ __forceinline__ uint64_t scale_slices(const Slices& slices, const Weights& weights, uint64_t* sums) {
    uint64_t own = 0;
    if (threadIdx.x < slices.num) {
        const SliceResult& slice = slices.results[threadIdx.x];
        if (slice.weight > 0) {
            const float factor = expf((slice.adjusted.largest() - weights.largest) * weights.scale);
            own = uint64_t(double(slice.weight) * double(factor));
        }
        sums[threadIdx.x] = own;
    }
    return block_total(own);
}

// Draws from all of a row by its slices' weights.
__device__ __forceinline__ uint32_t draw_unfiltered(const SampleRow& request, const Row& row, const Slices& slices,
                                                    const Weights& weights, uint64_t* sums) {
    const uint64_t total = scale_slices(slices, weights, sums);
    const uint64_t number = part_of(total, uniform_bits(request.seed, request.index));
    Part part = part_at(sums, slices.num, number);
    // In the slice weights are beside its own largest.
    const SliceResult& slice = slices.results[part.index];
    const double share = double(part.left) / double(sums[part.index]);
    part.left = min(uint64_t(share * double(slice.weight)), slice.weight - 1);
    return token_in_slice(row, part,
                          Amount{{0, NON_FINITE}, false, {slice.adjusted.largest(), weights.scale}});
}

// The smallest key that min-p keeps.
__device__ __forceinline__ uint32_t least_key(const SampleRow& request, const Weights& weights) {
    if (!(request.min_p > 0.0f)) {
        return 0;
    }
    const float bound = weights.largest + logf(fminf(request.min_p, 1.0f)) / weights.scale;
    return key_of(fminf(bound, weights.largest));
}

// Draws with filters from what slices told of; NOT_ENOUGH if that does not settle it.
__device__ __forceinline__ uint32_t draw_listed(const SampleRow& request, const Row& row, const Slices& slices,
                                                const Weights& weights, uint64_t* room, uint64_t* sums) {
    constexpr uint32_t OWN = ROOM / SAMPLE_THREADS;
    SHARED(uint32_t, cell, 1);
    const bool has_top_k = request.has_top_k(row.vocab_size);
    const int32_t top_bin = bin_of(weights.largest);
    const auto token_of = [&](uint32_t slice, uint32_t place) {
        return slice * SLICE + slices.candidates[slice * CANDIDATE_ROOM + place];
    };
    // What all have told of; of it as much as is wanted and has room.
    Listed listed{highest_threshold(slices, &SliceResult::candidates), 0};
    uint32_t* bins = reinterpret_cast<uint32_t*>(room);
    clear_bins(bins);
    for_listed(slices, &SliceResult::candidates, [&](uint32_t slice, uint32_t place) {
        const float logit = row.logits[token_of(slice, place)];
        if (bin_of(logit) >= listed.lowest) {
            atomicAdd(&bins[near_bin(logit, top_bin)], 1u);
        }
    });
    const Listed chosen = choose_bins(bins, top_bin, has_top_k ? min(request.top_k, ROOM / 2) : ROOM / 2, ROOM);
    listed = {max(listed.lowest, chosen.lowest), chosen.count};
    if (listed.count == 0) {
        return NOT_ENOUGH;
    }
    if (threadIdx.x == 0) {
        cell[0] = 0;
    }
    __syncthreads();
    for_listed(slices, &SliceResult::candidates, [&](uint32_t slice, uint32_t place) {
        const uint32_t token = token_of(slice, place);
        const float logit = row.logits[token];
        if (bin_of(logit) >= listed.lowest) {
            room[atomicAdd(cell, 1u)] = in_order(logit, token);
        }
    });
    block_sort(room, listed.count);

    // Whether what is left out cannot be drawn: there is nothing, or it has no weight.
    const float beyond = float(listed.lowest) * (1.0f / 16.0f);
    bool is_all = listed.lowest == LOWEST_BIN || (weights.largest - beyond) * weights.scale > 29.0f;
    // min-p leaves the first so many, for they are in order.
    const uint32_t least = least_key(request, weights);
    uint32_t own_count = 0;
    for (uint32_t place = threadIdx.x; place < listed.count; place += SAMPLE_THREADS) {
        own_count += ~uint32_t(room[place] >> 32) >= least;
    }
    uint32_t len = block_total(own_count);
    is_all = is_all || len < listed.count;
    if (has_top_k && request.top_k <= len) {
        len = request.top_k;
        is_all = true;
    }
    if (!is_all && (has_top_k || request.min_p > 0.0f)) {
        return NOT_ENOUGH;
    }
    const auto own_weights = [&](uint64_t (&own)[OWN], auto logit_of_word) {
        uint64_t sum = 0;
#pragma unroll
        for (uint32_t i = 0; i < OWN; ++i) {
            const uint32_t place = threadIdx.x * OWN + i;
            own[i] = place < len ? weights.of(logit_of_word(room[place])) : 0;
            sum += own[i];
        }
        return sum;
    };
    // The place with which sums pass a number, or `len`.
    const auto place_passing = [&](const uint64_t (&own)[OWN], uint64_t before, uint64_t number) {
        if (threadIdx.x == 0) {
            cell[0] = len;
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < OWN; ++i) {
            if (before <= number && number < before + own[i]) {
                cell[0] = threadIdx.x * OWN + i;
            }
            before += own[i];
        }
        __syncthreads();
        return cell[0];
    };
    uint64_t own[OWN];
    auto before = block_sums(own_weights(own, logit_in_order));
    if (request.top_p < 1.0f) {
        const uint64_t total = is_all ? before.total : scale_slices(slices, weights, sums);
        const uint64_t target = Target{true, request.top_p, 0}.of(total);
        const uint32_t last = place_passing(own, before.before, target - 1);
        if (last == len && !is_all) {
            return NOT_ENOUGH;
        }
        len = min(last + 1, len);
        __syncthreads();
    } else if (!is_all) {
        return NOT_ENOUGH;
    }
    // In order of ids.
    for (uint32_t place = threadIdx.x; place < len; place += SAMPLE_THREADS) {
        room[place] = room[place] << 32 | ~uint32_t(room[place] >> 32);
    }
    block_sort(room, len);
    before = block_sums(own_weights(own, [](uint64_t word) { return logit_of(uint32_t(word)); }));
    const uint64_t number = part_of(before.total, uniform_bits(request.seed, request.index));
    return uint32_t(room[place_passing(own, before.before, number)] >> 32);
}

// NOT_ENOUGH if what slices told of does not settle it.
__device__ __forceinline__ uint32_t choose(const SampleRow& request, const Row& row, const Slices& slices,
                                           const Best& best, uint64_t* room) {
    SHARED(uint64_t, sums, MAX_SLICES);
    if (request.is_greedy()) {
        return best.token();
    }
    const Weights weights{best.largest(), request.scale()};
    if (!request.is_filtered(row.vocab_size)) {
        return draw_unfiltered(request, row, slices, weights, sums);
    }
    return draw_listed(request, row, slices, weights, room, sums);
}

// Finishes a row, but for what is left open.
__device__ __forceinline__ void finish_row(const Sampling& p, const SampleRow& request, const Row& row,
                                           const Slices& slices, uint64_t* room, TopToken* top,
                                           SampledRow& result, uint32_t& open) {
    const Best raw = slices.best(true);
    if (!raw.drawable()) {
        return;
    }
    float log_sum = 0.0f;
    if (request.num_logprobs >= 0) {
        log_sum = log_sum_exp(slices, raw.largest());
        result.num_top = report_listed(slices, uint32_t(request.num_logprobs), log_sum, room, top);
        open |= result.num_top == NOT_ENOUGH ? LIKELIEST_OPEN : 0;
    }
    const Best best = request.is_adjusted() ? slices.best(false) : raw;
    if (best.drawable()) {
        result.token = choose(request, row, slices, best, room);
        if (result.token == NOT_ENOUGH) {
            open |= DRAW_OPEN;
        } else if (request.num_logprobs >= 0) {
            result.logprob = raw_logit(p, request, row, result.token) - log_sum;
        }
    } else if (best.word != Best::BAD) {
        result.token = NOTHING_ALLOWED;
    }
}
