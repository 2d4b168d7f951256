// What device memory and L2 give: copies, reads and writes far larger than L2, and reads
// of buffers that fit it, by bytes in flight.
#include "probe.cuh"

// Block b takes every gridDim.x-th run of blockDim.x * UNROLL pieces of 16 bytes, so that
// what is in flight at a time is contiguous. A piece's load for the next run follows its
// use in this one: the loads live across the loop's edge, where the compiler cannot trade
// them for fewer registers.
template <int UNROLL> __global__ void read_pieces(const uint4* from, size_t pieces, uint32_t* out) {
    const size_t run = static_cast<size_t>(blockDim.x) * UNROLL;
    const size_t step = gridDim.x * run;
    size_t at = blockIdx.x * run;
    if (at >= pieces) {
        return;
    }
    from += at + threadIdx.x;
    uint32_t total = 0;
    uint4 piece[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        piece[u] = load_stream(from + u * blockDim.x);
    }
    for (at += step; at < pieces; at += step) {
        from += step;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            total += sum(piece[u]);
            piece[u] = load_stream(from + u * blockDim.x);
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        total += sum(piece[u]);
    }
    atomicAdd(out, total);
}

template <int UNROLL> __global__ void copy_pieces(const uint4* from, uint4* to, size_t pieces) {
    const size_t run = static_cast<size_t>(blockDim.x) * UNROLL;
    const size_t step = gridDim.x * run;
    size_t at = blockIdx.x * run;
    if (at >= pieces) {
        return;
    }
    from += at + threadIdx.x;
    to += at + threadIdx.x;
    uint4 piece[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        piece[u] = load_stream(from + u * blockDim.x);
    }
    for (at += step; at < pieces; at += step) {
        from += step;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            __stcs(to + u * blockDim.x, piece[u]);
            piece[u] = load_stream(from + u * blockDim.x);
        }
        to += step;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        __stcs(to + u * blockDim.x, piece[u]);
    }
}

// `passes` reads of the whole buffer by the grid; each pass starts some blocks further on,
// so that no SM reads its own bytes again.
__global__ void __launch_bounds__(256)
    read_again(const uint4* from, uint32_t pieces, int passes, uint32_t* out) {
    constexpr int UNROLL = 8;
    const uint32_t run = blockDim.x * UNROLL;
    uint32_t total = 0;
    uint4 piece[UNROLL] = {};
    for (int pass = 0; pass < passes; ++pass) {
        const uint32_t block = (blockIdx.x + static_cast<uint32_t>(pass) * 17) % gridDim.x;
        for (uint32_t at = block * run; at < pieces; at += gridDim.x * run) {
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                const uint32_t i = at + u * blockDim.x + threadIdx.x;
                total += sum(piece[u]);
                piece[u] = i < pieces ? load_l2(from + i) : uint4{};
            }
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        total += sum(piece[u]);
    }
    atomicAdd(out, total);
}

template <int UNROLL>
void measure(const uint4* from, uint4* to, size_t bytes, uint32_t* out, uint32_t expected,
             int blocks, int threads) {
    const Machine& machine = Machine::get();
    const size_t pieces = bytes / 16;
    const int grid = machine.sms * blocks;
    const std::string shape = std::to_string(blocks) + " blocks an SM of " +
                              std::to_string(threads) + " threads, " + std::to_string(UNROLL) +
                              " loads";
    int resident = 0;
    CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, read_pieces<UNROLL>, threads, 0));
    const double in_flight =
        static_cast<double>(std::min(blocks, resident)) * threads * UNROLL * 16;
    if (out_of_time("read " + shape)) {
        return;
    }
    CHECK(cudaMemset(out, 0, 4));
    read_pieces<UNROLL><<<grid, threads>>>(from, pieces, out);
    CHECK(cudaGetLastError());
    const bool right = read_back(out, 1)[0] == expected;
    double seconds = median_seconds(nullptr, 9, [&](cudaStream_t stream) {
        read_pieces<UNROLL><<<grid, threads, 0, stream>>>(from, pieces, out);
    });
    Line("bandwidth", "read " + shape)
        .number("bytes_in_flight_an_sm", in_flight)
        .number("seconds", seconds)
        .number("bytes_per_second", bytes / seconds)
        .truth("right", right);
    seconds = median_seconds(nullptr, 9, [&](cudaStream_t stream) {
        copy_pieces<UNROLL><<<grid, threads, 0, stream>>>(from, to, pieces);
    });
    Line("bandwidth", "copy " + shape)
        .number("bytes_in_flight_an_sm", in_flight)
        .number("seconds", seconds)
        .number("bytes_per_second", 2.0 * bytes / seconds);
}

int main() {
    const Machine& machine = Machine::begin("bandwidth");
    // Divisible by every run: 1,024 threads * 8 * 16 bytes.
    const size_t bytes = 2 * GIB;
    auto* from = reinterpret_cast<uint4*>(random_words(bytes / 4, 1));
    auto* to = reinterpret_cast<uint4*>(random_words(bytes / 4, 2));
    auto* out = allocate<uint32_t>(1);
    const uint32_t expected = sum_on_device(reinterpret_cast<uint32_t*>(from), bytes / 4, out);

    // The L2 cases' sums too, once.
    CHECK(cudaMemset(out, 0, 4));
    read_again<<<machine.sms * 4, 256>>>(from, static_cast<uint32_t>(bytes / 16), 1, out);
    CHECK(cudaGetLastError());
    Line("bandwidth", "read_again").truth("right", read_back(out, 1)[0] == expected);

    double seconds = median_seconds(nullptr, 9, [&](cudaStream_t stream) {
        CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
    });
    Line("bandwidth", "copy by cudaMemcpyAsync")
        .number("seconds", seconds)
        .number("bytes_per_second", 2.0 * bytes / seconds);
    seconds = median_seconds(
        nullptr, 9, [&](cudaStream_t stream) { CHECK(cudaMemsetAsync(to, 1, bytes, stream)); });
    Line("bandwidth", "write by cudaMemsetAsync")
        .number("seconds", seconds)
        .number("bytes_per_second", bytes / seconds);
    for (const int threads : {256, 512, 1024}) {
        for (int blocks = 1; blocks * threads <= 2048; blocks *= 2) {
            measure<1>(from, to, bytes, out, expected, blocks, threads);
            measure<2>(from, to, bytes, out, expected, blocks, threads);
            measure<4>(from, to, bytes, out, expected, blocks, threads);
            // More than half the registers of a thread are its pieces: not at full occupancy.
            if (blocks * threads <= 1024) {
                measure<8>(from, to, bytes, out, expected, blocks, threads);
            }
        }
    }

    for (const size_t mib : {1, 5, 10, 20, 25, 30, 40, 50, 100}) {
        const auto pieces = static_cast<uint32_t>(mib * MIB / 16);
        const int passes = static_cast<int>(1000 / mib) + 1;
        const std::string name = "read again and again, " + std::to_string(mib) + " MiB";
        if (out_of_time(name)) {
            break;
        }
        seconds = median_seconds(nullptr, 9, [&](cudaStream_t stream) {
            read_again<<<machine.sms * 4, 256, 0, stream>>>(from, pieces, passes, out);
        });
        Line("bandwidth", name)
            .number("seconds", seconds / passes)
            .number("bytes_per_second", static_cast<double>(mib * MIB) * passes / seconds);
    }
    return 0;
}
