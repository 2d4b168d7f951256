// What a launch costs: eager, as a node of a graph, and with programmatic dependent
// launch (PDL); cuBLAS in a graph; and merging partial results by the last block to
// arrive (a ticket) against a second launch.
#include "cublas.hpp"
#include "dependent.cuh"

__global__ void empty() {}

// How a chain's nodes follow each other.
enum Chain { PLAIN, PDL, PDL_EARLY };
constexpr const char* CHAINS[] = {"plain edges", "PDL", "PDL, weights first"};

// One link: y[i] = x[i] + 1. The next may start at once, and waits for this one's end.
template <Chain CHAIN> __global__ void add_one(const uint32_t* x, uint32_t* y, int count) {
    if (CHAIN != PLAIN) {
        pdl_trigger();
        pdl_wait();
    }
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        y[i] = x[i] + 1;
    }
}

// One link like a small product: 64 bytes of weights a thread, then something of the
// predecessor's output, then a sum a block. With PDL_EARLY the weights, which no
// predecessor writes, are under way before the wait.
template <Chain CHAIN>
__global__ void __launch_bounds__(256) weigh(const uint4* w, const uint32_t* x, uint32_t* y) {
    __shared__ uint32_t sums[8];
    if (CHAIN != PLAIN) {
        pdl_trigger();
    }
    if (CHAIN == PDL) {
        pdl_wait();
    }
    const uint4* from = w + static_cast<size_t>(blockIdx.x) * 1024 + threadIdx.x;
    uint4 piece[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
        piece[u] = load_stream(from + u * 256);
    }
    if (CHAIN == PDL_EARLY) {
        pdl_wait();
    }
    // Every block reads what every block wrote.
    const uint32_t before = __ldcg(x + threadIdx.x % gridDim.x);
    uint32_t total = (threadIdx.x < gridDim.x ? before : 0) + sum(piece[0]) + sum(piece[1]) +
                     sum(piece[2]) + sum(piece[3]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        total += __shfl_xor_sync(~0u, total, offset);
    }
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = total;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0;
        for (int i = 0; i < 8; ++i) {
            total += sums[i];
        }
        y[blockIdx.x] = total;
    }
}

void eager(cudaStream_t stream) {
    const int count = 2000;
    for (const int grid : {1, Machine::get().sms}) {
        for (int i = 0; i < 100; ++i) {
            empty<<<grid, 128, 0, stream>>>();
        }
        CHECK(cudaStreamSynchronize(stream));
        std::vector<double> host, all;
        for (int repeat = 0; repeat < 7; ++repeat) {
            const double from = now();
            for (int i = 0; i < count; ++i) {
                empty<<<grid, 128, 0, stream>>>();
            }
            host.push_back((now() - from) / count);
            CHECK(cudaStreamSynchronize(stream));
            all.push_back((now() - from) / count);
        }
        CHECK(cudaGetLastError());
        std::sort(host.begin(), host.end());
        std::sort(all.begin(), all.end());
        Line("launch", "eager, empty, " + std::to_string(grid) + " blocks")
            .number("seconds", all[3])
            .number("host_seconds", host[3])
            .number("launches_per_second", 1 / all[3]);
    }
}

template <Chain CHAIN>
void chain_of_adds(cudaStream_t stream, uint32_t* ring, int nodes, int grid) {
    const int count = grid * 128;
    const auto enqueue = [&](cudaStream_t s) {
        for (int i = 0; i < nodes; ++i) {
            launch(add_one<CHAIN>, grid, 128, 0, s, CHAIN != PLAIN, ring + (i % 2) * count,
                   ring + (i + 1) % 2 * count, count);
        }
    };
    const Graph graph(stream, enqueue);
    // Nodes is even: the end is where the next replay begins.
    CHECK(cudaMemsetAsync(ring, 0, sizeof(uint32_t) * 2 * count, stream));
    graph.launch(stream);
    CHECK(cudaStreamSynchronize(stream));
    const std::vector<uint32_t> out = read_back(ring, count);
    const bool right = std::all_of(out.begin(), out.end(),
                                   [&](uint32_t x) { return x == static_cast<uint32_t>(nodes); });
    const double seconds = median_seconds(stream, 21, [&](cudaStream_t s) { graph.launch(s); });
    Line("launch", "graph of " + std::to_string(nodes) + " dependent kernels of " +
                       std::to_string(grid) + " blocks, " + CHAINS[CHAIN])
        .number("seconds_a_node", seconds / nodes)
        .number("seconds", seconds)
        .number("programmatic_edges", graph.programmatic_edges())
        .truth("right", right);
}

// Each block of a node reads 16 KiB of weights, new ones for every node.
template <Chain CHAIN>
uint32_t chain_of_weighings(cudaStream_t stream, const uint4* w, uint32_t* ring, int nodes,
                            int grid, const uint32_t* expected) {
    const size_t slice = static_cast<size_t>(grid) * 1024;
    const auto enqueue = [&](cudaStream_t s) {
        for (int i = 0; i < nodes; ++i) {
            launch(weigh<CHAIN>, grid, 256, 0, s, CHAIN != PLAIN, w + i * slice,
                   ring + (i % 2) * grid, ring + (i + 1) % 2 * grid);
        }
    };
    const Graph graph(stream, enqueue);
    CHECK(cudaMemsetAsync(ring, 0, sizeof(uint32_t) * 2 * grid, stream));
    graph.launch(stream);
    CHECK(cudaStreamSynchronize(stream));
    uint32_t found = 0;
    for (const uint32_t x : read_back(ring, grid)) {
        found += x;
    }
    const double seconds = median_seconds(stream, 21, [&](cudaStream_t s) { graph.launch(s); });
    Line("launch", "graph of " + std::to_string(nodes) + " dependent kernels reading " +
                       std::to_string(slice * 16 / KIB) + " KiB, " + CHAINS[CHAIN])
        .number("seconds_a_node", seconds / nodes)
        .number("bytes_per_second", static_cast<double>(slice) * 16 * nodes / seconds)
        .number("programmatic_edges", graph.programmatic_edges())
        .truth("right", !expected || found == *expected);
    return found;
}

void library(cudaStream_t stream) {
    Cublas cublas(stream);
    if (!cublas.why().empty()) {
        Line("launch", "cuBLAS").word("skipped", cublas.why());
        return;
    }
    const bf16* w = random_bf16(1536 * 576, 0.05f, 8);
    const bf16* x = random_bf16(256 * 1536, 1, 9);
    auto* y = allocate<bf16>(256 * 1536);
    for (const Product& p :
         {Product{1536, 1, 576}, Product{576, 1, 1536}, Product{1536, 64, 576}}) {
        const int nodes = 100;
        const auto enqueue = [&](cudaStream_t) {
            for (int i = 0; i < nodes; ++i) {
                cublas.gemm(p, w, x, y);
            }
        };
        const std::string name = "cuBLAS, hot, " + std::to_string(p.n) + "x" + std::to_string(p.k) +
                                 ", M=" + std::to_string(p.m);
        const double one_by_one = median_seconds(stream, 11, enqueue) / nodes;
        const double in_graph = graph_seconds(stream, 11, enqueue) / nodes;
        Line("launch", name)
            .number("seconds_a_node", in_graph)
            .number("eager_seconds", one_by_one)
            .truth("right", cublas.why().empty());
    }
}

// The merge of a split decode: a partial is a chunk's 4 heads of 128 values and a weight.
constexpr int VALUES = 4 * 128;

enum Merge { NONE, TICKET, SECOND };

__device__ float merged(const float* partial, const float* weight, int chunks) {
    float total = 0;
    float norm = 0;
    for (int c = 0; c < chunks; ++c) {
        // Past L1, which may hold what was there before other SMs wrote.
        const float part = __ldcg(weight + c);
        total += part * __ldcg(partial + c * VALUES + threadIdx.x);
        norm += part;
    }
    return total / norm;
}

// Block (chunk, sequence) writes its partial; with TICKET the last of a sequence merges.
template <Merge MERGE>
__global__ void __launch_bounds__(VALUES)
    partials(float* partial, float* weight, uint32_t* tickets, float* out, uint32_t seed) {
    __shared__ bool last;
    const int chunks = gridDim.x;
    const int sequence = blockIdx.y;
    const int at = sequence * chunks + blockIdx.x;
    partial[static_cast<size_t>(at) * VALUES + threadIdx.x] =
        uniform(at * VALUES + threadIdx.x, seed);
    if (threadIdx.x == 0) {
        weight[at] = 1.5f + uniform(at, seed + 1);
    }
    if (MERGE == TICKET) {
        // Each thread's writes before its block's ticket.
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            last = atomicAdd(tickets + sequence, 1) == static_cast<uint32_t>(chunks) - 1;
            if (last) {
                tickets[sequence] = 0;
            }
            __threadfence();
        }
        __syncthreads();
        if (last) {
            out[sequence * VALUES + threadIdx.x] =
                merged(partial + static_cast<size_t>(sequence) * chunks * VALUES,
                       weight + sequence * chunks, chunks);
        }
    }
}

__global__ void __launch_bounds__(VALUES)
    merge(const float* partial, const float* weight, float* out, int chunks) {
    pdl_wait();
    const int sequence = blockIdx.x;
    out[sequence * VALUES + threadIdx.x] =
        merged(partial + static_cast<size_t>(sequence) * chunks * VALUES,
               weight + sequence * chunks, chunks);
}

void merges(cudaStream_t stream) {
    const int most = 32 * 64;
    auto* partial = allocate<float>(static_cast<size_t>(most) * VALUES);
    auto* weight = allocate<float>(most);
    auto* tickets = allocate<uint32_t>(32);
    auto* out = allocate<float>(32 * VALUES);
    CHECK(cudaMemsetAsync(tickets, 0, 32 * sizeof(uint32_t), stream));
    const int times = 40;
    for (const int sequences : {1, 8, 32}) {
        for (const int chunks : {8, 16, 64}) {
            const dim3 grid(chunks, sequences);
            const size_t count = static_cast<size_t>(sequences) * VALUES;
            // As a captured sequence of `times` steps; the seconds of one.
            const auto none = [&](cudaStream_t s) {
                for (int i = 0; i < times; ++i) {
                    partials<NONE><<<grid, VALUES, 0, s>>>(partial, weight, tickets, out, i);
                }
            };
            const auto ticket = [&](cudaStream_t s) {
                for (int i = 0; i < times; ++i) {
                    partials<TICKET><<<grid, VALUES, 0, s>>>(partial, weight, tickets, out, i);
                }
            };
            const auto second = [&](cudaStream_t s) {
                for (int i = 0; i < times; ++i) {
                    partials<SECOND><<<grid, VALUES, 0, s>>>(partial, weight, tickets, out, i);
                    merge<<<sequences, VALUES, 0, s>>>(partial, weight, out, chunks);
                }
            };
            const auto second_pdl = [&](cudaStream_t s) {
                for (int i = 0; i < times; ++i) {
                    partials<SECOND><<<grid, VALUES, 0, s>>>(partial, weight, tickets, out, i);
                    launch(merge, sequences, VALUES, 0, s, true, partial, weight, out, chunks);
                }
            };
            const double alone = graph_seconds(stream, 11, none) / times;
            const double by_second = graph_seconds(stream, 11, second) / times;
            const std::vector<float> expected = read_back(out, count);
            CHECK(cudaMemsetAsync(out, 0xff, count * sizeof(float), stream));
            const double by_pdl = graph_seconds(stream, 11, second_pdl) / times;
            const bool right_pdl = read_back(out, count) == expected;
            CHECK(cudaMemsetAsync(out, 0xff, count * sizeof(float), stream));
            const double by_ticket = graph_seconds(stream, 11, ticket) / times;
            const bool right = read_back(out, count) == expected;
            Line("launch", "merge of " + std::to_string(chunks) + " partials, " +
                               std::to_string(sequences) + " sequences")
                .number("partials_alone_seconds", alone)
                .number("ticket_seconds", by_ticket)
                .number("second_launch_seconds", by_second)
                .number("second_launch_pdl_seconds", by_pdl)
                .truth("right", right && right_pdl);
        }
    }
}

int main() {
    const Machine& machine = Machine::begin("launch");
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    eager(stream);
    auto* ring = allocate<uint32_t>(2 * 128 * 1024);
    for (const int nodes : {100, 300}) {
        const double seconds = graph_seconds(stream, 21, [&](cudaStream_t s) {
            for (int i = 0; i < nodes; ++i) {
                empty<<<1, 32, 0, s>>>();
            }
        });
        Line("launch", "graph of " + std::to_string(nodes) + " empty kernels of 1 block")
            .number("seconds_a_node", seconds / nodes)
            .number("seconds", seconds);
        for (const int grid : {1, machine.sms, 4 * machine.sms}) {
            chain_of_adds<PLAIN>(stream, ring, nodes, grid);
            if (machine.hopper()) {
                chain_of_adds<PDL>(stream, ring, nodes, grid);
            }
        }
    }
    const int nodes = 100;
    const int grid = machine.sms;
    const auto* w = reinterpret_cast<const uint4*>(
        random_words(static_cast<size_t>(nodes) * grid * 1024 * 4, 10));
    const uint32_t expected = chain_of_weighings<PLAIN>(stream, w, ring, nodes, grid, nullptr);
    if (machine.hopper()) {
        chain_of_weighings<PDL>(stream, w, ring, nodes, grid, &expected);
        chain_of_weighings<PDL_EARLY>(stream, w, ring, nodes, grid, &expected);
    }
    merges(stream);
    if (!out_of_time("cuBLAS")) {
        library(stream);
    }
    return 0;
}
