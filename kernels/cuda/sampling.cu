// Draws a token from each row of logits; what is asked of a row and in which order is
// kernels/src/ops/sampling.rs's. Nothing leaves the device.
//
// A block reads a run of a row's slices of 8,192 logits, once, and leaves what the row's last
// block needs to finish it: each slice's largest and sums, the run's largest logits in a list,
// and how its weights lie in bins. That is enough for a row of which few tokens are kept. For
// others it says which bins the border of what is kept is in, and a second launch looks at the
// slices once more; only where too many tokens are in those bins a block searches the row.
//
// Likelihoods are weights exp((logit - largest) / temperature), added up as integers or, within
// a slice, in an order of their own. Slices depend on the vocabulary only, lists are cut where
// it does not matter how slices are shared out: a row's result depends on nothing but the row.
#include "sample_rest.cuh"
#include "sample_slice.cuh"

// Whether this is the last block of its row to come here: it sees what the others left.
__device__ __forceinline__ bool is_last(RowState& state) {
    SHARED(uint32_t, last, 1);
    __syncthreads();
    if (gridDim.x == 1) {
        return true;
    }
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

// Grid: [runs, rows], runs of equally many slices but for the last.
KERNEL_RESIDENT(sampling, Sampling, SAMPLE_THREADS, 2) {
    DYNAMIC_SHARED(bytes);
    const SampleShared shared{bytes};
    const uint32_t r = blockIdx.y;
    const RowWork work = work_of(p.work, p.vocab_size, r);
    const Row raw{p.logits + size_t(r) * p.vocab_size, p.vocab_size, nullptr};
    const Stream stream(raw, bytes, work.first_slice(), work.end_slice());
    const SampleRow& request = p.requests[r];
    const Row row = row_of(p, request, r);
    scan_run(p, request, row, work, stream, shared);
    if (!is_last(p.work.rows[r])) {
        return;
    }
    finish_row(p, request, row, work, shared.room(), p.top + size_t(r) * MAX_TOP, p.out[r], p.work.rows[r]);
}

// Finishes the rows that `sampling` left open. The same grid.
KERNEL_RESIDENT(sampling_rest, Sampling, SAMPLE_THREADS, 2) {
    DYNAMIC_SHARED(bytes);
    const SampleShared shared{bytes};
    const uint32_t r = blockIdx.y;
    const uint32_t open = p.work.rows[r].open;
    // What is searched whole takes one block.
    const bool looks_again = (open & (DRAW_OPEN | SEARCH_OPEN)) == DRAW_OPEN;
    if (open == 0 || (!looks_again && blockIdx.x > 0)) {
        return;
    }
    const SampleRow& request = p.requests[r];
    const Row row = row_of(p, request, r);
    const RowWork work = work_of(p.work, p.vocab_size, r);
    const Range range = p.work.rows[r].range;
    if (looks_again) {
        const Stream stream(with_all(row), bytes, work.first_slice(), work.end_slice());
        scan_again(request, row, work, stream, range, work.best(false).largest());
        if (!is_last(p.work.rows[r])) {
            return;
        }
    }
    finish_rest(p, request, row, work, open, range, shared.room(), p.top + size_t(r) * MAX_TOP, p.out[r],
                p.work.rows[r]);
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

// How many of a thread's logits of a slice come before a token's: larger, or equal with a lower id.
__device__ __forceinline__ uint32_t num_before(const Logits& own, uint32_t first, float logit, uint32_t token) {
    uint32_t num = 0;
#pragma unroll
    for (int i = 0; i < PIECES * 4; ++i) {
        num += own.x[i] > logit || (own.x[i] == logit && token_at(first, i) < token);
    }
    return num;
}

// Log-probabilities of given tokens, for prompts and scoring; NaN where the row has no
// distribution. Grid: [runs, rows].
KERNEL_RESIDENT(token_logprobs, TokenLogprobs, SAMPLE_THREADS, 2) {
    DYNAMIC_SHARED(bytes);
    SHARED(uint32_t, taken, 3);
    const SampleShared shared{bytes};
    const uint32_t r = blockIdx.y;
    const RowWork work = work_of(p.work, p.vocab_size, r);
    const Row row{const_cast<float*>(p.logits) + size_t(r) * p.vocab_size, p.vocab_size, nullptr};
    const Stream stream(row, bytes, work.first_slice(), work.end_slice());
    const uint32_t token = p.tokens[r];
    const uint32_t num_top = p.num_top[r];
    if (threadIdx.x < 3) {
        taken[threadIdx.x] = 0;
    }
    Likeliest likeliest{work.likeliest + blockIdx.x * LIKELIEST_ROOM, shared.list_bins(0), taken};
    NoBins no_bins;
    for (uint32_t slice = stream.first; slice < stream.end; ++slice) {
        const uint32_t first = slice * SLICE;
        const Logits own = stream.take(slice);
        SliceResult& result = work.slices[slice];
        const uint32_t before = block_total(num_before(own, first, row.logits[token], token));
        if (threadIdx.x == 0) {
            result.num_kept = before;
        }
        const Look look = look_at(own, first, LOG2_E, num_top > 0, likeliest, false, no_bins);
        if (threadIdx.x == 0) {
            result.raw = look.best;
            result.sum = look.sum;
        }
    }
    if (threadIdx.x == 0) {
        work.runs[blockIdx.x].likeliest = {likeliest.from, likeliest.len()};
    }
    if (!is_last(p.work.rows[r])) {
        return;
    }
    SampledRow result{token, NAN, 0, 0};
    uint32_t open = 0;
    const Best best = work.best(true);
    if (best.drawable()) {
        const float log_sum = log_sum_exp(work, best.largest());
        result.num_top = report_listed(work, best.largest(), num_top, log_sum, shared.room(),
                                       p.top + size_t(r) * MAX_TOP);
        result.logprob = row.logits[token] - log_sum;
        result.rank = 1 + block_total(threadIdx.x < work.num_slices ? work.slices[threadIdx.x].num_kept : 0);
        open = result.num_top == NOT_ENOUGH ? LIKELIEST_OPEN : 0;
    }
    if (threadIdx.x == 0) {
        p.out[r] = result;
        p.work.rows[r].open = open;
    }
}

// Finishes the rows that `token_logprobs` left open. Grid: [1, rows]
KERNEL_RESIDENT(token_logprobs_rest, TokenLogprobs, SAMPLE_THREADS, 1) {
    DYNAMIC_SHARED(bytes);
    SHARED(uint64_t, sums, MAX_SLICES);
    const SampleShared shared{bytes};
    const uint32_t r = blockIdx.y;
    if (p.work.rows[r].open == 0) {
        return;
    }
    const Row row{const_cast<float*>(p.logits) + size_t(r) * p.vocab_size, p.vocab_size, nullptr};
    const RowWork work = work_of(p.work, p.vocab_size, r);
    const float largest = work.best(true).largest();
    const uint32_t num = p.num_top[r];
    Amount amount = raw_amount(largest);
    amount.border = find_border(row, {false, 0.0f, num}, amount, shared.room(), sums);
    const uint32_t num_top = report_above(row, amount, num, log_sum_exp(work, largest), shared.room(),
                                          p.top + size_t(r) * MAX_TOP);
    if (threadIdx.x == 0) {
        p.out[r].num_top = num_top;
    }
}
