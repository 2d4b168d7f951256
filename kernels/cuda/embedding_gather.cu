// out[r] = table[token_ids[r]], or scale times that: a block a row, 16 bytes a thread and
// turn.
#include "sconce.cuh"

// A row whose token is what a slot sampled last has this bit and the slot.
constexpr uint32_t LAST_SAMPLED = 1u << 31;

struct EmbeddingGather {
    // [rows]
    const uint32_t* token_ids;
    // [vocab_size, hidden]
    const void* table;
    // [rows, hidden]
    void* out;
    // [slots]; null where no row has a slot.
    const uint32_t* last_sampled;
    // A row's 16-byte pieces.
    uint32_t pieces;
    // Of the kernels that scale, which round it to the table's type.
    float scale;
};

__device__ __forceinline__ uint32_t token_of(const EmbeddingGather& p, size_t row) {
    const uint32_t token = p.token_ids[row];
    return (token & LAST_SAMPLED) != 0 ? p.last_sampled[token & ~LAST_SAMPLED] : token;
}

KERNEL(embedding_gather, EmbeddingGather, 256) {
    using Piece = Vector<uint32_t>;
    const size_t row = blockIdx.x;
    const Piece* from = static_cast<const Piece*>(p.table) + size_t(token_of(p, row)) * p.pieces;
    Piece* to = static_cast<Piece*>(p.out) + row * p.pieces;
    for (uint32_t i = threadIdx.x; i < p.pieces; i += blockDim.x) {
        to[i] = from[i];
    }
}

template <typename T> __device__ __forceinline__ void embedding_scaled(const EmbeddingGather& p) {
    using Piece = Vector<T>;
    const float scale = to_float(from_float<T>(p.scale));
    const size_t row = blockIdx.x;
    const Piece* from = static_cast<const Piece*>(p.table) + size_t(token_of(p, row)) * p.pieces;
    Piece* to = static_cast<Piece*>(p.out) + row * p.pieces;
    for (uint32_t i = threadIdx.x; i < p.pieces; i += blockDim.x) {
        Piece piece = from[i];
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            piece.x[e] = from_float<T>(to_float(piece.x[e]) * scale);
        }
        to[i] = piece;
    }
}

KERNEL(embedding_scaled_bf16, EmbeddingGather, 256) { embedding_scaled<bf16>(p); }
KERNEL(embedding_scaled_f16, EmbeddingGather, 256) { embedding_scaled<f16>(p); }
