// The latency of one load from L2 and from device memory, alone and while every SM
// streams with a given number of bytes in flight.
#include "probe.cuh"

#include <numeric>
#include <random>

constexpr int STRIDE = 256;
constexpr int WARM = 64;
constexpr int STEPS = 1024;

struct Chase {
    // Byte offset of the next load at each STRIDE bytes: one cycle through all of them.
    const unsigned char* chain;
    uint32_t start;
    // Set once the chase is over; the streams stop.
    volatile int* done;
    uint64_t* chase_ns;
    uint64_t* chase_clocks;
    uint32_t* end;
    // Streamed: a power of two of pieces of 16 bytes.
    const uint4* stream;
    uint32_t stream_mask;
    // The sum of the streams' rates, bytes a microsecond, and of what they read.
    unsigned long long* streamed;
    uint32_t* out;
};

__device__ __forceinline__ uint32_t load_next(const unsigned char* from) {
    uint32_t out;
    asm volatile("ld.global.cg.u32 %0, [%1];\n" : "=r"(out) : "l"(from) : "memory");
    return out;
}

// Block 0 chases with one thread, the other blocks stream LOADS pieces a thread at a time
// until it is done (or for 20 ms). All blocks must be resident together.
template <int LOADS> __global__ void __launch_bounds__(512) chase(const Chase p) {
    if (blockIdx.x == 0) {
        if (threadIdx.x != 0) {
            return;
        }
        // Until the streams run.
        const uint64_t began = nanoseconds();
        while (gridDim.x > 1 && nanoseconds() - began < 50'000) {
        }
        uint32_t at = p.start;
        for (int i = 0; i < WARM; ++i) {
            at = load_next(p.chain + at);
        }
        const uint64_t from = nanoseconds();
        const long long clock = clock64();
        for (int i = 0; i < STEPS; ++i) {
            at = load_next(p.chain + at);
        }
        // After the last load: the branch needs its value.
        if (at == ~0u) {
            *p.out = 1;
        }
        *p.chase_clocks = clock64() - clock;
        *p.chase_ns = nanoseconds() - from;
        *p.end = at;
        __threadfence();
        *p.done = 1;
        return;
    }
    // As read_pieces of the bandwidth probe: loads live across the loop's edge.
    const uint32_t run = blockDim.x * LOADS;
    uint32_t at = (blockIdx.x - 1) * run + threadIdx.x;
    uint4 piece[LOADS] = {};
    const uint64_t began = nanoseconds();
    uint64_t rounds = 0;
    uint32_t total = 0;
    for (;;) {
#pragma unroll
        for (int u = 0; u < LOADS; ++u) {
            total += sum(piece[u]);
            piece[u] = load_stream(p.stream + ((at + u * blockDim.x) & p.stream_mask));
        }
        at += (gridDim.x - 1) * run;
        ++rounds;
        // Not every round: the flag is a load too.
        if (rounds % 16 == 0 && (*p.done || nanoseconds() - began > 20'000'000)) {
            break;
        }
    }
#pragma unroll
    for (int u = 0; u < LOADS; ++u) {
        total += sum(piece[u]);
    }
    // A stream's rate over its own time.
    const uint64_t took = nanoseconds() - began;
    if (threadIdx.x == 0) {
        atomicAdd(p.streamed, static_cast<unsigned long long>(rounds * run * 16 * 1000 / took));
    }
    atomicAdd(p.out, total);
}

struct Buffers {
    Chase params{};
    uint32_t* end;
    int* done;
};

// The chain over `bytes`, in a random order.
uint32_t* chain(size_t bytes) {
    const auto count = static_cast<uint32_t>(bytes / STRIDE);
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    auto* out = allocate<uint32_t>(bytes / 4);
    std::vector<uint32_t> all(bytes / 4);
    for (uint32_t i = 0; i < count; ++i) {
        all[static_cast<size_t>(order[i]) * (STRIDE / 4)] = order[(i + 1) % count] * STRIDE;
    }
    CHECK(cudaMemcpy(out, all.data(), bytes, cudaMemcpyHostToDevice));
    return out;
}

template <int LOADS> void measure(Buffers& b, const std::string& where, int blocks, int threads) {
    const Machine& machine = Machine::get();
    const double in_flight = static_cast<double>(blocks) * threads * LOADS * 16;
    const std::string name =
        where +
        (blocks ? ", " + std::to_string(static_cast<int>(in_flight / KIB)) + " KiB in flight an SM"
                : ", alone");
    if (out_of_time(name)) {
        return;
    }
    int resident = 0;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, chase<LOADS>,
                                                        std::max(threads, 32), 0));
    if (resident < blocks) {
        Line("latency", name).word("skipped", "the blocks are not resident together");
        return;
    }
    std::vector<double> ns, clocks, rate;
    for (int repeat = 0; repeat < 9; ++repeat) {
        CHECK(cudaMemset(b.done, 0, sizeof(int)));
        CHECK(cudaMemset(b.params.streamed, 0, sizeof(unsigned long long)));
        chase<LOADS><<<blocks ? machine.sms * blocks : 1, std::max(threads, 32)>>>(b.params);
        CHECK(cudaGetLastError());
        CHECK(cudaDeviceSynchronize());
        ns.push_back(static_cast<double>(read_back(b.params.chase_ns, 1)[0]) / STEPS);
        clocks.push_back(static_cast<double>(read_back(b.params.chase_clocks, 1)[0]) / STEPS);
        rate.push_back(static_cast<double>(read_back(b.params.streamed, 1)[0]) * 1e6);
        // On from where it ended: those before may be in L2.
        b.params.start = read_back(b.end, 1)[0];
    }
    for (auto* values : {&ns, &clocks, &rate}) {
        std::nth_element(values->begin(), values->begin() + 4, values->end());
    }
    Line("latency", name)
        .number("bytes_in_flight_an_sm", in_flight)
        .number("seconds", ns[4] * 1e-9)
        .number("clocks", clocks[4])
        .number("bytes_per_second", rate[4]);
}

int main() {
    Machine::begin("latency");
    const size_t stream_bytes = 4 * GIB;
    Buffers b;
    b.done = allocate<int>(1);
    b.end = allocate<uint32_t>(1);
    b.params.done = b.done;
    b.params.end = b.end;
    b.params.chase_ns = allocate<uint64_t>(1);
    b.params.chase_clocks = allocate<uint64_t>(1);
    b.params.streamed = allocate<unsigned long long>(1);
    b.params.out = allocate<uint32_t>(1);
    b.params.stream = reinterpret_cast<uint4*>(random_words(stream_bytes / 4, 4));
    b.params.stream_mask = static_cast<uint32_t>(stream_bytes / 16 - 1);

    // 1,024 links: the warm-up of the second repeat has seen them all.
    b.params.chain = reinterpret_cast<unsigned char*>(chain(256 * KIB));
    measure<1>(b, "L2 of 256 KiB", 0, 0);
    b.params.start = 0;
    b.params.chain = reinterpret_cast<unsigned char*>(chain(512 * MIB));
    const std::string memory = "device memory of 512 MiB";
    measure<1>(b, memory, 0, 0);
    measure<1>(b, memory, 2, 64);
    measure<1>(b, memory, 2, 128);
    measure<1>(b, memory, 2, 256);
    measure<2>(b, memory, 2, 256);
    measure<3>(b, memory, 2, 256);
    measure<4>(b, memory, 2, 256);
    measure<3>(b, memory, 2, 512);
    measure<4>(b, memory, 2, 512);
    measure<8>(b, memory, 2, 512);
    return 0;
}
