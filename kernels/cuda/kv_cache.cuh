// The paged KV cache of one layer: [num_blocks, 2 (K, V), num_kv_heads, 16, head_dim].
// In e4m3 an element stands for itself times its layer's scale, of K or of V.
#pragma once

#include "sconce.cuh"

enum KeyOrValue { KEYS = 0, VALUES = 1 };

// Where the head's row of a block's token starts.
__device__ __forceinline__ size_t cache_row(uint32_t block, KeyOrValue which, uint32_t kv_head,
                                            uint32_t num_kv_heads, uint32_t offset,
                                            uint32_t head_dim) {
    const size_t head = (size_t(block) * 2 + which) * num_kv_heads + kv_head;
    return (head * BLOCK_TOKENS + offset) * head_dim;
}
