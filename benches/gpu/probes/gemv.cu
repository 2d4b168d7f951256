// Products of a few rows with row-major bf16 weights, Y = X W^T with M = 1 or 8, whose
// weights go from memory straight to the registers of mma's A operand, by loads in
// flight, by how many warps share K and by where x lies; beside cuBLAS and the best of
// cuBLASLt's first 8 proposals. Weights are cold: launches of a graph take turns over far
// more bytes than L2 holds. Seconds are those of one launch of such a graph.
#include "cublas.hpp"
#include "dependent.cuh"

struct Params {
    const uint4* w;
    const uint4* x;
    bf16* y;
    int n, k;
    // Of 16 rows, a block, one after the other in one stream of loads.
    int tiles;
};

// Where x [M, K] is read from.
enum Source { SHARED, GLOBAL };

constexpr int TILE = 16;
// Of x in shared memory, 16-byte pieces between rows: rows of a multiple of 128 bytes
// start 64 bytes apart in the banks, so that the 8 lanes of a 16-byte load's quarter, two
// rows of 64 bytes, meet all of them once.
constexpr int PAD = 4;

// Lane (g, j) = (lane / 4, lane % 4) holds in one step, 32 of K, the 16 bytes at k = 8 j of
// rows g and g + 8. mma sums over k in any order, as long as A and B have the same: words
// 0 and 1 of both rows are A of one mma, words 2 and 3 that of a second; and B of them are
// the same words of x's row g at k = 8 j.
template <int M, int DEPTH, Source SOURCE>
__global__ void __launch_bounds__(512) gemv(const Params p) {
    extern __shared__ __align__(128) unsigned char dynamic[];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int warps = blockDim.x / 32;
    const int g = lane / 4;
    const int j = lane % 4;
    const int pieces = p.k / 8;
    const int steps = p.k / 32;
    const int first = steps * warp / warps;
    const int mine = steps * (warp + 1) / warps - first;
    const int total = mine * p.tiles;

    const uint4* low =
        p.w + (static_cast<size_t>(blockIdx.x) * p.tiles * TILE + g) * pieces + first * 4 + j;
    const size_t high = static_cast<size_t>(8) * pieces;
    const size_t next_tile = static_cast<size_t>(TILE) * pieces - static_cast<size_t>(mine) * 4;
    int fetched = 0;
    uint4 a[DEPTH][2];
    const auto fetch = [&](uint4(&to)[2]) {
        to[0] = load_stream(low);
        to[1] = load_stream(low + high);
        low += 4;
        if (++fetched == mine) {
            fetched = 0;
            low += next_tile;
        }
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        if (d < total) {
            fetch(a[d]);
        }
    }

    // The next launch may start its own first loads; this one's are under way before it
    // reads what its predecessor wrote.
    pdl_trigger();
    pdl_wait();
    auto* shared = reinterpret_cast<uint4*>(dynamic);
    const int stride = SOURCE == SHARED ? pieces + PAD : pieces;
    if (SOURCE == SHARED) {
        for (int i = threadIdx.x; i < M * pieces; i += blockDim.x) {
            shared[i / pieces * stride + i % pieces] = __ldg(p.x + i);
        }
        __syncthreads();
    }
    // With M = 1 every column of B is x: the seven others are not stored.
    const uint4* x = (SOURCE == SHARED ? shared : p.x) + (M == 1 ? 0 : g) * stride + first * 4 + j;
    auto* partial = reinterpret_cast<float*>(shared + (SOURCE == SHARED ? M * stride : 0));

    float acc[4] = {};
    int step = 0;
    int tile = 0;
    for (int t = 0; t < total; t += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (t + d < total) {
                const uint4 b = SOURCE == SHARED ? x[step * 4] : __ldg(x + step * 4);
                mma_bf16(acc, a[d][0].x, a[d][1].x, a[d][0].y, a[d][1].y, b.x, b.y);
                mma_bf16(acc, a[d][0].z, a[d][1].z, a[d][0].w, a[d][1].w, b.z, b.w);
                if (t + d + DEPTH < total) {
                    fetch(a[d]);
                }
                if (++step == mine) {
                    // D: rows g and g + 8, columns 2 j and 2 j + 1.
                    float* to = partial + (tile * warps + warp) * TILE * 8 + 2 * j;
                    *reinterpret_cast<float2*>(to + g * 8) = make_float2(acc[0], acc[1]);
                    *reinterpret_cast<float2*>(to + (g + 8) * 8) = make_float2(acc[2], acc[3]);
                    acc[0] = acc[1] = acc[2] = acc[3] = 0;
                    step = 0;
                    ++tile;
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.tiles * TILE * M; i += blockDim.x) {
        const int row = i % TILE;
        const int m = i / TILE % M;
        const int of = i / (TILE * M);
        float y = 0;
        for (int w = 0; w < warps; ++w) {
            y += partial[((of * warps + w) * TILE + row) * 8 + m];
        }
        p.y[static_cast<size_t>(m) * p.n + (blockIdx.x * p.tiles + of) * TILE + row] =
            __float2bfloat16_rn(y);
    }
}

// The same product, a warp an output, in f32.
__global__ void reference(const bf16* w, const bf16* x, float* y, int n, int k) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int m = blockIdx.y;
    if (row >= n) {
        return;
    }
    float sum = 0;
    for (int i = threadIdx.x % 32; i < k; i += 32) {
        sum += __bfloat162float(w[static_cast<size_t>(row) * k + i]) *
               __bfloat162float(x[static_cast<size_t>(m) * k + i]);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(~0u, sum, offset);
    }
    if (threadIdx.x % 32 == 0) {
        y[static_cast<size_t>(m) * n + row] = sum;
    }
}

constexpr size_t POOL = GIB;
// More than three times the largest L2 of the kinds meant.
constexpr size_t COLD = 200 * MIB;
constexpr int REPEATS = 5;

struct Shape {
    const char* name;
    int n, k;
};

struct Run {
    cudaStream_t stream;
    const bf16* w;
    const bf16* x;
    bf16* y;
    std::vector<float> expected;
    Shape shape;
    int m;

    size_t elements() const { return static_cast<size_t>(shape.n) * shape.k; }
    // Launches of a graph, each with its own weights.
    int launches() const {
        const size_t bytes = elements() * sizeof(bf16);
        return static_cast<int>(std::min(std::max<size_t>(COLD / bytes + 1, 4), POOL / bytes));
    }
    const bf16* weights(int launch) const { return w + launch * elements(); }
    std::string name(const std::string& of) const {
        return std::string(shape.name) + " " + std::to_string(shape.n) + "x" +
               std::to_string(shape.k) + ", M=" + std::to_string(m) + ", " + of;
    }
    // ||y - expected|| / ||expected|| of the first weights' y.
    double error() const {
        const std::vector<bf16> out = read_back(y, static_cast<size_t>(m) * shape.n);
        double off = 0, norm = 0;
        for (size_t i = 0; i < out.size(); ++i) {
            const double e = expected[i];
            off += (__bfloat162float(out[i]) - e) * (__bfloat162float(out[i]) - e);
            norm += e * e;
        }
        return std::sqrt(off / norm);
    }
    void poison() const { CHECK(cudaMemsetAsync(y, 0xff, sizeof(bf16) * m * shape.n, stream)); }
    // Seconds a launch of `launch(weights, stream)`.
    template <typename F> double seconds(F&& launch) const {
        const int count = launches();
        return graph_seconds(stream, REPEATS,
                             [&](cudaStream_t s) {
                                 for (int i = 0; i < count; ++i) {
                                     launch(weights(i), s);
                                 }
                             }) /
               count;
    }
};

struct Best {
    double seconds = INFINITY;
    std::string name = "none";
    void take(double other, const std::string& of) {
        if (other < seconds) {
            seconds = other;
            name = of;
        }
    }
};

template <int M, int DEPTH, Source SOURCE>
void measure(const Run& run, int warps, int tiles, bool pdl, Best& best) {
    const Machine& machine = Machine::get();
    if (!machine.in_time() || run.shape.n % (TILE * tiles) != 0) {
        return;
    }
    const size_t bytes =
        (SOURCE == SHARED ? static_cast<size_t>(M) * (run.shape.k / 8 + PAD) * 16 : 0) +
        static_cast<size_t>(tiles) * warps * TILE * 8 * sizeof(float);
    if (bytes > machine.device.sharedMemPerBlockOptin) {
        return;
    }
    const auto kernel = gemv<M, DEPTH, SOURCE>;
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(machine.device.sharedMemPerBlockOptin)));
    int resident = 0;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, warps * 32, bytes));
    const int grid = run.shape.n / (TILE * tiles);
    const auto launch = [&](const bf16* w, cudaStream_t stream) {
        const Params p{reinterpret_cast<const uint4*>(w),
                       reinterpret_cast<const uint4*>(run.x),
                       run.y,
                       run.shape.n,
                       run.shape.k,
                       tiles};
        ::launch(kernel, grid, warps * 32, bytes, stream, pdl, p);
    };
    run.poison();
    launch(run.weights(0), run.stream);
    CHECK(cudaGetLastError());
    CHECK(cudaStreamSynchronize(run.stream));
    const double error = run.error();
    const double seconds = run.seconds(launch);
    const std::string of = std::string("x ") + (SOURCE == SHARED ? "shared" : "global") + ", " +
                           std::to_string(warps) + " warps, " + std::to_string(DEPTH) +
                           " steps ahead, " + std::to_string(tiles) + " tiles" +
                           (pdl ? ", PDL" : "");
    best.take(seconds, of);
    Line("gemv", run.name(of))
        .number("seconds", seconds)
        .number("bytes_per_second", run.elements() * sizeof(bf16) / seconds)
        .number("bytes_in_flight_an_sm",
                std::min(static_cast<double>(resident), static_cast<double>(grid) / machine.sms) *
                    warps * DEPTH * 1024)
        .number("resident_blocks_an_sm", resident)
        .number("relative_error", error)
        .truth("right", error < 5e-3);
}

template <int M, Source SOURCE> void sweep(const Run& run, Best& best) {
    measure<M, 2, SOURCE>(run, 8, 1, false, best);
    measure<M, 4, SOURCE>(run, 4, 1, false, best);
    measure<M, 8, SOURCE>(run, 4, 1, false, best);
    measure<M, 4, SOURCE>(run, 8, 4, false, best);
    measure<M, 8, SOURCE>(run, 8, 4, false, best);
    for (const int warps : {8, 16}) {
        for (const int tiles : {1, 2}) {
            for (const bool pdl : {false, true}) {
                if (!pdl || Machine::get().hopper()) {
                    measure<M, 4, SOURCE>(run, warps, tiles, pdl, best);
                    measure<M, 8, SOURCE>(run, warps, tiles, pdl, best);
                }
            }
        }
    }
}

void library(const Run& run, Cublas& cublas) {
    if (out_of_time(run.name("cuBLAS"))) {
        return;
    }
    const Product product{run.shape.n, run.m, run.shape.k};
    run.poison();
    cublas.gemm(product, run.weights(0), run.x, run.y);
    CHECK(cudaStreamSynchronize(run.stream));
    const double error = run.error();
    const double seconds =
        run.seconds([&](const bf16* w, cudaStream_t) { cublas.gemm(product, w, run.x, run.y); });
    const double bytes = run.elements() * sizeof(bf16);
    Line("gemv", run.name("cuBLAS"))
        .number("seconds", seconds)
        .number("bytes_per_second", bytes / seconds)
        .number("relative_error", error)
        .truth("right", error < 5e-3);
    Cublas::Plan plan(cublas, product);
    Best best;
    double best_error = NAN;
    for (const auto& proposal : cublas.proposals(plan, 8, Cublas::ANY_REDUCTION)) {
        if (!Machine::get().in_time()) {
            break;
        }
        run.poison();
        if (!cublas.run(plan, proposal, run.weights(0), run.x, run.y, run.stream)) {
            continue;
        }
        CHECK(cudaStreamSynchronize(run.stream));
        const double off = run.error();
        const double one = run.seconds(
            [&](const bf16* w, cudaStream_t s) { cublas.run(plan, proposal, w, run.x, run.y, s); });
        if (one < best.seconds) {
            best_error = off;
        }
        best.take(one, cublas.describe(proposal));
    }
    Line("gemv", run.name("cuBLASLt, best of 8"))
        .number("seconds", best.seconds)
        .number("bytes_per_second", bytes / best.seconds)
        .number("relative_error", best_error)
        .truth("right", best_error < 5e-3)
        .word("algorithm", best.name);
}

int main() {
    Machine::begin("gemv");
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const bf16* w = random_bf16(POOL / sizeof(bf16), 0.05f, 5);
    const bf16* x = random_bf16(8 * 14336, 1, 6);
    auto* y = allocate<bf16>(8 * 28672);
    auto* expected = allocate<float>(8 * 28672);
    Cublas cublas(stream);
    if (cublas.why().empty()) {
        Line("gemv", "cuBLAS").number("version", static_cast<double>(cublas.version()));
    } else {
        Line("gemv", "cuBLAS").word("skipped", cublas.why());
    }
    const bool has_library = cublas.why().empty();
    const Shape shapes[] = {
        {"8B gate_up", 28672, 4096}, {"8B down", 4096, 14336}, {"8B qkv", 6144, 4096},
        {"8B o", 4096, 4096},        {"small up", 1536, 576},  {"small down", 576, 1536},
    };
    for (const Shape& shape : shapes) {
        for (const int m : {1, 8}) {
            Run run{stream, w, x, y, {}, shape, m};
            reference<<<dim3((shape.n + 7) / 8, m), 256, 0, stream>>>(w, x, expected, shape.n,
                                                                      shape.k);
            CHECK(cudaGetLastError());
            CHECK(cudaStreamSynchronize(stream));
            run.expected = read_back(expected, static_cast<size_t>(m) * shape.n);
            if (has_library) {
                library(run, cublas);
            }
            Best best;
            if (m == 1) {
                sweep<1, SHARED>(run, best);
                sweep<1, GLOBAL>(run, best);
            } else {
                sweep<8, SHARED>(run, best);
                sweep<8, GLOBAL>(run, best);
            }
            Line("gemv", run.name("best here"))
                .number("seconds", best.seconds)
                .number("bytes_per_second", run.elements() * sizeof(bf16) / best.seconds)
                .word("as", best.name);
            out_of_time(run.name("what is left of it"));
        }
    }
    if (has_library && !cublas.why().empty()) {
        Line("gemv", "cuBLAS").word("error", cublas.why());
    }
    return 0;
}
