// What a block finds in its slice of a row and leaves for the row's last block.
#pragma once

#include "sample_row.cuh"

// One row's request.
struct SampleRow {
    float temperature;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    // 0 keeps all.
    uint32_t top_k;
    uint32_t seed[2];
    uint32_t index;
    // Likeliest tokens to report, at most MAX_TOP; -1: no log-probabilities at all.
    int32_t num_logprobs;
    // Borders in the lists of the launch.
    uint32_t bias[2];
    uint32_t banned[2];
    uint32_t seen[2];
    // The row's mask among those of the launch; -1: it has none.
    int32_t mask;

    // Below this temperature the likeliest token is all that remains.
    __device__ __forceinline__ bool is_greedy() const { return !(temperature >= 1e-5f); }
    __device__ __forceinline__ bool has_top_k(uint32_t vocab_size) const {
        return top_k > 0 && top_k < vocab_size;
    }
    __device__ __forceinline__ bool is_filtered(uint32_t vocab_size) const {
        return has_top_k(vocab_size) || top_p < 1.0f || min_p > 0.0f;
    }
    __device__ __forceinline__ bool is_adjusted() const {
        return bias[0] < bias[1] || banned[0] < banned[1] || seen[0] < seen[1] || mask >= 0;
    }
    // Above this temperature all is equally likely.
    __device__ __forceinline__ float scale() const { return 1.0f / fminf(temperature, 1e9f); }
};

struct TokenBias {
    uint32_t token;
    float bias;
};

struct SeenToken {
    uint32_t token;
    uint32_t output_count;
};

struct SampledRow {
    // NON_FINITE where the row holds a NaN, an infinity, or nothing to draw; NOTHING_ALLOWED
    // where what is asked of it leaves nothing.
    uint32_t token;
    // If log-probabilities are asked for.
    float logprob;
    uint32_t num_top;
};

struct TopToken {
    uint32_t token;
    float logprob;
};

constexpr uint32_t MAX_TOP = 32;
constexpr uint32_t NON_FINITE = 0xffffffffu;
constexpr uint32_t NOTHING_ALLOWED = 0xfffffffeu;
// Candidates that a slice tells of: it looks for so many, and has room for so many.
constexpr uint32_t CANDIDATES = 128;
constexpr uint32_t CANDIDATE_ROOM = 256;
// Of raw logits, for log-probabilities.
constexpr uint32_t TOP_ROOM = 48;

// The largest logit and its lowest id, in one word that is larger for better ones.
struct Best {
    uint64_t word;

    // Of what holds a NaN or +infinity, from which nothing can be drawn.
    static constexpr uint64_t BAD = ~uint64_t(0);

    __device__ __forceinline__ float largest() const { return logit_of(uint32_t(word >> 32)); }
    __device__ __forceinline__ uint32_t token() const { return 0xffffffffu - uint32_t(word); }
    // Nor from nothing at all.
    __device__ __forceinline__ bool drawable() const { return word != BAD && is_finite(largest()); }
};

// A slice's candidates: all tokens of the bin `lowest` and above, if there was room.
struct Listed {
    int32_t lowest;
    uint32_t count;
};

// What is known of a slice.
struct SliceResult {
    Best raw;
    Best adjusted;
    // Of weights beside the slice's own largest.
    uint64_t weight;
    // Of exp(logit - largest), raw.
    float sum;
    Listed candidates;
    Listed likeliest;
    uint32_t padding;
};

// What a row's slices do not settle, so that the whole row is searched.
constexpr uint32_t LIKELIEST_OPEN = 1;
constexpr uint32_t DRAW_OPEN = 2;

struct RowState {
    // Slices that are described; zero before and after.
    uint32_t ticket;
    uint32_t open;
};

struct Workspace {
    // [rows, slices]
    SliceResult* slices;
    // [rows, slices, CANDIDATE_ROOM]: places in the slice.
    uint16_t* candidates;
    // [rows, slices, TOP_ROOM]: tokens and raw logits.
    TopToken* likeliest;
    // [rows]
    RowState* rows;
};

struct Sampling {
    // [rows, vocab_size]; changed by bias, bans and penalties.
    float* logits;
    // [rows]
    const SampleRow* requests;
    const TokenBias* biases;
    const uint32_t* banned;
    const SeenToken* seen;
    // [masks, mask_words(vocab_size)]
    const uint32_t* masks;
    // Room for as many raw logits as the lists have tokens.
    float* bias_raw;
    float* banned_raw;
    float* seen_raw;
    // [rows]
    SampledRow* out;
    // [rows, MAX_TOP], most likely first
    TopToken* top;
    Workspace work;
    uint32_t vocab_size;
};

// A row as its request leaves it, once adjusted.
__device__ __forceinline__ Row row_of(const Sampling& p, const SampleRow& request, uint32_t row) {
    const uint32_t* allowed =
        request.mask < 0 ? nullptr : p.masks + size_t(request.mask) * mask_words(p.vocab_size);
    return {p.logits + size_t(row) * p.vocab_size, p.vocab_size, allowed};
}

// A row of which every token counts, as for log-probabilities.
__device__ __forceinline__ Row with_all(const Row& row) { return {row.logits, row.vocab_size, nullptr}; }

// A row's part of the workspace.
struct Slices {
    SliceResult* results;
    uint16_t* candidates;
    TopToken* likeliest;
    uint32_t num;

    __device__ __forceinline__ SliceResult& mine() const { return results[blockIdx.x]; }

    // The best of all slices.
    __device__ __forceinline__ Best best(bool raw) const {
        uint64_t word = 0;
        if (threadIdx.x < num) {
            word = (raw ? results[threadIdx.x].raw : results[threadIdx.x].adjusted).word;
        }
        return {block_largest(word)};
    }
};

__device__ __forceinline__ Slices slices_of(const Workspace& work, uint32_t vocab_size, uint32_t row) {
    const uint32_t num = num_slices(vocab_size);
    const size_t first = size_t(row) * num;
    return {work.slices + first, work.candidates + first * CANDIDATE_ROOM,
            work.likeliest + first * TOP_ROOM, num};
}

// All slices have the same bins, so that their thresholds can be compared.
__device__ __forceinline__ int32_t bin_of(float logit) {
    return __float2int_rd(fminf(fmaxf(logit * 16.0f, -5e8f), 5e8f));
}

constexpr int32_t LOWEST_BIN = -600000000;
// Bins from the largest logit's down; the last has all that is further down.
constexpr uint32_t NEAR_BINS = 1024;

__device__ __forceinline__ uint32_t near_bin(float logit, int32_t top_bin) {
    return min(uint32_t(top_bin - bin_of(logit)), NEAR_BINS - 1);
}

__device__ __forceinline__ void clear_bins(uint32_t* bins) {
    for (uint32_t bin = threadIdx.x; bin < NEAR_BINS; bin += SAMPLE_THREADS) {
        bins[bin] = 0;
    }
    __syncthreads();
}

// The bins that have `wanted` tokens, or all there are, but no more than `most`.
// `bins` are the block's counts; at least one token is wanted, and as many have room.
__device__ __forceinline__ Listed choose_bins(const uint32_t* bins, int32_t top_bin, uint32_t wanted,
                                              uint32_t most) {
    constexpr uint32_t OWN = NEAR_BINS / SAMPLE_THREADS;
    SHARED(Listed, chosen, 1);
    __syncthreads();
    uint32_t own = 0;
#pragma unroll
    for (uint32_t i = 0; i < OWN; ++i) {
        own += bins[threadIdx.x * OWN + i];
    }
    const auto sums = block_sums(own);
    if (sums.total - bins[NEAR_BINS - 1] < wanted && sums.total <= most) {
        return {LOWEST_BIN, sums.total};
    }
    uint32_t count = sums.before;
#pragma unroll
    for (uint32_t i = 0; i < OWN; ++i) {
        const uint32_t bin = threadIdx.x * OWN + i;
        const uint32_t next = count + bins[bin];
        // Down to the first one that makes enough, or else to what is further down.
        if (count < wanted && bin < NEAR_BINS - 1 && (next >= wanted || bin == NEAR_BINS - 2)) {
            const bool fits = next <= most;
            chosen[0] = {top_bin - int32_t(bin) + !fits, fits ? next : count};
        }
        count = next;
    }
    __syncthreads();
    const Listed listed = chosen[0];
    __syncthreads();
    return listed;
}

__device__ __forceinline__ Best best_of(const Logits& own, uint32_t first) {
    uint32_t key = 0;
    int at = 0;
    bool bad = false;
#pragma unroll
    for (int i = 0; i < PIECES * 4; ++i) {
        bad = bad || !(own.x[i] <= 3.402823466e38f);
        const uint32_t other = key_of(own.x[i]);
        // Ids ascend: the first of equals stays.
        at = other > key ? i : at;
        key = max(key, other);
    }
    const uint64_t word = uint64_t(key) << 32 | (0xffffffffu - token_at(first, at));
    return {block_largest(bad ? Best::BAD : word)};
}

// Counts a slice's logits by bins.
__device__ __forceinline__ void fill_bins(const Logits& own, int32_t top_bin, uint32_t* bins) {
    clear_bins(bins);
#pragma unroll
    for (int i = 0; i < PIECES * 4; ++i) {
        if (is_finite(own.x[i])) {
            atomicAdd(&bins[near_bin(own.x[i], top_bin)], 1u);
        }
    }
}

// Calls put(place, i) for each of a thread's logits that is listed.
template <typename Put>
__device__ __forceinline__ void put_listed(const Logits& own, const Listed& listed, Put put) {
    SHARED(uint32_t, count, 1);
    if (threadIdx.x == 0) {
        count[0] = 0;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PIECES * 4; ++i) {
        if (is_finite(own.x[i]) && bin_of(own.x[i]) >= listed.lowest) {
            put(atomicAdd(count, 1u), i);
        }
    }
    __syncthreads();
}

// What log-probabilities need of a slice that has something to draw.
__device__ __forceinline__ void describe_raw(const Logits& own, int32_t num_top, const Slices& slices,
                                             uint32_t* bins, SliceResult& result) {
    const float largest = result.raw.largest();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES * 4; ++i) {
        sum += expf(own.x[i] - largest);
    }
    result.sum = block_total(sum);
    if (num_top <= 0) {
        return;
    }
    const int32_t top_bin = bin_of(largest);
    fill_bins(own, top_bin, bins);
    const Listed listed = choose_bins(bins, top_bin, uint32_t(num_top), TOP_ROOM);
    TopToken* out = slices.likeliest + blockIdx.x * TOP_ROOM;
    put_listed(own, listed, [&](uint32_t place, int i) {
        out[place] = {token_at(blockIdx.x * SLICE, i), own.x[i]};
    });
    result.likeliest = listed;
}

// What drawing needs of a slice that has something to draw.
__device__ __forceinline__ void describe_adjusted(const Logits& own, const SampleRow& request,
                                                  const Row& row, const Slices& slices, uint32_t* bins,
                                                  SliceResult& result) {
    const float largest = result.adjusted.largest();
    const bool is_filtered = request.is_filtered(row.vocab_size);
    if (!is_filtered || request.top_p < 1.0f) {
        const Weights weights{largest, request.scale()};
        uint64_t sum = 0;
#pragma unroll
        for (int i = 0; i < PIECES * 4; ++i) {
            sum += weights.of(own.x[i]);
        }
        result.weight = block_total(sum);
    }
    if (!is_filtered) {
        return;
    }
    const int32_t top_bin = bin_of(largest);
    fill_bins(own, top_bin, bins);
    const uint32_t wanted =
        request.has_top_k(row.vocab_size) ? min(request.top_k, CANDIDATES) : CANDIDATES;
    const Listed listed = choose_bins(bins, top_bin, wanted, CANDIDATE_ROOM);
    uint16_t* out = slices.candidates + blockIdx.x * CANDIDATE_ROOM;
    put_listed(own, listed,
               [&](uint32_t place, int i) { out[place] = uint16_t(token_at(0, i)); });
    result.candidates = listed;
}

// Bias, bans and penalties of this slice's tokens; each list has a token once. Raw
// logits are kept aside.
struct Adjustment {
    const Sampling& p;
    const SampleRow& request;
    const Row& row;
    // The tokens that are concerned.
    uint32_t first;
    uint32_t end;

    // Calls visit(token, place in its list) for one list's tokens; then the block meets.
    template <typename Token, typename Visit>
    __device__ __forceinline__ void for_list(const uint32_t (&borders)[2], Token token_of, Visit visit) const {
        for (uint32_t i = borders[0] + threadIdx.x; i < borders[1]; i += SAMPLE_THREADS) {
            const uint32_t token = token_of(i);
            if (token >= first && token < end) {
                visit(token, i);
            }
        }
        __syncthreads();
    }

    // Calls visit(token, its raw logit) for the tokens of all lists, in turn.
    template <typename Visit> __device__ __forceinline__ void for_lists(Visit visit) const {
        for_list(request.bias, [&](uint32_t i) { return p.biases[i].token; },
                 [&](uint32_t token, uint32_t i) { visit(token, p.bias_raw[i]); });
        for_list(request.banned, [&](uint32_t i) { return p.banned[i]; },
                 [&](uint32_t token, uint32_t i) { visit(token, p.banned_raw[i]); });
        for_list(request.seen, [&](uint32_t i) { return p.seen[i].token; },
                 [&](uint32_t token, uint32_t i) { visit(token, p.seen_raw[i]); });
    }

    __device__ __forceinline__ void save() const {
        for_lists([&](uint32_t token, float& raw) { raw = row.logits[token]; });
    }

    // Puts back what was saved.
    __device__ __forceinline__ void undo() const {
        for_lists([&](uint32_t token, float& raw) { row.logits[token] = raw; });
    }

    __device__ __forceinline__ void apply() const {
        for_list(request.bias, [&](uint32_t i) { return p.biases[i].token; },
                 [&](uint32_t token, uint32_t i) { row.logits[token] += p.biases[i].bias; });
        for_list(request.banned, [&](uint32_t i) { return p.banned[i]; },
                 [&](uint32_t token, uint32_t) { row.logits[token] = MINUS_INFINITY; });
        for_list(request.seen, [&](uint32_t i) { return p.seen[i].token; },
                 [&](uint32_t token, uint32_t i) {
                     float logit = row.logits[token];
                     logit = logit > 0.0f ? logit / request.repetition_penalty
                                          : logit * request.repetition_penalty;
                     const uint32_t output_count = p.seen[i].output_count;
                     if (output_count > 0) {
                         logit -= request.frequency_penalty * float(output_count);
                         logit -= request.presence_penalty;
                     }
                     row.logits[token] = logit;
                 });
    }
};

// Leaves this block's slice of a row described.
__device__ __forceinline__ void scan_slice(const Sampling& p, const SampleRow& request, const Row& row,
                                           const Slices& slices, uint32_t* bins) {
    const uint32_t first = blockIdx.x * SLICE;
    Logits own = load_slice(with_all(row), first);
    SliceResult result{};
    result.raw = best_of(own, first);
    result.candidates = result.likeliest = {LOWEST_BIN, 0};
    if (request.num_logprobs >= 0 && result.raw.drawable()) {
        describe_raw(own, request.num_logprobs, slices, bins, result);
    }
    result.adjusted = result.raw;
    if (request.is_adjusted()) {
        const Adjustment adjustment{p, request, row, first, min(first + SLICE, row.vocab_size)};
        adjustment.save();
        adjustment.apply();
        own = load_slice(row, first);
        result.adjusted = best_of(own, first);
    }
    if (!request.is_greedy() && result.adjusted.drawable()) {
        describe_adjusted(own, request, row, slices, bins, result);
    }
    if (threadIdx.x == 0) {
        slices.mine() = result;
    }
}
