// How KV pages at random addresses come into shared memory fastest: 16-byte cp.async
// rings, 1-D bulk copies on mbarriers, or loads to registers, by page size, bytes in
// flight an SM, blocks an SM and warps a block.
#include "barrier.cuh"

#include <numeric>
#include <random>

enum Way { CP_ASYNC, BULK, REGISTERS };
constexpr const char* WAYS[] = {"cp.async", "bulk", "registers"};

struct Params {
    const unsigned char* pool;
    // Pages in reading order.
    const uint32_t* table;
    uint32_t pages;
    // Pages in flight a warp.
    int slots;
    // The sum of every 32-bit word read, wrapping.
    uint32_t* out;
};

// The block table's entries of this warp's run of pages, 32 at a time, the next 32 under
// way while these are used.
struct Entries {
    const uint32_t* table;
    uint32_t count;
    uint32_t current, next;

    __device__ Entries(const uint32_t* table, uint32_t count) : table(table), count(count) {
        fetch(0);
    }
    __device__ void fetch(uint32_t from) {
        const uint32_t i = from + threadIdx.x % 32;
        next = i < count ? __ldg(table + i) : 0;
    }
    // Entry i, by all lanes, with i counting up from 0.
    __device__ uint32_t at(uint32_t i) {
        if (i % 32 == 0) {
            current = next;
            fetch(i + 32);
        }
        return __shfl_sync(~0u, current, i % 32);
    }
};

__device__ __forceinline__ void wait_groups(int pending) {
#define WAIT(n)                                                                                    \
    case n:                                                                                        \
        asm volatile("cp.async.wait_group %0;\n" ::"n"(n) : "memory");                             \
        break;
    switch (pending) {
        WAIT(1)
        WAIT(2) WAIT(3) WAIT(4) WAIT(5) WAIT(6) WAIT(7) WAIT(8) WAIT(9) WAIT(10) WAIT(11) WAIT(12)
            WAIT(13) WAIT(14) WAIT(15) WAIT(16) WAIT(17) WAIT(18) WAIT(19) WAIT(20) WAIT(21)
                WAIT(22) WAIT(23) default : asm volatile("cp.async.wait_group 0;\n" ::
                                                             : "memory");
    }
#undef WAIT
}

// Each warp reads its own run of pages through its own ring of `slots` pages; no block
// barrier after the start. Dynamic shared memory: warps * slots pages, then as many
// barriers (BULK).
template <Way WAY, int PAGE> __global__ void __launch_bounds__(256) read_ring(const Params p) {
#ifdef HAS_BULK_COPIES
    extern __shared__ __align__(128) unsigned char shared[];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int warps = blockDim.x / 32;
    unsigned char* ring = shared + static_cast<size_t>(warp) * p.slots * PAGE;
    uint64_t* barriers =
        reinterpret_cast<uint64_t*>(shared + static_cast<size_t>(warps) * p.slots * PAGE) +
        warp * p.slots;
    if (WAY == BULK && lane == 0) {
        for (int i = 0; i < p.slots; ++i) {
            barrier_init(barriers + i, 1);
        }
        barrier_init_fence();
    }
    __syncthreads();

    const uint64_t all = static_cast<uint64_t>(gridDim.x) * warps;
    const uint64_t mine = static_cast<uint64_t>(blockIdx.x) * warps + warp;
    const auto begin = static_cast<uint32_t>(p.pages * mine / all);
    const auto count = static_cast<uint32_t>(p.pages * (mine + 1) / all) - begin;
    Entries entries(p.table + begin, count);

    const auto issue = [&](uint32_t i, int slot) {
        const unsigned char* from = p.pool + static_cast<uint64_t>(entries.at(i)) * PAGE;
        unsigned char* to = ring + slot * PAGE;
        if (WAY == BULK) {
            if (lane == 0) {
                barrier_arrive_expect(barriers + slot, PAGE);
                bulk_copy(to, from, PAGE, barriers + slot);
            }
        } else {
#pragma unroll
            for (int j = 0; j < PAGE / 512; ++j) {
                const int at = j * 512 + lane * 16;
                asm volatile(
                    "cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(to + at)),
                    "l"(from + at)
                    : "memory");
            }
        }
    };
    const auto commit = [] {
        if (WAY == CP_ASYNC) {
            asm volatile("cp.async.commit_group;\n" ::: "memory");
        }
    };
    for (int i = 0; i < p.slots; ++i) {
        if (static_cast<uint32_t>(i) < count) {
            issue(i, i);
        }
        commit();
    }
    uint32_t total = 0;
    uint32_t parity = 0;
    int slot = 0;
    for (uint32_t i = 0; i < count; ++i) {
        // Of the slots + i groups so far the first i + 1 must be there.
        if (WAY == BULK) {
            barrier_wait(barriers + slot, parity);
        } else {
            wait_groups(p.slots - 1);
            __syncwarp();
        }
#pragma unroll
        for (int j = 0; j < PAGE / 512; ++j) {
            total += sum(*reinterpret_cast<const uint4*>(ring + slot * PAGE + j * 512 + lane * 16));
        }
        // Every lane has read the slot before it is filled again.
        __syncwarp();
        if (i + p.slots < count) {
            issue(i + p.slots, slot);
        }
        commit();
        if (++slot == p.slots) {
            slot = 0;
            parity ^= 1;
        }
    }
    atomicAdd(p.out, total);
#endif
}

// SLOTS pages at a time straight to registers.
template <int PAGE, int SLOTS>
__global__ void __launch_bounds__(256) read_registers(const Params p) {
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    const uint64_t all = static_cast<uint64_t>(gridDim.x) * warps;
    const uint64_t mine = static_cast<uint64_t>(blockIdx.x) * warps + threadIdx.x / 32;
    const auto begin = static_cast<uint32_t>(p.pages * mine / all);
    const auto count = static_cast<uint32_t>(p.pages * (mine + 1) / all) - begin;
    Entries entries(p.table + begin, count);
    uint32_t total = 0;
    uint4 ring[SLOTS][PAGE / 512];
    const auto issue = [&](uint32_t i, uint4(&to)[PAGE / 512]) {
        const unsigned char* from = p.pool + static_cast<uint64_t>(entries.at(i)) * PAGE;
#pragma unroll
        for (int j = 0; j < PAGE / 512; ++j) {
            to[j] = load_stream(reinterpret_cast<const uint4*>(from + j * 512 + lane * 16));
        }
    };
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        if (static_cast<uint32_t>(s) < count) {
            issue(s, ring[s]);
        }
    }
    for (uint32_t i = 0; i < count; i += SLOTS) {
#pragma unroll
        for (int s = 0; s < SLOTS; ++s) {
            if (i + s < count) {
#pragma unroll
                for (int j = 0; j < PAGE / 512; ++j) {
                    total += sum(ring[s][j]);
                }
                if (i + s + SLOTS < count) {
                    issue(i + s + SLOTS, ring[s]);
                }
            }
        }
    }
    atomicAdd(p.out, total);
}

// A stage of 32 pages, whose copies one warp issues, a page a lane; the other warps read
// it together. Dynamic shared memory: stages * 32 pages, then 2 * stages barriers.
template <int PAGE> __global__ void __launch_bounds__(288) read_stages(const Params p, int stages) {
#ifdef HAS_BULK_COPIES
    extern __shared__ __align__(128) unsigned char shared[];
    constexpr int STAGE = 32 * PAGE;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int readers = blockDim.x / 32 - 1;
    uint64_t* full = reinterpret_cast<uint64_t*>(shared + static_cast<size_t>(stages) * STAGE);
    uint64_t* empty = full + stages;
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; ++i) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, readers);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const uint32_t all = p.pages / 32;
    int stage = 0;
    uint32_t parity = 0;
    if (warp == readers) {
        uint32_t page = blockIdx.x < all ? __ldg(p.table + blockIdx.x * 32 + lane) : 0;
        for (uint32_t i = blockIdx.x; i < all; i += gridDim.x) {
            const uint32_t now = page;
            const uint32_t after = i + gridDim.x;
            page = after < all ? __ldg(p.table + after * 32 + lane) : 0;
            // The first time round a stage is empty: the phase before a barrier's first
            // counts as over.
            barrier_wait(empty + stage, parity ^ 1);
            if (lane == 0) {
                barrier_arrive_expect(full + stage, STAGE);
            }
            // Bytes are expected before the first of them can land.
            __syncwarp();
            bulk_copy(shared + stage * STAGE + lane * PAGE,
                      p.pool + static_cast<uint64_t>(now) * PAGE, PAGE, full + stage);
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }
    } else {
        uint32_t total = 0;
        for (uint32_t i = blockIdx.x; i < all; i += gridDim.x) {
            barrier_wait(full + stage, parity);
            for (int at = threadIdx.x * 16; at < STAGE; at += readers * 512) {
                total += sum(*reinterpret_cast<const uint4*>(shared + stage * STAGE + at));
            }
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(empty + stage);
            }
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }
        atomicAdd(p.out, total);
    }
#endif
}

constexpr size_t POOL = 2 * GIB;
constexpr int RESERVED_A_BLOCK = 1024;

template <typename F>
void report(const Params& p, const std::string& name, const char* way, size_t page,
            double in_flight, int blocks, int warps, uint32_t expected, F&& launch) {
    if (out_of_time(name)) {
        return;
    }
    CHECK(cudaMemset(p.out, 0, 4));
    launch(cudaStream_t{});
    CHECK(cudaGetLastError());
    const bool right = read_back(p.out, 1)[0] == expected;
    const double seconds = median_seconds(nullptr, 7, launch);
    Line("pages", name)
        .word("way", way)
        .number("page_bytes", static_cast<double>(page))
        .number("bytes_in_flight_an_sm", in_flight)
        .number("blocks_an_sm", blocks)
        .number("warps_a_block", warps)
        .number("seconds", seconds)
        .number("bytes_per_second", POOL / seconds)
        .truth("right", right);
}

template <Way WAY, int PAGE>
void ring(Params p, const char* order, size_t in_flight, int blocks, int warps, uint32_t expected) {
    const Machine& machine = Machine::get();
    p.slots = static_cast<int>(in_flight / (static_cast<size_t>(blocks) * warps * PAGE));
    // A whole number of slots, and no more than wait_groups knows.
    if (static_cast<size_t>(p.slots) * blocks * warps * PAGE != in_flight || p.slots == 0 ||
        p.slots > 24) {
        return;
    }
    const size_t bytes = static_cast<size_t>(p.slots) * warps * (PAGE + 8);
    if ((bytes + RESERVED_A_BLOCK) * blocks > machine.device.sharedMemPerMultiprocessor ||
        bytes > machine.device.sharedMemPerBlockOptin) {
        return;
    }
    CHECK(cudaFuncSetAttribute(read_ring<WAY, PAGE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(machine.device.sharedMemPerBlockOptin)));
    CHECK(cudaFuncSetAttribute(read_ring<WAY, PAGE>, cudaFuncAttributePreferredSharedMemoryCarveout,
                               100));
    const std::string name = std::string(WAYS[WAY]) + ", " + order + " pages of " +
                             std::to_string(PAGE / KIB) + " KiB, " +
                             std::to_string(in_flight / KIB) + " KiB, " + std::to_string(blocks) +
                             " x " + std::to_string(warps) + " warps";
    report(p, name, WAYS[WAY], PAGE, static_cast<double>(in_flight), blocks, warps, expected,
           [&](cudaStream_t stream) {
               read_ring<WAY, PAGE><<<machine.sms * blocks, warps * 32, bytes, stream>>>(p);
           });
}

template <int PAGE, int SLOTS> void registers(const Params& p, int blocks, uint32_t expected) {
    const Machine& machine = Machine::get();
    int resident = 0;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, read_registers<PAGE, SLOTS>, 256,
                                                        0));
    if (resident < blocks) {
        return;
    }
    const size_t in_flight = static_cast<size_t>(blocks) * 8 * SLOTS * PAGE;
    const std::string name = "registers, random pages of " + std::to_string(PAGE / KIB) + " KiB, " +
                             std::to_string(in_flight / KIB) + " KiB, " + std::to_string(blocks) +
                             " x 8 warps";
    report(p, name, WAYS[REGISTERS], PAGE, static_cast<double>(in_flight), blocks, 8, expected,
           [&](cudaStream_t stream) {
               read_registers<PAGE, SLOTS><<<machine.sms * blocks, 256, 0, stream>>>(p);
           });
}

template <int PAGE> void stages(const Params& p, int stages, uint32_t expected) {
    const Machine& machine = Machine::get();
    const size_t bytes = static_cast<size_t>(stages) * (32 * PAGE + 16);
    if (bytes > machine.device.sharedMemPerBlockOptin) {
        return;
    }
    CHECK(cudaFuncSetAttribute(read_stages<PAGE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
    const std::string name = "bulk by one warp, random pages of " + std::to_string(PAGE / KIB) +
                             " KiB, " + std::to_string(stages) + " stages of 32";
    report(p, name, "bulk by one warp", PAGE, static_cast<double>(stages) * 32 * PAGE, 1, 9,
           expected, [&](cudaStream_t stream) {
               read_stages<PAGE><<<machine.sms, 288, bytes, stream>>>(p, stages);
           });
}

// Every page size's cases, over a random and, for two of them, a sequential table.
template <int PAGE> void all(const unsigned char* pool, uint32_t* out, uint32_t expected) {
    const auto pages = static_cast<uint32_t>(POOL / PAGE);
    std::vector<uint32_t> order(pages);
    std::iota(order.begin(), order.end(), 0u);
    auto* table = allocate<uint32_t>(pages);
    CHECK(cudaMemcpy(table, order.data(), pages * sizeof(uint32_t), cudaMemcpyHostToDevice));
    const Params p{pool, table, pages, 0, out};
    ring<CP_ASYNC, PAGE>(p, "sequential", 96 * KIB, 1, 4, expected);
    ring<BULK, PAGE>(p, "sequential", 96 * KIB, 1, 4, expected);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    CHECK(cudaMemcpy(table, order.data(), pages * sizeof(uint32_t), cudaMemcpyHostToDevice));
    for (const size_t kib : {16, 32, 64, 96, 144, 192}) {
        for (const int blocks : {1, 2, 3}) {
            for (const int warps : {4, 8}) {
                ring<CP_ASYNC, PAGE>(p, "random", kib * KIB, blocks, warps, expected);
                ring<BULK, PAGE>(p, "random", kib * KIB, blocks, warps, expected);
            }
        }
    }
    for (const int count : {1, 2, 3}) {
        stages<PAGE>(p, count, expected);
    }
    for (const int blocks : {1, 2, 3, 4}) {
        registers<PAGE, 1>(p, blocks, expected);
        registers<PAGE, 2>(p, blocks, expected);
        registers<PAGE, 4>(p, blocks, expected);
    }
}

int main() {
    const Machine& machine = Machine::begin("pages");
    if (!machine.hopper()) {
        Line("pages", "all").word("skipped", "no bulk copies on this device");
        return 0;
    }
    auto* pool = random_words(POOL / 4, 3);
    auto* out = allocate<uint32_t>(1);
    const uint32_t expected = sum_on_device(pool, POOL / 4, out);
    all<2048>(reinterpret_cast<unsigned char*>(pool), out, expected);
    all<4096>(reinterpret_cast<unsigned char*>(pool), out, expected);
    return 0;
}
