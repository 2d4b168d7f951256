// Counting a row of logits into 2,048 bins by 32-bit atomics in shared memory, 16 blocks
// a row, 131,072 values a row: what the atomics cost beside only reading, on flat and on
// peaked data, with one set of bins a block or two, with a warp's equal bins counted
// together first, and with 64-bit weights in place of counts.
#include "probe.cuh"

constexpr int ROW = 131'072;
constexpr int BLOCKS = 16;
constexpr int THREADS = 256;
constexpr int BINS = 2048;
// A thread's values: 8 times 4, in registers.
constexpr int FOURS = ROW / BLOCKS / THREADS / 4;
constexpr float TOP = 20;

enum Way { READ, ATOMIC, TWO_COPIES, MATCH, WEIGHTS };
constexpr const char* WAYS[] = {"only read", "atomics", "atomics, two copies",
                                "match, then atomics", "64-bit weights, with carry"};

// Bins of 1/16 below TOP, the last one for all that is lower.
__device__ __forceinline__ int bin_of(float logit) {
    return min(max(static_cast<int>((TOP - logit) * 16), 0), BINS - 1);
}

// Block (part, row). Adds the row's counts to bins [rows, BINS].
template <Way WAY>
__global__ void __launch_bounds__(THREADS) count(const float4* logits, uint32_t* bins, float* out) {
    // With WEIGHTS the low and the high words.
    constexpr int COPIES = WAY == TWO_COPIES || WAY == WEIGHTS ? 2 : 1;
    const float4* from =
        logits + (static_cast<size_t>(blockIdx.y) * ROW + blockIdx.x * (ROW / BLOCKS)) / 4;
    float4 four[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        const uint4 bits =
            load_stream(reinterpret_cast<const uint4*>(from + i * THREADS + threadIdx.x));
        four[i] = make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y),
                              __uint_as_float(bits.z), __uint_as_float(bits.w));
    }
    if constexpr (WAY == READ) {
        float highest = -INFINITY;
#pragma unroll
        for (int i = 0; i < FOURS; ++i) {
            highest =
                fmaxf(highest, fmaxf(fmaxf(four[i].x, four[i].y), fmaxf(four[i].z, four[i].w)));
        }
        out[(blockIdx.y * BLOCKS + blockIdx.x) * THREADS + threadIdx.x] = highest;
    } else {
        __shared__ uint32_t shared[COPIES][BINS];
        for (int i = threadIdx.x; i < COPIES * BINS; i += THREADS) {
            (&shared[0][0])[i] = 0;
        }
        __syncthreads();
        uint32_t* mine = shared[WAY == TWO_COPIES ? threadIdx.x / 32 % 2 : 0];
        const auto add = [&](float logit) {
            const int bin = bin_of(logit);
            if (WAY == MATCH) {
                const uint32_t equal = __match_any_sync(~0u, bin);
                if (threadIdx.x % 32 == static_cast<unsigned>(__ffs(equal)) - 1) {
                    atomicAdd(mine + bin, __popc(equal));
                }
            } else if (WAY == WEIGHTS) {
                // Any 32-bit weight.
                const uint32_t weight = mix(__float_as_uint(logit));
                const uint32_t before = atomicAdd(mine + bin, weight);
                if (before + weight < before) {
                    atomicAdd(shared[COPIES - 1] + bin, 1);
                }
            } else {
                atomicAdd(mine + bin, 1);
            }
        };
#pragma unroll
        for (int i = 0; i < FOURS; ++i) {
            add(four[i].x);
            add(four[i].y);
            add(four[i].z);
            add(four[i].w);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += THREADS) {
            const uint32_t total = shared[0][i] + (COPIES == 2 ? shared[COPIES - 1][i] : 0);
            if (total) {
                atomicAdd(bins + blockIdx.y * BINS + i, total);
            }
        }
    }
}

enum Data { FLAT, NORMAL, PEAKED, ONE_BIN };
constexpr const char* DATA[] = {"flat over all bins", "normal, deviation 2.5",
                                "normal, deviation 0.1", "one value"};

__global__ void make(Data data, float* out, size_t count) {
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += step) {
        // Box and Muller's; the logarithm's argument never 0.
        const float u = 0.5f + 0.5f * uniform(i, 20);
        const float v = uniform(i, 21);
        const float normal = sqrtf(-2 * logf(fmaxf(u, 1e-9f))) * cospif(v);
        out[i] = data == FLAT     ? TOP - 128 * u
                 : data == NORMAL ? 2.5f * normal
                 : data == PEAKED ? 0.1f * normal
                                  : 1.0f;
    }
}

template <Way WAY>
void measure(cudaStream_t stream, Data data, const float* logits, int rows, int copies,
             uint32_t* bins, float* out) {
    const std::string name =
        std::string(WAYS[WAY]) + ", " + DATA[data] + ", " + std::to_string(rows) + " rows";
    if (out_of_time(name)) {
        return;
    }
    const auto launch = [&](int copy, cudaStream_t s) {
        const float* from = logits + static_cast<size_t>(copy) * rows * ROW;
        count<WAY><<<dim3(BLOCKS, rows), THREADS, 0, s>>>(reinterpret_cast<const float4*>(from),
                                                          bins, out);
    };
    CHECK(cudaMemsetAsync(bins, 0, sizeof(uint32_t) * rows * BINS, stream));
    launch(0, stream);
    CHECK(cudaGetLastError());
    CHECK(cudaStreamSynchronize(stream));
    bool right = true;
    if (WAY != READ && WAY != WEIGHTS) {
        const std::vector<uint32_t> counts = read_back(bins, static_cast<size_t>(rows) * BINS);
        for (int row = 0; row < rows; ++row) {
            uint64_t total = 0;
            for (int bin = 0; bin < BINS; ++bin) {
                total += counts[static_cast<size_t>(row) * BINS + bin];
            }
            right = right && total == ROW;
        }
    }
    // Launches over other logits, cold in L2.
    const double seconds = graph_seconds(stream, 9,
                                         [&](cudaStream_t s) {
                                             for (int copy = 0; copy < copies; ++copy) {
                                                 launch(copy, s);
                                             }
                                         }) /
                           copies;
    Line("histogram", name)
        .number("seconds", seconds)
        .number("bytes_per_second", static_cast<double>(rows) * ROW * sizeof(float) / seconds)
        .truth("right", right);
}

int main() {
    Machine::begin("histogram");
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    // 512 rows, 256 MiB: four times 128 of them, and so on.
    const int all = 512;
    auto* logits = allocate<float>(static_cast<size_t>(all) * ROW);
    auto* bins = allocate<uint32_t>(128 * BINS);
    auto* out = allocate<float>(128 * BLOCKS * THREADS);
    for (const Data data : {FLAT, NORMAL, PEAKED, ONE_BIN}) {
        make<<<2048, 256, 0, stream>>>(data, logits, static_cast<size_t>(all) * ROW);
        CHECK(cudaGetLastError());
        CHECK(cudaStreamSynchronize(stream));
        for (const int rows : {1, 8, 128}) {
            const int copies = std::min(all / rows, 256);
            if (data == FLAT) {
                measure<READ>(stream, data, logits, rows, copies, bins, out);
            }
            measure<ATOMIC>(stream, data, logits, rows, copies, bins, out);
            measure<TWO_COPIES>(stream, data, logits, rows, copies, bins, out);
            measure<MATCH>(stream, data, logits, rows, copies, bins, out);
            measure<WEIGHTS>(stream, data, logits, rows, copies, bins, out);
        }
    }
    return 0;
}
