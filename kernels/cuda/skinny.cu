// Products of two to sixteen rows with a weight, on tensor cores: out[r] = w x[r], whose time is
// that of reading the weight once.
//
// A block takes TILES tiles of 16 outputs at a time; its warps share K out in units of 64 elements,
// 128 bytes of each row of the weight, and add their sums up in shared memory. x is there too: all
// of it, read once, or where there is no room a panel of its columns after the other. The weight
// goes from memory to registers, each lane's next unit while it multiplies this one.
//
// A sum over k may go in any order that both operands have: so a lane has 16 bytes of a row, whole,
// where `mma` has it hold four times four bytes. An output's bits depend on K alone, not on
// the other rows, TILES or the grid.
#include "few_rows.cuh"

struct Skinny {
    // [rows, k]
    const void* x;
    // [n, k]
    const void* w;
    // [n], or null.
    const float* bias;
    // [k], of an RMSNorm of x's rows before the product, or null. x is one panel then.
    const float* norm;
    // [rows, n], or [rows, n / 2] of gated units.
    void* out;
    // A multiple of 16, of gated units of 32: the first half are gates. With ROPE they are the heads
    // of Q, K and V, of multiples of 32 dimensions.
    uint32_t n;
    // A multiple of 64.
    uint32_t k;
    // Two to 8 * GROUPS.
    uint32_t rows;
    // An Epilogue.
    uint32_t epilogue;
    // Units of a panel: all, or a multiple of SKINNY_WARPS.
    uint32_t panel;
    float eps;
    // Of the epilogue ROPE.
    RopeEnd rope;
};

static_assert(sizeof(Skinny) == 120, "as params.rs has it");

constexpr int SKINNY_THREADS = 512;
constexpr int SKINNY_WARPS = SKINNY_THREADS / WARP;
// Pieces of 16 bytes of a unit; a warp takes half of them at a time.
constexpr int UNIT_PIECES = 8;
// Between rows in shared memory, so that two rows' halves of a unit lie in different banks.
constexpr int ROW_PAD_PIECES = 4;
// Outputs of a tile.
constexpr int OUTPUTS = 16;

// x in shared memory, zeros where there are no rows, by all of a block.
template <typename T, int ROWS> struct Panel {
    using Piece = Vector<T>;
    static constexpr int WARPS_OF_ROW = SKINNY_WARPS / ROWS;
    static constexpr int STEP = WARPS_OF_ROW * WARP;

    const Skinny& p;
    Piece* staged;
    uint32_t stride;

    // Brings `units` units from `first` on.
    __device__ __forceinline__ void stage(uint32_t first, uint32_t units) const {
        const uint32_t row = warp_id() % ROWS;
        const uint32_t from = warp_id() / ROWS * WARP + lane_id();
        const uint32_t pieces = units * UNIT_PIECES;
        const bool exists = row < p.rows;
        const Piece* const x = static_cast<const Piece*>(p.x) +
                               uint64_t(exists ? row : 0) * (p.k / Piece::LEN) + first * UNIT_PIECES;
        Piece* const to = staged + row * stride;
        for (uint32_t i = from; i < pieces; i += STEP) {
            copy_async(to + i, x + i, exists);
        }
        copy_async_commit();
        copy_async_wait<0>();
        // A thread's own pieces, so nothing else has to be there yet.
        if (p.norm != nullptr) {
            float squares = 0.0f;
            for (uint32_t i = from; i < pieces; i += STEP) {
                add_squares(squares, to[i]);
            }
            SHARED(float, partial, SKINNY_WARPS);
            squares = warp_sum(squares);
            if (lane_id() == 0) {
                partial[warp_id()] = squares;
            }
            __syncthreads();
            float sum = 0.0f;
#pragma unroll
            for (int part = 0; part < WARPS_OF_ROW; ++part) {
                sum += partial[row + part * ROWS];
            }
            const float scale = rsqrtf(sum / float(p.k) + p.eps);
            for (uint32_t i = from; i < pieces; i += STEP) {
                to[i] = normed(to[i], i, scale, p.norm);
            }
        }
    }
};

template <typename T, int GROUPS, int TILES> __device__ __forceinline__ void skinny(const Skinny& p) {
    using Piece = Vector<uint32_t>;
    constexpr int ROWS = 8 * GROUPS;
    // Sums of a tile's outputs with a group of eight rows.
    constexpr int SUMS = OUTPUTS * 8;
    DYNAMIC_SHARED(dynamic);
    // [TILES, GROUPS, SKINNY_WARPS, SUMS], as lanes hold them.
    float* const partial = reinterpret_cast<float*>(dynamic);
    Vector<T>* const staged = reinterpret_cast<Vector<T>*>(partial + TILES * GROUPS * SKINNY_WARPS * SUMS);
    const uint32_t stride = p.panel * UNIT_PIECES + ROW_PAD_PIECES;
    const Panel<T, ROWS> x = {p, staged, stride};

    const uint32_t units = p.k / (UNIT_PIECES * Vector<T>::LEN);
    const uint32_t row_pieces = units * UNIT_PIECES;
    // Of pairs a task's first tile has the first rows, the second the others.
    const Pairs<true> pairs(p);
    const uint32_t outputs = pairs.are ? p.n / 2 : p.n;
    const uint32_t tiles = outputs / OUTPUTS;
    const uint32_t of_task = pairs.are ? 1 : TILES;
    const uint32_t tasks = (tiles + of_task - 1) / of_task;
    // A tile's row g, and the one eight further on, and of each four pieces from t on.
    const int g = lane_id() / 4, t = lane_id() % 4;
    const uint32_t warp = warp_id();

    // The next unit to ask for, and where in each tile's rows the lane's pieces begin.
    uint32_t next_task = blockIdx.x;
    uint32_t next_unit = warp;
    const Piece* from[TILES];
    const auto begin_task = [&] {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            // What lies behind the last tile is computed again, and stored nowhere.
            const uint32_t own = min(next_task * of_task + (pairs.are ? 0 : tile), tiles - 1);
            const uint32_t row = pairs.row(own * OUTPUTS) + (pairs.are && tile > 0 ? pairs.apart : 0) + g;
            from[tile] = static_cast<const Piece*>(p.w) + uint64_t(row) * row_pieces + t;
        }
    };
    Piece held[2][TILES][2];
    const auto ask = [&](int half) {
        const bool exists = next_task < tasks && next_unit < units;
        const uint32_t at = next_unit * UNIT_PIECES + half * (UNIT_PIECES / 2);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            held[half][tile][0] = load_stream(from[tile] + at, exists);
            held[half][tile][1] = load_stream(from[tile] + at + 8 * row_pieces, exists);
        }
    };
    begin_task();
    ask(0);
    ask(1);
    if (p.norm != nullptr) {
        for (uint32_t i = threadIdx.x; i * 32 < p.k; i += SKINNY_THREADS) {
            prefetch(p.norm + i * 32);
        }
    }
    // The weights are on their way while x is still being computed.
    await_previous();

    for (uint32_t task = blockIdx.x; task < tasks; task += gridDim.x) {
        float sums[TILES][GROUPS][4] = {};
        for (uint32_t first = 0; first < units; first += p.panel) {
            if (p.panel < units || task == blockIdx.x) {
                // All are done with the panel before.
                __syncthreads();
                x.stage(first, min(p.panel, units - first));
                __syncthreads();
            }
            for (uint32_t unit = first + warp; unit < min(first + p.panel, units); unit += SKINNY_WARPS) {
                next_unit += SKINNY_WARPS;
                if (next_unit >= units) {
                    next_unit = warp;
                    next_task += gridDim.x;
                    begin_task();
                }
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t at = (unit - first) * UNIT_PIECES + half * (UNIT_PIECES / 2) + t;
#pragma unroll
                    for (int group = 0; group < GROUPS; ++group) {
                        const Piece of_rows = reinterpret_cast<const Piece*>(staged)[(group * 8 + g) * stride + at];
#pragma unroll
                        for (int step = 0; step < 2; ++step) {
                            const uint32_t b[2] = {of_rows.x[2 * step], of_rows.x[2 * step + 1]};
#pragma unroll
                            for (int tile = 0; tile < TILES; ++tile) {
                                const Piece(&rows)[2] = held[half][tile];
                                const uint32_t a[4] = {rows[0].x[2 * step], rows[1].x[2 * step],
                                                       rows[0].x[2 * step + 1], rows[1].x[2 * step + 1]};
                                mma<T>(sums[tile][group], a, b);
                            }
                        }
                    }
                    ask(half);
                }
            }
        }

        // All have read the sums of the task before.
        __syncthreads();
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const int part = (tile * GROUPS + group) * SKINNY_WARPS + warp;
                const float(&own)[4] = sums[tile][group];
                reinterpret_cast<Vector<float>*>(partial)[part * WARP + lane_id()] = {own[0], own[1], own[2], own[3]};
            }
        }
        __syncthreads();
        const auto sum_of = [&](uint32_t tile_and_group, uint32_t place) {
            float sum = 0.0f;
#pragma unroll
            for (int of = 0; of < SKINNY_WARPS; ++of) {
                sum += partial[(tile_and_group * SKINNY_WARPS + of) * SUMS + place];
            }
            return sum;
        };
        for (uint32_t i = threadIdx.x; i < of_task * GROUPS * SUMS; i += SKINNY_THREADS) {
            const uint32_t place = i % SUMS, tile_and_group = i / SUMS;
            const uint32_t tile = tile_and_group / GROUPS, group = tile_and_group % GROUPS;
            const uint32_t row = group * 8 + place / 4 % 4 * 2 + place % 2;
            const uint32_t own = task * of_task + tile;
            if (row < p.rows && own < tiles) {
                const uint32_t output = own * OUTPUTS + place / 16 + place / 2 % 2 * 8;
                const float gated = pairs.are ? sum_of(GROUPS + group, place) : 0.0f;
                finish_sum<T, true>(p, row, output, outputs, sum_of(tile_and_group, place), gated);
            }
        }
    }
}

#define SKINNY(name, T, GROUPS, TILES)                                                             \
    KERNEL_EARLY_RESIDENT(name##_g##GROUPS##_t##TILES, Skinny, SKINNY_THREADS, 1) {                \
        skinny<T, GROUPS, TILES>(p);                                                               \
    }

// Grid: as many blocks as there are multiprocessors, or tasks.
SKINNY(skinny_bf16, bf16, 1, 1)
SKINNY(skinny_bf16, bf16, 1, 2)
SKINNY(skinny_bf16, bf16, 1, 3)
SKINNY(skinny_bf16, bf16, 2, 1)
SKINNY(skinny_bf16, bf16, 2, 2)
SKINNY(skinny_bf16, bf16, 2, 3)
SKINNY(skinny_f16, f16, 1, 1)
SKINNY(skinny_f16, f16, 1, 2)
SKINNY(skinny_f16, f16, 1, 3)
SKINNY(skinny_f16, f16, 2, 1)
SKINNY(skinny_f16, f16, 2, 2)
SKINNY(skinny_f16, f16, 2, 3)
