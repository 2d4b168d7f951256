// Draws a token from each row of logits; what is asked of a row and in which order is
// kernels/src/ops/sampling.rs's. Nothing leaves the device.
//
// A block reads 8,192 logits of a row, once, and leaves what the row's last block needs
// to finish it: the largest, sums, and the candidates above a threshold of its own. What
// all slices have told of is above the highest of those thresholds. Nearly always that
// is enough; a row for which it is not is searched whole by a second launch.
//
// Likelihoods are weights exp((logit - largest) / temperature) in fixed point, so sums
// are exact: the same in any order. Slices depend on the vocabulary only, and sums in
// float have an order of their own: a row's result depends on nothing but the row.
#include "sample_rest.cuh"
#include "sample_slice.cuh"

// Whether this is the last block of its row to come here: it sees what the others left.
__device__ __forceinline__ bool is_last(RowState& state) {
    SHARED(uint32_t, last, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last[0] = atomicAdd(&state.ticket, 1u) + 1 == gridDim.x;
        if (last[0]) {
            state.ticket = 0;
        }
        __threadfence();
    }
    __syncthreads();
    return last[0];
}

// Grid: [slices, rows].
KERNEL_RESIDENT(sampling, Sampling, SAMPLE_THREADS, 2) {
    SHARED(uint64_t, room, ROOM);
    const uint32_t r = blockIdx.y;
    const SampleRow& request = p.requests[r];
    const Row row = row_of(p, request, r);
    const Slices slices = slices_of(p.work, p.vocab_size, r);
    scan_slice(p, request, row, slices, reinterpret_cast<uint32_t*>(room));
    if (!is_last(p.work.rows[r])) {
        return;
    }
    SampledRow result{NON_FINITE, 0.0f, 0};
    uint32_t open = 0;
    finish_row(p, request, row, slices, room, p.top + size_t(r) * MAX_TOP, result, open);
    if (threadIdx.x == 0) {
        p.out[r] = result;
        p.work.rows[r].open = open;
    }
}

// Finishes the rows that `sampling` left open. Grid: [rows].
KERNEL_RESIDENT(sampling_rest, Sampling, SAMPLE_THREADS, 1) {
    SHARED(uint64_t, room, ROOM);
    const uint32_t r = blockIdx.x;
    const uint32_t open = p.work.rows[r].open;
    if (open == 0) {
        return;
    }
    const SampleRow& request = p.requests[r];
    const Row row = row_of(p, request, r);
    SampledRow result = p.out[r];
    finish_rest(p, request, row, slices_of(p.work, p.vocab_size, r), open, room,
                p.top + size_t(r) * MAX_TOP, result);
    if (threadIdx.x == 0) {
        p.out[r] = result;
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
    Workspace work;
    uint32_t vocab_size;
};

// Log-probabilities of given tokens, for prompts and scoring; NaN where the row has no
// distribution. Grid: [slices, rows].
KERNEL_RESIDENT(token_logprobs, TokenLogprobs, SAMPLE_THREADS, 2) {
    SHARED(uint64_t, room, ROOM);
    const uint32_t r = blockIdx.y;
    const uint32_t token = p.tokens[r];
    const uint32_t num_top = p.num_top[r];
    const Row row{const_cast<float*>(p.logits) + size_t(r) * p.vocab_size, p.vocab_size, nullptr};
    const Slices slices = slices_of(p.work, p.vocab_size, r);
    const Logits own = load_slice(row, blockIdx.x * SLICE);
    SliceResult mine{};
    mine.raw = best_of(own, blockIdx.x * SLICE);
    mine.likeliest = {LOWEST_BIN, 0};
    if (mine.raw.drawable()) {
        describe_raw(own, int32_t(num_top), slices, reinterpret_cast<uint32_t*>(room), mine);
    }
    if (threadIdx.x == 0) {
        slices.mine() = mine;
    }
    if (!is_last(p.work.rows[r])) {
        return;
    }
    SampledRow result{token, NAN, 0};
    uint32_t open = 0;
    const Best best = slices.best(true);
    if (best.drawable()) {
        const float log_sum = log_sum_exp(slices, best.largest());
        result.num_top = report_listed(slices, num_top, log_sum, room, p.top + size_t(r) * MAX_TOP);
        result.logprob = row.logits[token] - log_sum;
        open = result.num_top == NOT_ENOUGH ? LIKELIEST_OPEN : 0;
    }
    if (threadIdx.x == 0) {
        p.out[r] = result;
        p.work.rows[r].open = open;
    }
}

// Finishes the rows that `token_logprobs` left open. Grid: [rows].
KERNEL_RESIDENT(token_logprobs_rest, TokenLogprobs, SAMPLE_THREADS, 1) {
    SHARED(uint64_t, room, ROOM);
    const uint32_t r = blockIdx.x;
    if (p.work.rows[r].open == 0) {
        return;
    }
    const Row row{const_cast<float*>(p.logits) + size_t(r) * p.vocab_size, p.vocab_size, nullptr};
    const Slices slices = slices_of(p.work, p.vocab_size, r);
    const float largest = slices.best(true).largest();
    const uint32_t num_top = report_of_row(row, largest, p.num_top[r], log_sum_exp(slices, largest), room,
                                           p.top + size_t(r) * MAX_TOP);
    if (threadIdx.x == 0) {
        p.out[r].num_top = num_top;
    }
}
