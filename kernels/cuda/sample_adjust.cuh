// What a request changes of logits in memory before it is drawn from.
#pragma once

#include "sample_request.cuh"

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
