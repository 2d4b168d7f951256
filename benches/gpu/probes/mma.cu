// The tensor cores through mma.sync: their rate from registers and fed by ldmatrix,
// whether a column's or a row's result depends on its neighbours or its place, and the
// rate of e4m3 to f16.
#include "probe.cuh"

constexpr double OPERATIONS = 2.0 * 16 * 8 * 16;

__device__ __forceinline__ uint32_t two_bf16(uint64_t index, uint32_t seed) {
    const __nv_bfloat162 two =
        __floats2bfloat162_rn(uniform(2 * index, seed), uniform(2 * index + 1, seed));
    return *reinterpret_cast<const uint32_t*>(&two);
}

// ACCUMULATORS independent mma a warp, operands in registers.
template <int ACCUMULATORS>
__global__ void __launch_bounds__(512) from_registers(int iterations, float* out, uint32_t) {
    uint32_t a[4], b[ACCUMULATORS][2];
    float acc[ACCUMULATORS][4] = {};
    const int thread = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = 0; i < 4; ++i) {
        a[i] = two_bf16(thread * 4 + i, 1);
    }
    for (int i = 0; i < ACCUMULATORS; ++i) {
        b[i][0] = two_bf16(thread * 2 * ACCUMULATORS + 2 * i, 2);
        b[i][1] = two_bf16(thread * 2 * ACCUMULATORS + 2 * i + 1, 2);
    }
    for (int it = 0; it < iterations; ++it) {
#pragma unroll
        for (int i = 0; i < ACCUMULATORS; ++i) {
            mma_bf16(acc[i], a[0], a[1], a[2], a[3], b[i][0], b[i][1]);
        }
    }
    float total = 0;
    for (int i = 0; i < ACCUMULATORS; ++i) {
        total += acc[i][0] + acc[i][1] + acc[i][2] + acc[i][3];
    }
    out[thread] = total;
}

// RATIO mma for each ldmatrix.x4: 1, the loaded matrices are A (as in decode); 2, they are
// two k16 n8 tiles of B; 4, those meet two tiles of A (as in prefill).
template <int RATIO>
__global__ void __launch_bounds__(512) from_shared(int iterations, float* out, uint32_t elsewhere) {
    // 256 rows of 128 bytes, 16-byte pieces XORed with row % 8.
    __shared__ __align__(128) uint32_t tile[256 * 32];
    for (int i = threadIdx.x; i < 256 * 32; i += blockDim.x) {
        tile[i] = two_bf16(i, 3);
    }
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int thread = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t base = shared_address(tile);
    uint32_t fixed[2][4];
    for (int i = 0; i < 8; ++i) {
        fixed[i / 4][i % 4] = two_bf16(thread * 8 + i, 4);
    }
    float acc[8][4] = {};
    uint32_t loaded[2][4];
    // Four pairs of pieces across 16 rows, then across the next 16: addresses of a register
    // and a constant, as an unrolled loop over a tile has them. `elsewhere` moves them every
    // iteration: loads from the same place would be merged.
    uint32_t pair[4];
    for (int i = 0; i < 4; ++i) {
        pair[i] = (warp % 8 * 32 + lane % 16) * 128 + ((2 * i + lane / 16) ^ (lane % 8)) * 16;
    }
    const auto load = [&](uint32_t(&to)[4], int step) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(base + pair[step % 4] + step / 4 * 2048));
    };
    load(loaded[0], 0);
    for (int it = 0; it < iterations; ++it) {
#pragma unroll
        for (int s = 0; s < 8; ++s) {
            const uint32_t(&now)[4] = loaded[s % 2];
            if (s == 7) {
                for (uint32_t& at : pair) {
                    at = (at + elsewhere) % (256 * 128);
                }
            }
            load(loaded[(s + 1) % 2], (s + 1) % 8);
            if (RATIO == 1) {
                mma_bf16(acc[s], now[0], now[1], now[2], now[3], fixed[0][0], fixed[0][1]);
            } else {
#pragma unroll
                for (int i = 0; i < RATIO; ++i) {
                    const uint32_t(&a)[4] = fixed[i / 2];
                    mma_bf16(acc[(s * RATIO + i) % 8], a[0], a[1], a[2], a[3], now[i % 2 * 2],
                             now[i % 2 * 2 + 1]);
                }
            }
        }
    }
    float total = 0;
    for (int i = 0; i < 8; ++i) {
        total += acc[i][0] + acc[i][1] + acc[i][2] + acc[i][3];
    }
    out[thread] = total;
}

template <typename K>
void rate(const std::string& name, K kernel, int warps, double mma_an_iteration, float* out) {
    const Machine& machine = Machine::get();
    if (out_of_time(name)) {
        return;
    }
    const int iterations = static_cast<int>(320'000 / (mma_an_iteration * warps)) * 4;
    const double seconds = median_seconds(nullptr, 9, [&](cudaStream_t stream) {
        kernel<<<machine.sms, warps * 32 * 4, 0, stream>>>(iterations, out, 4096);
    });
    Line("mma", name + ", " + std::to_string(warps) + " warps a scheduler")
        .number("seconds", seconds)
        .number("operations_per_second",
                OPERATIONS * mma_an_iteration * iterations * warps * 4 * machine.sms / seconds);
}

// What surrounds the column of B, or the row of A, whose product is looked at.
enum Around { ZEROS, RANDOM, HUGE_VALUES, INFINITIES, NANS };
constexpr const char* AROUND[] = {"zeros", "random", "huge", "infinities", "NaN"};

// A 16-bit float of a random sign and mantissa, and an exponent far from others' too.
template <bool F16> __device__ __forceinline__ uint32_t spread(uint32_t hash) {
    if (F16) {
        return (hash & 0x83ff) | (9 + (hash >> 16) % 13) << 10;
    }
    return (hash & 0x807f) | (115 + (hash >> 16) % 25) << 7;
}

template <bool F16> __device__ __forceinline__ uint32_t around(Around what, uint32_t hash) {
    switch (what) {
    case ZEROS:
        return 0;
    case RANDOM:
        return spread<F16>(hash);
    case HUGE_VALUES:
        return F16 ? (hash & 0x83ff) | 30 << 10 : (hash & 0x807f) | 250 << 7;
    case INFINITIES:
        return (hash & 0x8000) | (F16 ? 0x7c00 : 0x7f80);
    default:
        return 0x7fff;
    }
}

// A trial a warp: 16 mma in a chain. Writes the target's 16 (column) or 8 (row) results.
template <bool F16>
__global__ void neighbours(bool columns, Around what, bool moves, uint32_t* out) {
    const int lane = threadIdx.x % 32;
    const uint32_t trial = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int g = lane / 4;
    const int j = lane % 4;
    const int target = moves ? trial % (columns ? 8 : 16) : 0;
    float acc[4] = {};
    for (uint32_t link = 0; link < 16; ++link) {
        const uint32_t seed = mix(trial * 16 + link);
        // Element k of a row of A or a column of B, `of` its row or column.
        const auto element = [&](bool of_b, int of, int k) {
            const bool target_side = of_b == columns;
            if (target_side && of != target) {
                return around<F16>(what, mix(seed + 1 + 64 * of + k));
            }
            // The target's do not depend on where it is.
            return spread<F16>(mix(seed ^ mix((target_side ? 1000 : 2000 + 64 * of) + k)));
        };
        const auto two = [&](bool of_b, int of, int k) {
            return element(of_b, of, k) | element(of_b, of, k + 1) << 16;
        };
        const uint32_t a[4] = {two(false, g, 2 * j), two(false, g + 8, 2 * j),
                               two(false, g, 2 * j + 8), two(false, g + 8, 2 * j + 8)};
        const uint32_t b[2] = {two(true, g, 2 * j), two(true, g, 2 * j + 8)};
        if (F16) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                         "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                         : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        } else {
            mma_bf16(acc, a[0], a[1], a[2], a[3], b[0], b[1]);
        }
    }
    // acc: row g, columns 2 j and 2 j + 1; row g + 8, the same.
    uint32_t* to = out + trial * 16;
    if (columns && j == target / 2) {
        to[g] = __float_as_uint(acc[target % 2]);
        to[g + 8] = __float_as_uint(acc[2 + target % 2]);
    }
    if (!columns && g == target % 8) {
        to[2 * j] = __float_as_uint(acc[target / 8 * 2]);
        to[2 * j + 1] = __float_as_uint(acc[target / 8 * 2 + 1]);
    }
}

template <bool F16> void bits(uint32_t* out) {
    constexpr int TRIALS = 32'768;
    for (const bool columns : {true, false}) {
        const auto run = [&](Around what, bool moves) {
            CHECK(cudaMemset(out, 0, TRIALS * 16 * sizeof(uint32_t)));
            neighbours<F16><<<TRIALS / 8, 256>>>(columns, what, moves, out);
            CHECK(cudaGetLastError());
            return read_back(out, TRIALS * 16);
        };
        const std::vector<uint32_t> alone = run(ZEROS, false);
        const size_t nonzero = TRIALS * 16 - std::count(alone.begin(), alone.end(), 0u);
        for (const Around what : {ZEROS, RANDOM, HUGE_VALUES, INFINITIES, NANS}) {
            for (const bool moves : {false, true}) {
                const std::vector<uint32_t> other = run(what, moves);
                size_t different = 0;
                for (size_t i = 0; i < other.size(); ++i) {
                    different += other[i] != alone[i];
                }
                Line("mma", std::string("bits of a ") + (columns ? "column" : "row") + ", " +
                                (F16 ? "f16" : "bf16") + ", among " + AROUND[what] +
                                (moves ? ", at any place" : ""))
                    .number("outputs", static_cast<double>(nonzero))
                    .number("different", static_cast<double>(different));
            }
        }
    }
}

// Two e4m3 (16 bits) to two f16.
__device__ __forceinline__ uint32_t convert(uint32_t two) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    uint32_t out;
    asm volatile("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\n"
                 "cvt.rn.f16x2.e4m3x2 %0, low;\n}\n"
                 : "=r"(out)
                 : "r"(two));
    return out;
#else
    return two;
#endif
}

__device__ __forceinline__ uint32_t convert_high(uint32_t four) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    uint32_t out;
    asm volatile("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\n"
                 "cvt.rn.f16x2.e4m3x2 %0, high;\n}\n"
                 : "=r"(out)
                 : "r"(four));
    return out;
#else
    return four;
#endif
}

// The same over 256, without cvt: the bits moved to where f16 has them. Not for NaN.
__device__ __forceinline__ uint32_t shifted(uint32_t four, uint32_t selector) {
    // Each byte into the high half of 16 bits.
    const uint32_t spread = __byte_perm(four, 0, selector);
    return (spread & 0x80008000u) | ((spread >> 1) & 0x3f803f80u);
}

enum Way { CVT_CHAIN, CVT_BOTH_HALVES, SHIFT_AND_MASK };
constexpr const char* WAYS[] = {"cvt alone", "cvt of both halves of 32 bits",
                                "shift and mask of 32 bits"};

// CHAINS independent chains a thread; each step's input is the last one's output.
template <Way WAY>
__global__ void __launch_bounds__(1024)
    conversions(int iterations, uint32_t* out, long long* clocks) {
    constexpr int CHAINS = 8;
    uint32_t x[CHAINS];
    for (int i = 0; i < CHAINS; ++i) {
        x[i] = mix(threadIdx.x * CHAINS + i);
    }
    __syncthreads();
    const long long from = clock64();
    for (int it = 0; it < iterations; ++it) {
#pragma unroll
        for (int i = 0; i < CHAINS; ++i) {
            if (WAY == CVT_CHAIN) {
                x[i] = convert(x[i]);
            } else if (WAY == CVT_BOTH_HALVES) {
                x[i] = convert(x[i]) ^ convert_high(x[i]);
            } else {
                x[i] = shifted(x[i], 0x1404) ^ shifted(x[i], 0x3424);
            }
        }
    }
    __syncthreads();
    const long long to = clock64();
    uint32_t total = 0;
    for (int i = 0; i < CHAINS; ++i) {
        total ^= x[i];
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = total;
    if (threadIdx.x == 0) {
        clocks[blockIdx.x] = to - from;
    }
}

// All pairs of bytes: f16 of both ways, the shifted one times 256, in out[pair * 2 + way].
__global__ void both_ways(uint32_t* out) {
    const uint32_t pair = blockIdx.x * blockDim.x + threadIdx.x;
    out[pair * 2] = convert(pair);
    out[pair * 2 + 1] = shifted(pair, 0x1404);
}

template <Way WAY> void conversion_rate(uint32_t* out, long long* clocks) {
    const Machine& machine = Machine::get();
    const int iterations = 2000;
    for (const int threads : {128, 256, 512, 1024}) {
        conversions<WAY><<<machine.sms, threads>>>(iterations, out, clocks);
        conversions<WAY><<<machine.sms, threads>>>(iterations, out, clocks);
        CHECK(cudaGetLastError());
        std::vector<long long> took = read_back(clocks, machine.sms);
        std::nth_element(took.begin(), took.begin() + took.size() / 2, took.end());
        const double steps = 8.0 * iterations * threads / took[took.size() / 2];
        Line("mma", std::string("e4m3 to f16, ") + WAYS[WAY] + ", " + std::to_string(threads) +
                        " threads an SM")
            .number("steps_an_sm_a_clock", steps)
            .number("values_an_sm_a_clock", steps * (WAY == CVT_CHAIN ? 2 : 4));
    }
}

float half_bits(uint32_t bits) {
    const int exponent = bits >> 10 & 31;
    const float mantissa = static_cast<float>(bits & 1023) / 1024;
    const float size =
        exponent ? std::ldexp(1 + mantissa, exponent - 15) : std::ldexp(mantissa, -14);
    return bits & 0x8000 ? -size : size;
}

int main() {
    const Machine& machine = Machine::begin("mma");
    auto* out = allocate<uint32_t>(32'768 * 16);
    auto* floats = reinterpret_cast<float*>(out);
    for (const int warps : {1, 2, 4}) {
        rate("registers, 4 accumulators", from_registers<4>, warps, 4, floats);
        rate("registers, 8 accumulators", from_registers<8>, warps, 8, floats);
        rate("registers, 16 accumulators", from_registers<16>, warps, 16, floats);
        rate("1 a ldmatrix.x4", from_shared<1>, warps, 8, floats);
        rate("2 a ldmatrix.x4", from_shared<2>, warps, 16, floats);
        rate("4 a ldmatrix.x4", from_shared<4>, warps, 32, floats);
    }
    bits<false>(out);
    bits<true>(out);
    if (machine.device.major * 10 + machine.device.minor >= 89) {
        auto* clocks = allocate<long long>(machine.sms);
        conversion_rate<CVT_CHAIN>(out, clocks);
        conversion_rate<CVT_BOTH_HALVES>(out, clocks);
        conversion_rate<SHIFT_AND_MASK>(out, clocks);
        both_ways<<<256, 256>>>(out);
        CHECK(cudaGetLastError());
        const std::vector<uint32_t> pairs = read_back(out, 65'536 * 2);
        size_t different = 0;
        for (uint32_t pair = 0; pair < 65'536; ++pair) {
            for (const int half : {0, 1}) {
                // Not NaN, which has no shifted form.
                if ((pair >> 8 * half & 0x7f) != 0x7f) {
                    const float one = half_bits(pairs[pair * 2] >> 16 * half & 0xffff);
                    const float other = half_bits(pairs[pair * 2 + 1] >> 16 * half & 0xffff) * 256;
                    different += one != other;
                }
            }
        }
        Line("mma", "e4m3 to f16, shift and mask against cvt")
            .number("different", static_cast<double>(different))
            .truth("right", different == 0);
    }
    return 0;
}
