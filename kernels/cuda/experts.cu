// Products of rows with the weights of the experts that they were routed to.
//
// A block takes up to ROWS places of one expert, and some of its weight's rows. Which expert,
// it finds out from where experts start: the host does not know, and starts as many blocks as
// the choices could need. Each output is one chain over k, whatever the other places hold.
#include "activation.cuh"

struct ExpertProduct {
    // [_, k]: rows, or places where `sources` is null.
    const void* x;
    // [num_experts, n, k]
    const void* w;
    // [num_experts, n, runs], of a weight in e4m3.
    const float* scales;
    // The row at each place.
    const uint32_t* sources;
    // The first place of each expert, and the end, [num_experts + 1].
    const uint32_t* starts;
    // [places, n], or [places, n / 2] of gated units.
    void* out;
    uint32_t num_experts;
    // Rows of an expert's weight; of gated units the first half are gates.
    uint32_t n;
    // A multiple of 8; of a weight in e4m3 of 16.
    uint32_t k;
    // Scales of a row of the weight; of more than one each is of 128 elements.
    uint32_t runs;
};

// Places of a block.
constexpr int ROWS = 32;
// Rows of the weight of a block; a warp has 16 of them.
constexpr int COLUMNS = 64;
constexpr int WARPS = 4;
// Elements of k that are in shared memory at a time, twice.
constexpr int DEPTH = 64;
// 16-byte pieces of them.
constexpr int PIECES = DEPTH / 8;
// Pieces from one row to the next in shared memory, so that eight rows' lie in different banks.
constexpr int STRIDE = PIECES + 1;

// The part of an expert's places that is block `index`'s; false if there is none. Every
// warp finds it alone.
__device__ __forceinline__ bool find_places(const ExpertProduct& p, uint32_t index,
                                            uint32_t& expert, uint32_t& first, uint32_t& end) {
    uint32_t before = 0;
    for (uint32_t base = 0; base < p.num_experts; base += WARP) {
        const uint32_t own = base + lane_id();
        const uint32_t start = own < p.num_experts ? p.starts[own] : 0;
        const uint32_t stop = own < p.num_experts ? p.starts[own + 1] : 0;
        const uint32_t parts = (stop - start + ROWS - 1) / ROWS;
        // The parts up to this lane's, its own included.
        uint32_t upto = parts;
#pragma unroll
        for (int offset = 1; offset < WARP; offset *= 2) {
            const uint32_t lower = __shfl_up_sync(ALL_LANES, upto, offset);
            upto += lane_id() >= offset ? lower : 0;
        }
        const uint32_t reached = __ballot_sync(ALL_LANES, before + upto > index);
        if (reached != 0) {
            const int lane = __ffs(reached) - 1;
            const uint32_t part = index - before - (upto - parts);
            expert = base + lane;
            first = __shfl_sync(ALL_LANES, start + part * ROWS, lane);
            end = min(__shfl_sync(ALL_LANES, stop, lane), first + ROWS);
            return true;
        }
        before += __shfl_sync(ALL_LANES, upto, WARP - 1);
    }
    return false;
}

// Elements that have one scale, where a row has several.
constexpr int RUN = 128;

// What is multiplied: pieces of places, then of the weight's rows.
template <typename T> struct Tiles {
    Vector<T>* pieces;

    __device__ __forceinline__ Vector<T>* row(int stage, int row) const {
        return pieces + (stage * (ROWS + COLUMNS) + row) * STRIDE;
    }
};

// The activation of what is no gated unit.
__device__ __forceinline__ float none(float x) { return x; }

// W: what the weights are of, T or e4m3, which is widened on its way into shared memory.
template <typename T, typename W, bool GATED, float (*ACT)(float)>
__device__ __forceinline__ void multiply(const ExpertProduct& p) {
    using Piece = Vector<T>;
    SHARED(Piece, memory, 2 * (ROWS + COLUMNS) * STRIDE);
    const Tiles<T> tiles = {memory};
    uint32_t expert = 0, first = 0, end = 0;
    if (!find_places(p, blockIdx.y, expert, first, end)) {
        return;
    }
    const uint32_t pieces_of_k = p.k / 8;
    // Outputs of the block, and of a row.
    constexpr int OUTPUTS = GATED ? COLUMNS / 2 : COLUMNS;
    const uint32_t of_row = GATED ? p.n / 2 : p.n;
    const uint32_t column = blockIdx.x * OUTPUTS;
    const Piece* x = static_cast<const Piece*>(p.x);
    constexpr bool IS_NARROW = sizeof(W) == 1;
    // Pieces in shared memory of one of the weight.
    constexpr int PARTS = IS_NARROW ? 2 : 1;
    using Held = Vector<uint32_t>;
    const Held* w =
        static_cast<const Held*>(p.w) + uint64_t(expert) * p.n * (pieces_of_k / PARTS);
    // A warp's 16 rows of the weight are 16 outputs, or the gates of 8 and what they gate.
    const auto weight_row = [&](int row, bool& valid) {
        const uint32_t output = column + (GATED ? row / 16 * 8 + row % 8 : row);
        valid = output < of_row;
        return output + (GATED && row / 8 % 2 == 1 ? of_row : 0);
    };
    const auto load = [&](int stage, uint32_t from) {
        for (int i = threadIdx.x; i < ROWS * PIECES; i += WARPS * WARP) {
            const int row = i / PIECES;
            const uint32_t piece = from + i % PIECES;
            const uint32_t place = first + row;
            const bool valid = place < end && piece < pieces_of_k;
            const uint32_t of = !valid ? 0 : p.sources == nullptr ? place : p.sources[place];
            // Nothing is read where it is not valid, but no address may leave the tensor.
            const Piece* source = x + uint64_t(of) * pieces_of_k + piece;
            copy_async(tiles.row(stage, row) + i % PIECES, valid ? source : x, valid);
        }
        constexpr int OF_ROW = PIECES / PARTS;
        for (int i = threadIdx.x; i < COLUMNS * OF_ROW; i += WARPS * WARP) {
            const int row = i / OF_ROW;
            const uint32_t piece = from / PARTS + i % OF_ROW;
            bool valid;
            const uint64_t of = weight_row(row, valid);
            valid = valid && piece < pieces_of_k / PARTS;
            const Held* source = w + of * (pieces_of_k / PARTS) + piece;
            Piece* to = tiles.row(stage, ROWS + row) + i % OF_ROW * PARTS;
            if constexpr (IS_NARROW) {
                const Held held = load_stream(source, valid);
                const uint64_t run = p.runs == 1 ? 0 : piece * 16 / RUN;
                const uint64_t row_of_all = uint64_t(expert) * p.n + of;
                const float scale = valid ? p.scales[row_of_all * p.runs + run] : 0.0f;
#pragma unroll
                for (int part = 0; part < 2; ++part) {
                    reinterpret_cast<Held*>(to)[part] =
                        widened<T>(held.x[part * 2], held.x[part * 2 + 1], scale);
                }
            } else {
                copy_async(to, valid ? source : w, valid);
            }
        }
        copy_async_commit();
    };
    float sums[2][2][4] = {};
    const bool has_second = end - first > 16;
    const int lane = lane_id();
    load(0, 0);
    for (uint32_t from = 0, stage = 0; from < pieces_of_k; from += PIECES, stage ^= 1) {
        copy_async_wait<0>();
        // What is there is seen by all, and the other stage was read by all.
        __syncthreads();
        if (from + PIECES < pieces_of_k) {
            load(stage ^ 1, from + PIECES);
        }
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step) {
            uint32_t weights[4];
            const int weight = ROWS + warp_id() * 16 + lane / 16 * 8 + lane % 8;
            ldmatrix_x4(weights, tiles.row(stage, weight) + step * 2 + lane / 8 % 2);
            const uint32_t low[2] = {weights[0], weights[1]};
            const uint32_t high[2] = {weights[2], weights[3]};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (half == 1 && !has_second) {
                    break;
                }
                uint32_t rows[4];
                ldmatrix_x4(rows,
                            tiles.row(stage, half * 16 + lane % 16) + step * 2 + lane / 16);
                mma<T>(sums[half][0], rows, low);
                mma<T>(sums[half][1], rows, high);
            }
        }
    }
    // Two elements a word; every row has an even number of them.
    uint32_t* out = static_cast<uint32_t*>(p.out);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            const uint32_t place = first + half * 16 + pair * 8 + lane / 4;
            if (place >= end) {
                continue;
            }
            const float* low = &sums[half][0][pair * 2];
            const float* high = &sums[half][1][pair * 2];
            const auto store = [&](uint32_t at, float left, float right) {
                if (at < of_row) {
                    out[(uint64_t(place) * of_row + at) / 2] = pack<T>(left, right);
                }
            };
            if constexpr (GATED) {
                store(column + warp_id() * 8 + lane % 4 * 2, ACT(low[0]) * high[0],
                      ACT(low[1]) * high[1]);
            } else {
                store(column + warp_id() * 16 + lane % 4 * 2, low[0], low[1]);
                store(column + warp_id() * 16 + 8 + lane % 4 * 2, high[0], high[1]);
            }
        }
    }
}

struct AddExperts {
    // [places, cols]
    const void* x;
    // What each choice counts for, [rows, top_k].
    const float* weights;
    // The place of each choice, [rows, top_k].
    const uint32_t* places;
    // [rows, cols]
    void* out;
    // 16-byte pieces of a row.
    uint32_t pieces;
    uint32_t rows;
    uint32_t top_k;
    uint32_t padding;
};

// A row's choices are summed in their order, and the sum is added to what is there.
template <typename T> __device__ __forceinline__ void add(const AddExperts& p) {
    using Piece = Vector<T>;
    const uint64_t total = uint64_t(p.rows) * p.pieces;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
        const uint64_t row = i / p.pieces;
        float sums[Piece::LEN] = {};
        for (uint64_t choice = row * p.top_k; choice < (row + 1) * p.top_k; ++choice) {
            const float weight = p.weights[choice];
            const Piece x =
                static_cast<const Piece*>(p.x)[uint64_t(p.places[choice]) * p.pieces + i % p.pieces];
#pragma unroll
            for (int e = 0; e < Piece::LEN; ++e) {
                sums[e] = fmaf(weight, to_float(x.x[e]), sums[e]);
            }
        }
        Piece out = static_cast<Piece*>(p.out)[i];
#pragma unroll
        for (int e = 0; e < Piece::LEN; ++e) {
            out.x[e] = from_float<T>(to_float(out.x[e]) + sums[e]);
        }
        static_cast<Piece*>(p.out)[i] = out;
    }
}

KERNEL(experts_silu_bf16, ExpertProduct, 128) { multiply<bf16, bf16, true, silu>(p); }
KERNEL(experts_silu_f16, ExpertProduct, 128) { multiply<f16, f16, true, silu>(p); }
KERNEL(experts_gelu_bf16, ExpertProduct, 128) { multiply<bf16, bf16, true, gelu>(p); }
KERNEL(experts_gelu_f16, ExpertProduct, 128) { multiply<f16, f16, true, gelu>(p); }
KERNEL(experts_bf16, ExpertProduct, 128) { multiply<bf16, bf16, false, none>(p); }
KERNEL(experts_f16, ExpertProduct, 128) { multiply<f16, f16, false, none>(p); }
KERNEL(experts_silu_bf16_e4m3, ExpertProduct, 128) { multiply<bf16, e4m3, true, silu>(p); }
KERNEL(experts_silu_f16_e4m3, ExpertProduct, 128) { multiply<f16, e4m3, true, silu>(p); }
KERNEL(experts_bf16_e4m3, ExpertProduct, 128) { multiply<bf16, e4m3, false, none>(p); }
KERNEL(experts_f16_e4m3, ExpertProduct, 128) { multiply<f16, e4m3, false, none>(p); }
KERNEL(add_experts_bf16, AddExperts, 256) { add<bf16>(p); }
KERNEL(add_experts_f16, AddExperts, 256) { add<f16>(p); }
