// out[r] = table[token_ids[r]]: a block a row, 16 bytes a thread and turn.
#include "sconce.cuh"

struct EmbeddingGather {
    // [rows]
    const uint32_t* token_ids;
    // [vocab_size, hidden]
    const void* table;
    // [rows, hidden]
    void* out;
    // A row's 16-byte pieces.
    uint32_t pieces;
};

KERNEL(embedding_gather, EmbeddingGather, 256) {
    using Piece = Vector<uint32_t>;
    const size_t row = blockIdx.x;
    const Piece* from = static_cast<const Piece*>(p.table) + size_t(p.token_ids[row]) * p.pieces;
    Piece* to = static_cast<Piece*>(p.out) + row * p.pieces;
    for (uint32_t i = threadIdx.x; i < p.pieces; i += blockDim.x) {
        to[i] = from[i];
    }
}
