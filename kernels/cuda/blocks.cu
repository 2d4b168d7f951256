// Copies whole KV blocks: within a cache, between caches, or to and from pinned
// host memory, which the device addresses like its own. A block of the grid moves
// one piece of one KV block of one layer.
#include "sconce.cuh"

struct CopyBlocks {
    // [num_pairs, 2]: from, to.
    const uint32_t* pairs;
    const void* from;
    void* to;
    // Bytes from one layer to the next, in each.
    uint64_t from_layer_bytes;
    uint64_t to_layer_bytes;
    // Bytes of one KV block of one layer; a multiple of 16.
    uint32_t block_bytes;
};

// Grid: [pairs, layers].
KERNEL(copy_blocks, CopyBlocks, 256) {
    using Piece = Vector<uint32_t>;
    const uint64_t source = p.pairs[blockIdx.x * 2];
    const uint64_t target = p.pairs[blockIdx.x * 2 + 1];
    const auto* from = reinterpret_cast<const Piece*>(
        static_cast<const char*>(p.from) + blockIdx.y * p.from_layer_bytes + source * p.block_bytes);
    auto* to = reinterpret_cast<Piece*>(
        static_cast<char*>(p.to) + blockIdx.y * p.to_layer_bytes + target * p.block_bytes);
    for (uint32_t i = threadIdx.x; i < p.block_bytes / 16; i += blockDim.x) {
        to[i] = from[i];
    }
}
