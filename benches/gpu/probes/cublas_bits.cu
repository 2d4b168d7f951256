// Whether a row's product by cuBLAS has the same bits whatever the number of rows, and
// wherever among them the row stands: with the default algorithm, with the heuristic's
// first proposal without split-K for each M, and with one algorithm without split-K for
// every M; and what these cost beside the default.
#include "cublas.hpp"

constexpr int SIZES[] = {1, 2, 8, 16, 32, 64, 128, 256};
constexpr int MOST = 256;
constexpr int REPEATS = 5;
// Proposals of which the fixed algorithm is the first that can do every M.
constexpr int PROPOSALS = 16;

struct Shape {
    const char* name;
    int n, k;
};

// Counts outputs of row `row` of y that equal those of `expected`.
__global__ void count_equal(const uint16_t* y, const uint16_t* expected, int n, int row,
                            uint32_t* count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        if (y[static_cast<size_t>(row) * n + i] == expected[i]) {
            atomicAdd(count, 1);
        }
    }
}

struct Bits {
    cudaStream_t stream;
    Cublas& cublas;
    const bf16* w;
    // Row 0, then others; and the same others with row 0 at the end.
    const bf16 *first, *last;
    bf16* y;
    uint16_t* expected;
    uint32_t* count;

    double equal(int n, int row) {
        CHECK(cudaMemsetAsync(count, 0, 4, stream));
        count_equal<<<64, 256, 0, stream>>>(reinterpret_cast<uint16_t*>(y), expected, n, row,
                                            count);
        CHECK(cudaGetLastError());
        CHECK(cudaStreamSynchronize(stream));
        return static_cast<double>(read_back(count, 1)[0]) / n;
    }

    // One M of one way; `multiply(product, x)` puts it on the stream.
    template <typename F>
    void measure(const std::string& name, const Product& p, bool keep, const std::string& as,
                 F&& multiply) {
        CHECK(cudaMemsetAsync(y, 0xff, sizeof(bf16) * p.m * p.n, stream));
        multiply(first);
        if (keep) {
            CHECK(
                cudaMemcpyAsync(expected, y, sizeof(bf16) * p.n, cudaMemcpyDeviceToDevice, stream));
        }
        const double row_0 = equal(p.n, 0);
        // The last of the m rows of `last`.
        CHECK(cudaMemsetAsync(y, 0xff, sizeof(bf16) * p.m * p.n, stream));
        multiply(last + static_cast<size_t>(MOST - p.m) * p.k);
        const double row_m = equal(p.n, p.m - 1);
        const double seconds =
            median_seconds(stream, REPEATS, [&](cudaStream_t) { multiply(first); });
        Line("cublas_bits", name + ", M=" + std::to_string(p.m))
            .number("equal", row_0)
            .number("equal_as_last_row", row_m)
            .number("seconds", seconds)
            .number("operations_per_second", 2.0 * p.n * p.m * p.k / seconds)
            .word("algorithm", as);
    }

    void all(const Shape& shape) {
        const std::string name =
            std::string(shape.name) + " " + std::to_string(shape.n) + "x" + std::to_string(shape.k);
        for (const int m : SIZES) {
            if (out_of_time(name)) {
                return;
            }
            const Product p{shape.n, m, shape.k};
            measure(name + ", default", p, m == 1, "cublasGemmEx",
                    [&](const bf16* x) { cublas.gemm(p, w, x, y); });
        }
        for (const int m : SIZES) {
            if (out_of_time(name)) {
                return;
            }
            const Product p{shape.n, m, shape.k};
            Cublas::Plan plan(cublas, p);
            const auto proposals = cublas.proposals(plan, 1, Cublas::NO_SPLIT_K);
            if (proposals.empty()) {
                Line("cublas_bits", name + ", no split-K, M=" + std::to_string(m))
                    .word("skipped", "no proposal");
                continue;
            }
            measure(name + ", no split-K", p, m == 1, cublas.describe(proposals[0]),
                    [&](const bf16* x) {
                        refused |= !cublas.run(plan, proposals[0], w, x, y, stream);
                    });
        }
        // From what is fast at 64 rows, and from what is fast at 256.
        for (const int of : {64, 256}) {
            fixed(shape, name + ", one algorithm, of M=" + std::to_string(of), of);
        }
    }

    void fixed(const Shape& shape, const std::string& name, int of) {
        Cublas::Plan best(cublas, {shape.n, of, shape.k});
        for (const auto& proposal : cublas.proposals(best, PROPOSALS, Cublas::NO_SPLIT_K)) {
            bool all_can = cublas.split_k(proposal) <= 1;
            for (const int m : SIZES) {
                Cublas::Plan plan(cublas, {shape.n, m, shape.k});
                all_can = all_can && cublas.can(plan, proposal);
            }
            if (!all_can) {
                continue;
            }
            for (const int m : SIZES) {
                if (out_of_time(name)) {
                    return;
                }
                const Product p{shape.n, m, shape.k};
                Cublas::Plan plan(cublas, p);
                measure(name, p, m == 1, cublas.describe(proposal), [&](const bf16* x) {
                    refused |= !cublas.run(plan, proposal, w, x, y, stream);
                });
            }
            return;
        }
        Line("cublas_bits", name).word("skipped", "no algorithm without split-K does every M");
    }

    bool refused = false;
};

int main() {
    Machine::begin("cublas_bits");
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Cublas cublas(stream);
    if (!cublas.why().empty()) {
        Line("cublas_bits", "all").word("skipped", cublas.why());
        return 0;
    }
    Line("cublas_bits", "version").number("version", static_cast<double>(cublas.version()));
    const size_t widest = 14336, longest = 28672;
    const bf16* w = random_bf16(longest * 4096, 0.05f, 11);
    const bf16* x = random_bf16(MOST * widest, 1, 12);
    auto* moved = allocate<bf16>(MOST * widest);
    Bits bits{stream,
              cublas,
              w,
              x,
              moved,
              allocate<bf16>(MOST * longest),
              allocate<uint16_t>(longest),
              allocate<uint32_t>(1)};
    for (const Shape& shape : {Shape{"8B gate_up", 28672, 4096}, Shape{"8B down", 4096, 14336},
                               Shape{"8B qkv", 6144, 4096}, Shape{"8B o", 4096, 4096}}) {
        // Rows 1.. and then row 0.
        const size_t row = sizeof(bf16) * shape.k;
        CHECK(cudaMemcpy(moved, x + shape.k, row * (MOST - 1), cudaMemcpyDeviceToDevice));
        CHECK(cudaMemcpy(moved + static_cast<size_t>(MOST - 1) * shape.k, x, row,
                         cudaMemcpyDeviceToDevice));
        CHECK(cudaDeviceSynchronize());
        bits.all(shape);
    }
    if (bits.refused || !cublas.why().empty()) {
        Line("cublas_bits", "all")
            .word("error", bits.refused ? "cublasLtMatmul refused an algorithm" : cublas.why());
    }
    return 0;
}
