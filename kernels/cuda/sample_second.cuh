// A second look at a row's slices, where the border of what is kept is known but for a few bins:
// what is above them is added up, and of what is in them the row's last block finds the border
// in order.
#pragma once

#include "sample_finish.cuh"

// Leaves of this block's slices what is kept for certain, and lists what may be.
__device__ __forceinline__ void scan_again(const SampleRow& request, const Row& row, const RowWork& work,
                                           const Stream& stream, const Range& range, float largest) {
    SHARED(float, sums, 2 * SAMPLE_WARPS);
    SHARED(uint32_t, counts, 2 * SAMPLE_WARPS);
    SHARED(uint32_t, taken, 1);
    if (threadIdx.x == 0) {
        taken[0] = 0;
    }
    __syncthreads();
    const float factor = request.scale() * LOG2_E;
    TopToken* members = work.candidates + blockIdx.x * CANDIDATE_ROOM;
    for (uint32_t slice = stream.first; slice < stream.end; ++slice) {
        const uint32_t first = slice * SLICE;
        Logits own = stream.take(slice);
        if (row.allowed != nullptr) {
            leave_out(row, first, own);
        }
        float sum = 0.0f;
        uint32_t count = 0;
        uint32_t in_range = 0;
#pragma unroll
        for (int i = 0; i < PIECES * 4; ++i) {
            const float x = own.x[i];
            if (x >= range.high) {
                sum += power_of_two((x - largest) * factor);
                ++count;
            } else if (x >= range.low) {
                in_range |= 1u << i;
            }
        }
        if (in_range != 0) {
            uint32_t place = atomicAdd(taken, uint32_t(__popc(in_range)));
#pragma unroll
            for (int i = 0; i < PIECES * 4; ++i) {
                if ((in_range >> i & 1) != 0) {
                    if (place < CANDIDATE_ROOM) {
                        members[place] = {token_at(first, i), own.x[i]};
                    }
                    ++place;
                }
            }
        }
        // Slices take turns with the places, so that one meeting is enough.
        const int turn = int(slice % 2) * SAMPLE_WARPS;
        sum = warp_sum(sum);
        count = warp_total(count);
        if (lane_id() == 0) {
            sums[turn + warp_id()] = sum;
            counts[turn + warp_id()] = count;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            float kept = 0.0f;
            uint32_t num_kept = 0;
            for (int warp = 0; warp < SAMPLE_WARPS; ++warp) {
                kept += sums[turn + warp];
                num_kept += counts[turn + warp];
            }
            work.slices[slice].kept = kept;
            work.slices[slice].num_kept = num_kept;
        }
    }
    if (threadIdx.x == 0) {
        work.runs[blockIdx.x].num_members = taken[0];
    }
}

// 64-bit sums by slices, of two words each, as shared memory adds 32 bits at a time.
__device__ __forceinline__ void add_to_slice(uint32_t* low, uint32_t* high, uint32_t slice, uint64_t amount) {
    const uint32_t word = uint32_t(amount);
    const uint32_t carry = atomicAdd(&low[slice], word) > 0xffffffffu - word;
    atomicAdd(&high[slice], uint32_t(amount >> 32) + carry);
}

// Finds the border of what is kept, and each slice's sum of that; false if more tokens than have
// room may be.
__device__ __forceinline__ bool settle(const SampleRow& request, const Row& row, const RowWork& work,
                                       const Weights& weights, const Range& range, uint64_t* room,
                                       uint64_t* sums, Border& border) {
    constexpr uint32_t OWN = ROOM / SAMPLE_THREADS;
    SHARED(uint32_t, low, MAX_SLICES);
    SHARED(uint32_t, high, MAX_SLICES);
    SHARED(uint32_t, cell, 2);
    const uint32_t len = block_total(threadIdx.x < work.num_runs ? work.runs[threadIdx.x].num_members : 0);
    if (len > ROOM) {
        return false;
    }
    if (threadIdx.x == 0) {
        cell[0] = 0;
    }
    uint64_t kept = 0;
    uint32_t num_kept = 0;
    if (threadIdx.x < work.num_slices) {
        const SliceResult& slice = work.slices[threadIdx.x];
        kept = uint64_t(double(slice.kept) * double(ONE));
        num_kept = slice.num_kept;
        low[threadIdx.x] = high[threadIdx.x] = 0;
    }
    kept = block_total(kept);
    num_kept = block_total(num_kept);
    for (uint32_t run = 0; run < work.num_runs; ++run) {
        const uint32_t count = work.runs[run].num_members;
        for (uint32_t i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
            const TopToken own = work.candidates[run * CANDIDATE_ROOM + i];
            room[atomicAdd(cell, 1u)] = in_order(own.logprob, own.token);
        }
    }
    block_sort(room, len);

    // Of those in order, a thread's words stand together.
    const auto weight_at = [&](uint32_t place) {
        return place < len ? weights.of(logit_in_order(room[place])) : 0;
    };
    uint32_t num = 0;
    if (request.has_top_k(row.vocab_size)) {
        num = min(max(request.top_k, num_kept) - num_kept, len);
    } else if (len > 0) {
        const uint64_t target = Target{true, request.top_p, 0}.of(scale_slices(work, weights, sums));
        if (threadIdx.x == 0) {
            cell[1] = kept < target ? len : 0;
        }
        uint64_t sum = 0;
#pragma unroll 1
        for (uint32_t i = 0; i < OWN; ++i) {
            sum += weight_at(threadIdx.x * OWN + i);
        }
        uint64_t before = kept + block_sums(sum).before;
#pragma unroll 1
        for (uint32_t i = 0; i < OWN; ++i) {
            const uint64_t own = weight_at(threadIdx.x * OWN + i);
            if (before < target && target <= before + own) {
                cell[1] = threadIdx.x * OWN + i + 1;
            }
            before += own;
        }
        __syncthreads();
        num = cell[1];
    }
    // The border, and what is kept of each slice.
    const uint64_t last = num > 0 ? room[num - 1] : 0;
    border = num > 0 ? Border{~uint32_t(last >> 32), uint32_t(last)}
                     : Border{key_of(range.high), NON_FINITE};
    for (uint32_t place = threadIdx.x; place < num; place += SAMPLE_THREADS) {
        add_to_slice(low, high, uint32_t(room[place]) / SLICE, weight_at(place));
    }
    __syncthreads();
    if (threadIdx.x < work.num_slices) {
        const uint64_t members = uint64_t(high[threadIdx.x]) << 32 | low[threadIdx.x];
        sums[threadIdx.x] = uint64_t(double(work.slices[threadIdx.x].kept) * double(ONE)) + members;
    }
    __syncthreads();
    return true;
}
