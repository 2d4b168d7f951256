// Counts what slots sampled last among the tokens that their requests have seen: the step that
// sampled it was not read back when the lists were made.
#include "sample_request.cuh"

struct UncountedRow {
    uint32_t slot;
    // Borders of its list, which has each token once; its last entry is free.
    uint32_t seen[2];
};

struct CountLast {
    // [rows]
    const UncountedRow* rows;
    SeenToken* seen;
    // [slots]
    const uint32_t* last_sampled;
};

// Grid: [rows].
KERNEL(count_last, CountLast, 128) {
    SHARED(uint32_t, found, 1);
    const UncountedRow row = p.rows[blockIdx.x];
    const uint32_t token = p.last_sampled[row.slot];
    const uint32_t end = row.seen[1] - 1;
    if (threadIdx.x == 0) {
        found[0] = 0;
    }
    __syncthreads();
    for (uint32_t i = row.seen[0] + threadIdx.x; i < end; i += blockDim.x) {
        if (p.seen[i].token == token) {
            p.seen[i].output_count += 1;
            found[0] = 1;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0 && found[0] == 0) {
        p.seen[end] = {token, 1};
    }
}
