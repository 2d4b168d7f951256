// Changes entries of the block tables, which stay on the device from step to step.
#include "sconce.cuh"

struct Edit {
    // The entry's place in `tables`; no two edits of a launch have the same.
    uint32_t entry;
    uint32_t block;
};

struct TableEdits {
    // [num_edits]
    const Edit* edits;
    // [num_groups, max_num_seqs, blocks_per_seq]
    uint32_t* tables;
    uint32_t num_edits;
};

// Grid: [edits by 256].
KERNEL(table_edits, TableEdits, 256) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.num_edits) {
        const Edit edit = p.edits[i];
        p.tables[edit.entry] = edit.block;
    }
}
