// What sampling's kernels are given, and what blocks leave for each other.
#pragma once

#include "sample_row.cuh"

// With top-k of so many at most what is listed nearly always suffices.
constexpr uint32_t MOST_LISTED = 128;
// Draws from a whole row, before one from what it keeps.
constexpr uint32_t REJECTIONS = 4;

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
    // The slot that the token is kept for; -1: none.
    int32_t slot;

    // Below this temperature the likeliest token is all that remains.
    __device__ __forceinline__ bool is_greedy() const { return !(temperature >= 1e-5f); }
    __device__ __forceinline__ bool has_top_k(uint32_t vocab_size) const {
        return top_k > 0 && top_k < vocab_size;
    }
    __device__ __forceinline__ bool is_filtered(uint32_t vocab_size) const {
        return has_top_k(vocab_size) || top_p < 1.0f || min_p > 0.0f;
    }
    // Whether tokens are drawn from the whole row until one is kept (rejection sampling), which
    // needs no border but near it. What a small top-k keeps may be little of a row, and is listed.
    __device__ __forceinline__ bool is_drawn_by_rejection(uint32_t vocab_size) const {
        return is_filtered(vocab_size) && !(has_top_k(vocab_size) && top_k <= MOST_LISTED);
    }
    // Whether its largest logits are listed. Of a large top-k or of min-p alone they seldom would
    // settle what rejection does not.
    __device__ __forceinline__ bool needs_list(uint32_t vocab_size) const {
        return is_filtered(vocab_size) && (!is_drawn_by_rejection(vocab_size) || top_p < 1.0f ||
                                           (has_top_k(vocab_size) && min_p > 0.0f));
    }
    // Whether its border may be searched for by sums: a nucleus, or more tokens than are listed.
    __device__ __forceinline__ bool needs_bins(uint32_t vocab_size) const {
        const bool has_k = has_top_k(vocab_size);
        return !(min_p > 0.0f) && (has_k ? !(top_p < 1.0f) && top_k > MOST_LISTED : top_p < 1.0f);
    }
    // Whether logits in memory change.
    __device__ __forceinline__ bool has_lists() const {
        return bias[0] < bias[1] || banned[0] < banned[1] || seen[0] < seen[1];
    }
    __device__ __forceinline__ bool is_adjusted() const { return has_lists() || mask >= 0; }
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
    // Of token_logprobs: the token's place among all, from 1.
    uint32_t rank;
};

struct TopToken {
    uint32_t token;
    float logprob;
};

constexpr uint32_t MAX_TOP = 32;
constexpr uint32_t NON_FINITE = 0xffffffffu;
constexpr uint32_t NOTHING_ALLOWED = 0xfffffffeu;

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

// What is known of a slice.
struct SliceResult {
    Best raw;
    Best adjusted;
    // Of exp(logit - largest), raw, beside the slice's own largest.
    float sum;
    // Of weights, adjusted, likewise.
    float weight;
    // The second launch's: weights beside the row's largest, and the number, of what is kept for
    // certain. Of token_logprobs: the number of tokens before the one that is asked about.
    float kept;
    uint32_t num_kept;
};

// What a run told of: all its tokens with a logit of `from` at least.
struct Listed {
    float from;
    uint32_t len;
};

// What is known of a run, the slices of a block.
struct RunResult {
    Listed candidates;
    Listed likeliest;
    // The highest of its bins.
    int32_t top_bin;
    // The second launch's.
    uint32_t num_members;
};

// What slices do not settle. The row's likeliest tokens:
constexpr uint32_t LIKELIEST_OPEN = 1;
// its draw, by a second look at its slices:
constexpr uint32_t DRAW_OPEN = 2;
// or only by a search of the whole of it.
constexpr uint32_t SEARCH_OPEN = 4;

// For the second look: what is at least `high` is kept; of what is at least `low` some may be.
struct Range {
    float high;
    float low;
};

struct RowState {
    // Runs that are done; zero before and after.
    uint32_t ticket;
    uint32_t open;
    Range range;
};

// Tokens that a run tells of at most.
constexpr uint32_t CANDIDATE_ROOM = 2048;
constexpr uint32_t LIKELIEST_ROOM = 512;
// Bins of weights.
constexpr uint32_t WEIGHT_BINS = 2048;

struct Workspace {
    // [rows, slices]
    SliceResult* slices;
    // [rows, runs]
    RunResult* runs;
    // [rows, runs, CANDIDATE_ROOM]: tokens and logits; in the second launch those of the range.
    TopToken* candidates;
    // [rows, runs, LIKELIEST_ROOM]: tokens and raw logits.
    TopToken* likeliest;
    // [rows, runs, WEIGHT_BINS]
    uint32_t* bins;
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
    // [slots]: what each sampled last.
    uint32_t* last_sampled;
    Workspace work;
    uint32_t vocab_size;

    // By one thread. What is no token is not kept: it would be another row's input.
    __device__ __forceinline__ void keep(const SampleRow& request, uint32_t token) const {
        if (request.slot >= 0 && token < NOTHING_ALLOWED) {
            last_sampled[request.slot] = token;
        }
    }
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
struct RowWork {
    SliceResult* slices;
    uint32_t num_slices;
    RunResult* runs;
    TopToken* candidates;
    TopToken* likeliest;
    uint32_t* bins;
    uint32_t num_runs;

    // This block's slices.
    __device__ __forceinline__ uint32_t first_slice() const { return min(blockIdx.x * slices_of_run(), num_slices); }
    __device__ __forceinline__ uint32_t end_slice() const {
        return min((blockIdx.x + 1) * slices_of_run(), num_slices);
    }
    __device__ __forceinline__ uint32_t slices_of_run() const { return (num_slices + num_runs - 1) / num_runs; }

    // The best of all slices.
    __device__ __forceinline__ Best best(bool raw) const {
        uint64_t word = 0;
        if (threadIdx.x < num_slices) {
            word = (raw ? slices[threadIdx.x].raw : slices[threadIdx.x].adjusted).word;
        }
        return {block_largest(word)};
    }
};

__device__ __forceinline__ RowWork work_of(const Workspace& work, uint32_t vocab_size, uint32_t row) {
    const uint32_t num = num_slices(vocab_size);
    const size_t run = size_t(row) * gridDim.x;
    return {work.slices + size_t(row) * num,
            num,
            work.runs + run,
            work.candidates + run * CANDIDATE_ROOM,
            work.likeliest + run * LIKELIEST_ROOM,
            work.bins + run * WEIGHT_BINS,
            gridDim.x};
}
