// Which experts each row goes to, and the rows in the order of experts.
#include "sconce.cuh"

struct Route {
    // [rows, num_experts]
    const float* scores;
    // [rows, top_k], the likeliest first.
    uint32_t* experts;
    // What each counts for, [rows, top_k].
    float* weights;
    uint32_t rows;
    // At most LANE_EXPERTS * WARP.
    uint32_t num_experts;
    uint32_t top_k;
    // Whether a row's weights are made to sum to 1.
    uint32_t normalise;
};

// Experts of a lane.
constexpr int LANE_EXPERTS = 16;

#define NEGATIVE_INFINITY (-__builtin_inff())

// A warp for each row: the softmax of its scores, of which the largest is taken top_k times,
// of equal ones the lowest expert's. Of NaN, which are all or none of a row, the first.
KERNEL(route, Route, 128) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (row >= p.rows) {
        return;
    }
    const float* scores = p.scores + uint64_t(row) * p.num_experts;
    float x[LANE_EXPERTS];
    float most = NEGATIVE_INFINITY;
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; ++i) {
        const uint32_t expert = i * WARP + lane_id();
        x[i] = expert < p.num_experts ? scores[expert] : NEGATIVE_INFINITY;
        most = fmaxf(most, x[i]);
    }
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; ++i) {
        const uint32_t expert = i * WARP + lane_id();
        x[i] = expert < p.num_experts ? expf(x[i] - most) : 0.0f;
        sum += x[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; ++i) {
        const uint32_t expert = i * WARP + lane_id();
        // No probability is below 0: what is no expert, or was taken, is not taken.
        x[i] = expert < p.num_experts ? x[i] / sum : -1.0f;
    }
    uint32_t* experts = p.experts + uint64_t(row) * p.top_k;
    float* weights = p.weights + uint64_t(row) * p.top_k;
    float total = 0.0f;
    for (uint32_t choice = 0; choice < p.top_k; ++choice) {
        float best = x[0];
        uint32_t expert = lane_id();
#pragma unroll
        for (int i = 1; i < LANE_EXPERTS; ++i) {
            if (x[i] > best) {
                best = x[i];
                expert = i * WARP + lane_id();
            }
        }
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, best, offset);
            const uint32_t others = __shfl_xor_sync(ALL_LANES, expert, offset);
            if (other > best || (!(other < best) && others < expert)) {
                best = other;
                expert = others;
            }
        }
#pragma unroll
        for (int i = 0; i < LANE_EXPERTS; ++i) {
            if (expert == uint32_t(i * WARP + lane_id())) {
                x[i] = -1.0f;
            }
        }
        total += best;
        if (lane_id() == 0) {
            experts[choice] = expert;
            weights[choice] = best;
        }
    }
    __syncwarp();
    if (p.normalise != 0) {
        for (uint32_t choice = lane_id(); choice < p.top_k; choice += WARP) {
            weights[choice] /= total;
        }
    }
}

struct SortByExpert {
    // [choices]
    const uint32_t* experts;
    // The row at each place, [choices].
    uint32_t* sources;
    // The place of each choice, [choices].
    uint32_t* places;
    // The first place of each expert, and the end, [num_experts + 1].
    uint32_t* starts;
    uint32_t choices;
    uint32_t num_experts;
    // Choices of a row.
    uint32_t top_k;
    uint32_t padding;
};

// A counting sort of all choices by expert, those of one in the order of rows. A warp for each
// expert counts the choices before its own, then gives its own their places: no warp waits
// for another.
KERNEL(sort_by_expert, SortByExpert, 256) {
    const uint32_t expert = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (expert >= p.num_experts) {
        return;
    }
    uint32_t start = 0;
    for (uint32_t first = 0; first < p.choices; first += WARP) {
        const uint32_t choice = first + lane_id();
        const bool is_before = choice < p.choices && p.experts[choice] < expert;
        start += __popc(__ballot_sync(ALL_LANES, is_before));
    }
    if (lane_id() == 0) {
        p.starts[expert] = start;
        if (expert + 1 == p.num_experts) {
            p.starts[p.num_experts] = p.choices;
        }
    }
    for (uint32_t first = 0; first < p.choices; first += WARP) {
        const uint32_t choice = first + lane_id();
        const bool is_own = choice < p.choices && p.experts[choice] == expert;
        const uint32_t own = __ballot_sync(ALL_LANES, is_own);
        if (is_own) {
            const uint32_t place = start + __popc(own & ((1u << lane_id()) - 1));
            p.sources[place] = choice / p.top_k;
            p.places[choice] = place;
        }
        start += __popc(own);
    }
}
