// Draws a token from each row of logits; what is asked of a row and in which order is
// kernels/src/ops/sampling.rs's. A block a row, nothing leaves the device.
//
// Nothing is sorted. Likelihoods are weights exp((logit - largest) / temperature) in
// fixed point, so sums are exact: the same in any order, whatever threads do. A
// filter is a border in the order of candidates (larger logit first, then lower id),
// found by descending through the bits of the logit, eight at a time, with a
// histogram of counts (top-k) or of weights (top-p).
#include "sconce.cuh"

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
    // NON_FINITE where the row holds a NaN, an infinity, or nothing to draw.
    uint32_t token;
    float logprob;
    uint32_t num_top;
};

struct TopToken {
    uint32_t token;
    float logprob;
};

struct Sampling {
    // [rows, vocab_size]; changed by bias, bans and penalties.
    float* logits;
    // [rows]
    const SampleRow* requests;
    const TokenBias* biases;
    const uint32_t* banned;
    const SeenToken* seen;
    // Room for as many raw logits as the lists have tokens.
    float* bias_raw;
    float* banned_raw;
    float* seen_raw;
    // [rows]
    SampledRow* out;
    // [rows, MAX_TOP], most likely first
    TopToken* top;
    uint32_t vocab_size;
};

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / WARP;
constexpr uint32_t MAX_TOP = 32;
constexpr uint32_t NON_FINITE = 0xffffffffu;
// Below this temperature the likeliest token is all that remains.
constexpr float GREEDY_BELOW = 1e-5f;
constexpr float EVEN_ABOVE = 1e9f;
// A weight of 1; weights of 2^23 tokens sum to less than 2^64.
constexpr float ONE = 1099511627776.0f;
constexpr int DIGIT_BITS = 8;
constexpr int DIGITS = 1 << DIGIT_BITS;

// Larger for larger logits, in the order of unsigned numbers.
__device__ __forceinline__ uint32_t key_of(float logit) {
    const uint32_t bits = __float_as_uint(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// A candidate's place in the order: those before the border and itself stay.
struct Border {
    uint32_t key;
    uint32_t token;

    __device__ __forceinline__ bool keeps(float logit, uint32_t candidate) const {
        const uint32_t own = key_of(logit);
        return own > key || (own == key && candidate <= token);
    }
};

// What all threads of a row's block work with.
struct Row {
    float* logits;
    uint32_t vocab_size;
    float largest;
    float scale;

    __device__ __forceinline__ uint64_t weight(float logit) const {
        return uint64_t(expf((logit - largest) * scale) * ONE);
    }
};

template <typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T x, Combine combine) {
    SHARED(T, partial, SAMPLE_WARPS);
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x = combine(x, __shfl_xor_sync(ALL_LANES, x, offset));
    }
    if (lane_id() == 0) {
        partial[warp_id()] = x;
    }
    __syncthreads();
    x = partial[0];
    for (int warp = 1; warp < SAMPLE_WARPS; ++warp) {
        x = combine(x, partial[warp]);
    }
    __syncthreads();
    return x;
}

// This thread's share of a row's tokens, in order of ids.
struct Span {
    uint32_t from;
    uint32_t to;
};

__device__ __forceinline__ Span own_span(const Row& row) {
    const uint32_t length = (row.vocab_size + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    const uint32_t from = min(threadIdx.x * length, row.vocab_size);
    return {from, min(from + length, row.vocab_size)};
}

// The last candidate, in order, that is needed for the amounts of it and of those
// before it to reach `target`. `amount(logit, token)` is 0 for what is out already; at
// least one is not.
template <typename Amount>
__device__ __forceinline__ Border find_border(const Row& row, uint64_t target, Amount amount) {
    SHARED(unsigned long long, sums, DIGITS);
    SHARED(uint64_t, found, 2);
    uint32_t prefix = 0;
    for (int shift = 32 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        for (int digit = threadIdx.x; digit < DIGITS; digit += SAMPLE_THREADS) {
            sums[digit] = 0;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < row.vocab_size; i += SAMPLE_THREADS) {
            const uint32_t key = key_of(row.logits[i]);
            // Only what shares the digits that are found.
            if ((uint64_t(key) >> (shift + DIGIT_BITS)) == (uint64_t(prefix) >> (shift + DIGIT_BITS))) {
                const uint64_t own = amount(row.logits[i], i);
                if (own > 0) {
                    atomicAdd(&sums[key >> shift & (DIGITS - 1)], static_cast<unsigned long long>(own));
                }
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            // From the largest digit down to the one at which the target is reached;
            // if rounding leaves it out of reach, to the last that has anything.
            uint64_t left = target;
            int digit = DIGITS - 1;
            int last = digit;
            uint64_t before_last = left;
            for (; digit >= 0; --digit) {
                if (sums[digit] == 0) {
                    continue;
                }
                last = digit;
                before_last = left;
                if (sums[digit] >= left) {
                    break;
                }
                left -= sums[digit];
            }
            found[0] = uint64_t(last);
            found[1] = before_last;
        }
        __syncthreads();
        prefix |= uint32_t(found[0]) << shift;
        target = found[1];
        __syncthreads();
    }
    // Of equal logits the lowest ids stay: all have the same amount.
    SHARED(uint32_t, counts, SAMPLE_THREADS);
    SHARED(uint32_t, last_token, 1);
    const auto [from, to] = own_span(row);
    uint32_t count = 0;
    uint64_t each = 0;
    for (uint32_t i = from; i < to; ++i) {
        if (key_of(row.logits[i]) == prefix) {
            const uint64_t own = amount(row.logits[i], i);
            count += own > 0;
            each = max(each, own);
        }
    }
    counts[threadIdx.x] = count;
    each = block_reduce(each, [](uint64_t a, uint64_t b) { return max(a, b); });
    if (threadIdx.x == 0) {
        // How many of the equals are needed, and which thread has the last of them.
        uint64_t needed = max(uint64_t(1), (target + each - 1) / each);
        last_token[0] = 0;
        for (int thread = 0; thread < SAMPLE_THREADS; ++thread) {
            const uint32_t here = counts[thread];
            counts[thread] = uint32_t(min(needed, uint64_t(here)));
            needed -= counts[thread];
        }
    }
    __syncthreads();
    uint32_t left = counts[threadIdx.x];
    for (uint32_t i = from; left > 0; ++i) {
        if (key_of(row.logits[i]) == prefix && amount(row.logits[i], i) > 0 && --left == 0) {
            atomicMax(last_token, i);
        }
    }
    __syncthreads();
    const Border border{prefix, last_token[0]};
    __syncthreads();
    return border;
}

// A number in [0, 1), of 53 bits, of the request's own sequence (Philox4x32-10,
// Salmon et al., 2011).
__device__ __forceinline__ uint64_t uniform_bits(const uint32_t (&seed)[2], uint32_t index) {
    uint32_t counter[4] = {index, 0, 0, 0};
    uint32_t key[2] = {seed[0], seed[1]};
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            key[0] += 0x9e3779b9u;
            key[1] += 0xbb67ae85u;
        }
        const uint32_t high0 = __umulhi(0xd2511f53u, counter[0]);
        const uint32_t low0 = 0xd2511f53u * counter[0];
        const uint32_t high1 = __umulhi(0xcd9e8d57u, counter[2]);
        const uint32_t low1 = 0xcd9e8d57u * counter[2];
        const uint32_t next[4] = {high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0};
        for (int i = 0; i < 4; ++i) {
            counter[i] = next[i];
        }
    }
    return (uint64_t(counter[0]) << 32 | counter[1]) >> 11;
}

// The token at which weights, added up in order of ids, pass uniform * total.
template <typename Weight>
__device__ __forceinline__ uint32_t draw(const Row& row, uint64_t uniform, Weight weight) {
    SHARED(uint64_t, sums, SAMPLE_THREADS);
    SHARED(uint32_t, drawn, 1);
    const auto [from, to] = own_span(row);
    uint64_t own = 0;
    for (uint32_t i = from; i < to; ++i) {
        own += weight(row.logits[i], i);
    }
    sums[threadIdx.x] = own;
    __syncthreads();
    uint64_t before = 0;
    uint64_t total = 0;
    for (int thread = 0; thread < SAMPLE_THREADS; ++thread) {
        before += thread < int(threadIdx.x) ? sums[thread] : 0;
        total += sums[thread];
    }
    // floor(uniform * total / 2^53) without a 128-bit product: below total always.
    const uint64_t high = uniform >> 27;
    const uint64_t low = uniform & ((uint64_t(1) << 27) - 1);
    const uint64_t target = (total >> 26) * high + ((total & ((uint64_t(1) << 26) - 1)) * high >> 26) +
                            ((total >> 26) * low >> 27);
    if (before <= target && target < before + own) {
        for (uint32_t i = from; i < to; ++i) {
            before += weight(row.logits[i], i);
            if (before > target) {
                drawn[0] = i;
                break;
            }
        }
    }
    __syncthreads();
    const uint32_t token = drawn[0];
    __syncthreads();
    return token;
}

// What one look at a row tells.
struct Scan {
    float largest;
    // The lowest id of the largest logit.
    uint32_t token;
    // NaN and +infinity cannot be drawn from, nor can nothing; -infinity may be there.
    bool drawable;
};

__device__ __forceinline__ Scan scan(const Row& row) {
    uint64_t best = 0;
    uint32_t bad = 0;
    for (uint32_t i = threadIdx.x; i < row.vocab_size; i += SAMPLE_THREADS) {
        const float logit = row.logits[i];
        bad |= !(is_finite(logit) || logit < 0.0f);
        best = max(best, uint64_t(key_of(logit)) << 32 | (0xffffffffu - i));
    }
    best = block_reduce(best, [](uint64_t a, uint64_t b) { return max(a, b); });
    bad = block_reduce(bad, [](uint32_t a, uint32_t b) { return a | b; });
    const uint32_t token = 0xffffffffu - uint32_t(best);
    const float largest = row.logits[token];
    return {largest, token, bad == 0 && is_finite(largest)};
}

// ln of the sum of exp(logit), the same bits whatever threads do: each thread sums
// its own stride in order, and the partial sums are added in order of the threads.
__device__ __forceinline__ float log_sum_exp(const Row& row) {
    SHARED(float, partial, SAMPLE_THREADS);
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < row.vocab_size; i += SAMPLE_THREADS) {
        sum += expf(row.logits[i] - row.largest);
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int thread = 0; thread < SAMPLE_THREADS; ++thread) {
        sum += partial[thread];
    }
    __syncthreads();
    return row.largest + logf(sum);
}

// The likeliest tokens, at most `num`, into `top`; how many there are.
__device__ __forceinline__ uint32_t report_top(const Row& row, uint32_t num, float log_sum, TopToken* top) {
    SHARED(TopToken, found, MAX_TOP);
    SHARED(uint32_t, count, 1);
    if (num == 0) {
        return 0;
    }
    const auto counted = [](float logit, uint32_t) { return uint64_t(is_finite(logit)); };
    const Border border = find_border(row, num, counted);
    if (threadIdx.x == 0) {
        count[0] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.vocab_size; i += SAMPLE_THREADS) {
        const float logit = row.logits[i];
        if (is_finite(logit) && border.keeps(logit, i)) {
            found[atomicAdd(count, 1u)] = {i, logit};
        }
    }
    __syncthreads();
    // Each finds its place.
    if (threadIdx.x < count[0]) {
        const TopToken own = found[threadIdx.x];
        uint32_t place = 0;
        for (uint32_t i = 0; i < count[0]; ++i) {
            const TopToken other = found[i];
            place += other.logprob > own.logprob ||
                     (other.logprob == own.logprob && other.token < own.token);
        }
        top[place] = {own.token, own.logprob - log_sum};
    }
    const uint32_t reported = count[0];
    __syncthreads();
    return reported;
}

// Bias, bans and penalties; each list has a token once. Raw logits are kept aside. Says
// whether there was anything to do.
__device__ __forceinline__ bool adjust(const Sampling& p, const SampleRow& request, const Row& row) {
    if (request.bias[0] == request.bias[1] && request.banned[0] == request.banned[1] &&
        request.seen[0] == request.seen[1]) {
        return false;
    }
    const auto raw = [&](uint32_t token) { return token < row.vocab_size ? row.logits[token] : 0.0f; };
    for (uint32_t i = request.bias[0] + threadIdx.x; i < request.bias[1]; i += SAMPLE_THREADS) {
        p.bias_raw[i] = raw(p.biases[i].token);
    }
    for (uint32_t i = request.banned[0] + threadIdx.x; i < request.banned[1]; i += SAMPLE_THREADS) {
        p.banned_raw[i] = raw(p.banned[i]);
    }
    for (uint32_t i = request.seen[0] + threadIdx.x; i < request.seen[1]; i += SAMPLE_THREADS) {
        p.seen_raw[i] = raw(p.seen[i].token);
    }
    __syncthreads();
    for (uint32_t i = request.bias[0] + threadIdx.x; i < request.bias[1]; i += SAMPLE_THREADS) {
        const TokenBias bias = p.biases[i];
        if (bias.token < row.vocab_size) {
            row.logits[bias.token] += bias.bias;
        }
    }
    __syncthreads();
    for (uint32_t i = request.banned[0] + threadIdx.x; i < request.banned[1]; i += SAMPLE_THREADS) {
        if (p.banned[i] < row.vocab_size) {
            row.logits[p.banned[i]] = -__builtin_inff();
        }
    }
    __syncthreads();
    for (uint32_t i = request.seen[0] + threadIdx.x; i < request.seen[1]; i += SAMPLE_THREADS) {
        const SeenToken seen = p.seen[i];
        if (seen.token >= row.vocab_size) {
            continue;
        }
        float logit = row.logits[seen.token];
        logit = logit > 0.0f ? logit / request.repetition_penalty : logit * request.repetition_penalty;
        if (seen.output_count > 0) {
            logit -= request.frequency_penalty * float(seen.output_count);
            logit -= request.presence_penalty;
        }
        row.logits[seen.token] = logit;
    }
    __syncthreads();
    return true;
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
    for (uint32_t i = request.bias[0] + threadIdx.x; i < request.bias[1]; i += SAMPLE_THREADS) {
        if (p.biases[i].token == token) {
            raw[0] = p.bias_raw[i];
        }
    }
    for (uint32_t i = request.banned[0] + threadIdx.x; i < request.banned[1]; i += SAMPLE_THREADS) {
        if (p.banned[i] == token) {
            raw[0] = p.banned_raw[i];
        }
    }
    for (uint32_t i = request.seen[0] + threadIdx.x; i < request.seen[1]; i += SAMPLE_THREADS) {
        if (p.seen[i].token == token) {
            raw[0] = p.seen_raw[i];
        }
    }
    __syncthreads();
    return raw[0];
}

__device__ __forceinline__ uint32_t choose(const SampleRow& request, const Row& row, uint32_t likeliest) {
    if (!(request.temperature >= GREEDY_BELOW)) {
        return likeliest;
    }
    Border border{0, NON_FINITE};
    const auto kept = [&](float logit, uint32_t token) {
        return is_finite(logit) && border.keeps(logit, token);
    };
    if (request.min_p > 0.0f) {
        const float bound = row.largest + logf(fminf(request.min_p, 1.0f)) / row.scale;
        border = {key_of(fminf(bound, row.largest)), NON_FINITE};
    }
    if (request.top_k > 0 && request.top_k < row.vocab_size) {
        border = find_border(row, request.top_k,
                             [&](float logit, uint32_t token) { return uint64_t(kept(logit, token)); });
    }
    const auto weight = [&](float logit, uint32_t token) {
        return kept(logit, token) ? row.weight(logit) : 0;
    };
    if (request.top_p < 1.0f) {
        uint64_t total = 0;
        for (uint32_t i = threadIdx.x; i < row.vocab_size; i += SAMPLE_THREADS) {
            total += weight(row.logits[i], i);
        }
        total = block_reduce(total, [](uint64_t a, uint64_t b) { return a + b; });
        const double target = double(fmaxf(request.top_p, 0.0f)) * double(total);
        border = find_border(row, max(uint64_t(1), uint64_t(target)), weight);
    }
    return draw(row, uniform_bits(request.seed, request.index), weight);
}

// Grid: [rows].
KERNEL(sampling, Sampling, SAMPLE_THREADS) {
    const SampleRow request = p.requests[blockIdx.x];
    Row row{p.logits + size_t(blockIdx.x) * p.vocab_size, p.vocab_size, 0.0f, 1.0f};
    SampledRow result{NON_FINITE, 0.0f, 0};
    Scan seen = scan(row);
    if (seen.drawable) {
        row.largest = seen.largest;
        float log_sum = 0.0f;
        if (request.num_logprobs >= 0) {
            log_sum = log_sum_exp(row);
            result.num_top = report_top(row, uint32_t(request.num_logprobs), log_sum,
                                        p.top + size_t(blockIdx.x) * MAX_TOP);
        }
        if (adjust(p, request, row)) {
            seen = scan(row);
            row.largest = seen.largest;
        }
        if (seen.drawable) {
            row.scale = 1.0f / fminf(request.temperature, EVEN_ABOVE);
            result.token = choose(request, row, seen.token);
            result.logprob = raw_logit(p, request, row, result.token) - log_sum;
        }
    }
    if (threadIdx.x == 0) {
        p.out[blockIdx.x] = result;
    }
}

struct TokenLogprobs {
    // [rows, vocab_size]
    const float* logits;
    // [rows]
    const uint32_t* tokens;
    // [rows]: likeliest tokens to report, at most MAX_TOP
    const uint32_t* num_top;
    // [rows]
    SampledRow* out;
    // [rows, MAX_TOP], most likely first
    TopToken* top;
    uint32_t vocab_size;
};

// Log-probabilities of given tokens, for prompts and scoring; NaN where the row has no
// distribution. Grid: [rows].
KERNEL(token_logprobs, TokenLogprobs, SAMPLE_THREADS) {
    const uint32_t token = p.tokens[blockIdx.x];
    Row row{const_cast<float*>(p.logits) + size_t(blockIdx.x) * p.vocab_size, p.vocab_size, 0.0f, 1.0f};
    SampledRow result{token, NAN, 0};
    const Scan seen = scan(row);
    if (seen.drawable) {
        row.largest = seen.largest;
        const float log_sum = log_sum_exp(row);
        result.num_top = report_top(row, p.num_top[blockIdx.x], log_sum, p.top + size_t(blockIdx.x) * MAX_TOP);
        result.logprob = row.logits[token] - log_sum;
    }
    if (threadIdx.x == 0) {
        p.out[blockIdx.x] = result;
    }
}
