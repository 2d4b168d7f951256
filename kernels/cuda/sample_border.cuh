// Searches of a whole row by one block: for borders in the order of candidates, and
// for the token at which amounts, added up in order of ids, pass a number.
#pragma once

#include "sample_request.cuh"

// Bins of a histogram: two words of 32 bits each fill the block's room.
constexpr uint32_t BINS = ROOM;
constexpr int DIGIT_BITS = 11;

// 64-bit sums in two words: shared memory adds 32 bits at a time.
struct Histogram {
    uint32_t* low;
    uint32_t* high;

    __device__ __forceinline__ explicit Histogram(uint64_t* room)
        : low(reinterpret_cast<uint32_t*>(room)), high(low + BINS) {}

    __device__ __forceinline__ void clear() const {
        for (uint32_t bin = threadIdx.x; bin < BINS; bin += SAMPLE_THREADS) {
            low[bin] = 0;
            high[bin] = 0;
        }
        __syncthreads();
    }

    __device__ __forceinline__ void add(uint32_t bin, uint64_t amount) const {
        const uint32_t word = uint32_t(amount);
        const uint32_t carry = atomicAdd(&low[bin], word) > 0xffffffffu - word;
        const uint32_t upper = uint32_t(amount >> 32) + carry;
        if (upper > 0) {
            atomicAdd(&high[bin], upper);
        }
    }

    __device__ __forceinline__ uint64_t sum(uint32_t bin) const { return uint64_t(high[bin]) << 32 | low[bin]; }
};

// How far a border is: at the token with which amounts reach a share of all, or a number.
struct Target {
    bool is_share;
    float share;
    uint64_t number;

    __device__ __forceinline__ uint64_t of(uint64_t total) const {
        const uint64_t wanted =
            is_share ? uint64_t(double(fmaxf(share, 0.0f)) * double(total)) : number;
        return min(max(wanted, uint64_t(1)), total);
    }
};

// The bin with which sums reach a target, and what is left of the target for it.
struct Reached {
    uint32_t bin;
    uint64_t left;
};

// `target` is told the sum of all bins.
template <typename Of> __device__ __forceinline__ Reached reach(const Histogram& histogram, Of target) {
    constexpr uint32_t OWN = BINS / SAMPLE_THREADS;
    SHARED(Reached, reached, 1);
    __syncthreads();
    uint64_t own = 0;
    for (uint32_t i = 0; i < OWN; ++i) {
        own += histogram.sum(threadIdx.x * OWN + i);
    }
    const auto sums = block_sums(own);
    const uint64_t wanted = target(sums.total);
    if (sums.before < wanted && wanted <= sums.before + own) {
        uint64_t left = wanted - sums.before;
        uint32_t bin = threadIdx.x * OWN;
        while (histogram.sum(bin) < left) {
            left -= histogram.sum(bin);
            ++bin;
        }
        reached[0] = {bin, left};
    }
    __syncthreads();
    const Reached result = reached[0];
    __syncthreads();
    return result;
}

// Calls visit(logit, token) for the tokens of a row from `first` to `end`, many threads at once.
template <typename Visit>
__device__ __forceinline__ void for_tokens(const Row& row, uint32_t first, uint32_t end, Visit visit) {
#pragma unroll 4
    for (uint32_t token = first + threadIdx.x; token < min(end, row.vocab_size); token += SAMPLE_THREADS) {
        const float logit = row.logits[token];
        const bool is_allowed = row.allowed == nullptr || (row.allowed[token / 32] >> token % 32 & 1) != 0;
        visit(is_allowed ? logit : MINUS_INFINITY, token);
    }
}

// Counts those of one key that an amount has something for.
struct Equals {
    Amount amount;
    uint32_t key;

    __device__ __forceinline__ uint64_t of(float logit, uint32_t token) const {
        return key_of(logit) == key && amount.of(logit, token) > 0;
    }
};

// A part of a row, and what is left of a number for it.
struct Part {
    uint32_t index;
    uint64_t left;
};

// The part, of at most 64, in which sums pass a number below their total; each warp
// finds it for itself.
__device__ __forceinline__ Part part_at(const uint64_t* sums, uint32_t num_parts, uint64_t number) {
    static_assert(MAX_SLICES <= 2 * WARP, "a lane has two slices");
    const uint32_t part = uint32_t(lane_id()) * 2;
    const uint64_t own = part < num_parts ? sums[part] : 0;
    const uint64_t next = part + 1 < num_parts ? sums[part + 1] : 0;
    const uint64_t before = warp_sum_before(own + next);
    const bool here = before <= number && number < before + own + next;
    const bool second = number >= before + own;
    const int lane = __ffs(int(__ballot_sync(ALL_LANES, here))) - 1;
    return {__shfl_sync(ALL_LANES, part + second, lane),
            __shfl_sync(ALL_LANES, number - before - (second ? own : 0), lane)};
}

// The token of a slice at which amounts, added up in order of ids, pass a number below
// their total, from which `number_of` makes it.
template <typename Amounts, typename NumberOf>
__device__ __forceinline__ uint32_t token_in_slice(const Row& row, uint32_t slice, const Amounts& amount,
                                                   NumberOf number_of) {
    static_assert(PIECES * SAMPLE_WARPS == 2 * WARP, "a lane has two warps' pieces");
    SHARED(uint64_t, sums, PIECES * SAMPLE_WARPS);
    SHARED(uint32_t, found, 1);
    const uint32_t first = slice * SLICE;
    const auto amounts = [&](uint32_t token, uint64_t(&own)[4]) {
        const Vector<float> piece = load_piece(row, token);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            own[e] = amount.of(piece.x[e], token + e);
        }
        return own[0] + own[1] + own[2] + own[3];
    };
    uint64_t own[4];
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
        const uint64_t of_warp = warp_total(amounts(token_at(first, piece * 4), own));
        if (lane_id() == 0) {
            sums[piece * SAMPLE_WARPS + warp_id()] = of_warp;
        }
    }
    __syncthreads();
    const uint64_t total = warp_total(sums[lane_id()] + sums[lane_id() + WARP]);
    const Part piece_of_warp = part_at(sums, PIECES * SAMPLE_WARPS, number_of(total));
    if (warp_id() == int(piece_of_warp.index) % SAMPLE_WARPS) {
        // Its logits once more: registers are few.
        const uint32_t token = token_at(first, int(piece_of_warp.index) / SAMPLE_WARPS * 4);
        uint64_t before = warp_sum_before(amounts(token, own));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (before <= piece_of_warp.left && piece_of_warp.left < before + own[e]) {
                found[0] = token + e;
            }
            before += own[e];
        }
    }
    __syncthreads();
    const uint32_t token = found[0];
    __syncthreads();
    return token;
}

// Each slice's sum of amounts, and the sum of those.
template <typename Amounts>
__device__ __forceinline__ uint64_t sum_slices(const Row& row, const Amounts& amount, uint64_t* room,
                                               uint64_t* sums) {
    static_assert(MAX_SLICES * SAMPLE_WARPS <= ROOM, "each warp's sum of each slice has a place");
    const uint32_t num = num_slices(row.vocab_size);
    for (uint32_t slice = 0; slice < num; ++slice) {
        uint64_t sum = 0;
        for_tokens(row, slice * SLICE, (slice + 1) * SLICE,
                   [&](float logit, uint32_t token) { sum += amount.of(logit, token); });
        sum = warp_total(sum);
        if (lane_id() == 0) {
            room[slice * SAMPLE_WARPS + warp_id()] = sum;
        }
    }
    __syncthreads();
    uint64_t own = 0;
    if (threadIdx.x < num) {
        for (int warp = 0; warp < SAMPLE_WARPS; ++warp) {
            own += room[threadIdx.x * SAMPLE_WARPS + warp];
        }
        sums[threadIdx.x] = own;
    }
    // Its barriers also order the sums before who reads them.
    return block_total(own);
}

// The last candidate, in order, that is needed for the amounts of it and of those
// before it to reach `target`; `amount` is something for one at least. `sums` has room
// for each slice's.
__device__ __forceinline__ Border find_border(const Row& row, const Target& target, const Amount& amount,
                                              uint64_t* room, uint64_t* sums) {
    const Histogram histogram(room);
    // Through the bits of the key, largest first.
    uint32_t prefix = 0;
    uint64_t wanted = 0;
#pragma unroll 1
    for (int bits = 32; bits > 0; bits -= DIGIT_BITS) {
        const int shift = max(bits - DIGIT_BITS, 0);
        const uint32_t digits = (1u << (bits - shift)) - 1;
        histogram.clear();
        for_tokens(row, 0, row.vocab_size, [&](float logit, uint32_t token) {
            const uint32_t key = key_of(logit);
            const uint64_t own = amount.of(logit, token);
            if (own > 0 && uint64_t(key) >> bits == uint64_t(prefix) >> bits) {
                histogram.add(~(key >> shift) & digits, own);
            }
        });
        const Reached digit = reach(
            histogram, [&](uint64_t total) { return bits == 32 ? target.of(total) : wanted; });
        prefix |= (~digit.bin & digits) << shift;
        wanted = digit.left;
    }
    // Of equals the lowest ids stay: all have the same amount.
    const uint64_t each = amount.counts ? 1 : amount.weights.of(logit_of(prefix));
    const Equals equals{amount, prefix};
    sum_slices(row, equals, room, sums);
    const Part part = part_at(sums, num_slices(row.vocab_size), (wanted + each - 1) / each - 1);
    return {prefix, token_in_slice(row, part.index, equals, [&](uint64_t) { return part.left; })};
}
