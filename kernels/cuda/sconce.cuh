// What the kernels need beyond plain C++: element types, warp collectives, tensor
// core and asynchronous copy instructions. Under nvcc they are the device's own;
// without it `shim.hpp` runs the same kernels on a CPU (see kernels/shim).
//
// Every kernel takes one parameter struct by value, so that a launch is the same
// few lines for all of them, here and in the shim.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

using bf16 = __nv_bfloat16;
using f16 = __half;
using e4m3 = __nv_fp8_e4m3;

// Programmatic dependent launch (CUDA C++ Programming Guide): from compute capability 9.0 on a
// kernel's blocks may start while the kernel before it still runs. Until `await_previous`
// returns, a kernel reads only what no kernel of a step writes, and writes nothing.
__device__ __forceinline__ void await_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// The next kernel's blocks may start where there is room for them, once all of this one's have.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

#define KERNEL_BEGINNING(name, Params, first, ...)                                 \
    static __device__ __forceinline__ void name##_body(const Params& p);           \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                      \
        name(const __grid_constant__ Params p) {                                   \
        first;                                                                     \
        name##_body(p);                                                            \
    }                                                                              \
    static __device__ __forceinline__ void name##_body(const Params& p)

__device__ __forceinline__ void begin_kernel() {
    let_next_start();
    await_previous();
}

#define KERNEL(name, Params, threads) KERNEL_BEGINNING(name, Params, begin_kernel(), threads)

// A kernel of whose blocks so many at least run side by side on a multiprocessor, which
// bounds its registers; without that the compiler weighs spills against more blocks.
#define KERNEL_RESIDENT(name, Params, threads, blocks)                             \
    KERNEL_BEGINNING(name, Params, begin_kernel(), threads, blocks)

// The same two, of a kernel that calls `await_previous` itself.
#define KERNEL_EARLY(name, Params, threads) KERNEL_BEGINNING(name, Params, let_next_start(), threads)
#define KERNEL_EARLY_RESIDENT(name, Params, threads, blocks)                       \
    KERNEL_BEGINNING(name, Params, let_next_start(), threads, blocks)

// And of one that calls `let_next_start` itself.
#define KERNEL_LAST(name, Params, threads, blocks)                                 \
    KERNEL_BEGINNING(name, Params, await_previous(), threads, blocks)

// A block's static shared memory: `name`, an array.
#define SHARED(type, name, count) __shared__ type name[count]

// The launch's dynamic shared memory, aligned for 16-byte copies.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(e4m3 x) { return static_cast<float>(x); }
__device__ __forceinline__ float to_float(float x) { return x; }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ bf16 from_float(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_float(float x) { return __float2half_rn(x); }
// Saturates: what is beyond +-448 becomes +-448.
template <> __device__ __forceinline__ e4m3 from_float(float x) { return e4m3(x); }
template <> __device__ __forceinline__ float from_float(float x) { return x; }

// 2^x; 0 for -infinity and what underflows, exactly 1 for 0. Two units of the last
// place (PTX ISA, "ex2").
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// The larger one, or NaN if one is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// What f16s that `widen` gives are to be multiplied with. Compute capability 8.0 has no
// conversion, but e4m3's bits moved by one are an f16 2^8 times smaller (which of NaN
// makes 480).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
constexpr float WIDENED_UNIT = 256.0f;
#else
constexpr float WIDENED_UNIT = 1.0f;
#endif

// Four e4m3 as f16: bytes 0 and 1, and bytes 2 and 3.
__device__ __forceinline__ void widen(uint32_t bytes, uint32_t& low, uint32_t& high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    const uint32_t even = __byte_perm(bytes, 0, 0x1404);
    const uint32_t odd = __byte_perm(bytes, 0, 0x3424);
    low = (even & 0x80008000u) | ((even & 0x7f007f00u) >> 1);
    high = (odd & 0x80008000u) | ((odd & 0x7f007f00u) >> 1);
#else
    asm("{\n"
        ".reg .b16 l, h;\n"
        "mov.b32 {l, h}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n"
        "}\n"
        : "=r"(low), "=r"(high)
        : "r"(bytes));
#endif
}

// The same: bytes 0 and 2, and bytes 1 and 3.
__device__ __forceinline__ void widen_crossed(uint32_t bytes, uint32_t& low, uint32_t& high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    const uint32_t even = bytes << 8;
    low = (even & 0x80008000u) | ((even & 0x7f007f00u) >> 1);
    high = (bytes & 0x80008000u) | ((bytes & 0x7f007f00u) >> 1);
#else
    widen(__byte_perm(bytes, 0, 0x3120), low, high);
#endif
}

// D = A * B + C for one 16x8x16 tile of a warp (PTX ISA, "mma.m16n8k16").
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements; each lane gives the address of one row.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// Copies 16 bytes to shared memory in the background; writes zeros, and reads
// nothing, where `valid` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
                 :
                 : "r"(address), "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most N of this thread's groups are still under way.
template <int N> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" : : "n"(N) : "memory");
}

#else
#include "shim.hpp"
#endif

constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;
// Tokens of a KV block.
constexpr int BLOCK_TOKENS = 16;

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / WARP; }

// The sum over a warp, the same bits in every lane: lanes are paired by XOR, and
// addition is commutative.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    }
    return x;
}

// The sum over a block of WARPS warps, the same bits in every thread.
template <int WARPS> __device__ __forceinline__ float block_sum(float x) {
    SHARED(float, partial, WARPS);
    x = warp_sum(x);
    if (lane_id() == 0) {
        partial[warp_id()] = x;
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        sum += partial[warp];
    }
    // The next sum may overwrite what others still read.
    __syncthreads();
    return sum;
}

// Two elements in one word, the first one low.
template <typename T> __device__ __forceinline__ uint32_t pack(float low, float high) {
    static_assert(sizeof(T) == 2, "two elements a word");
    const T pair[2] = {from_float<T>(low), from_float<T>(high)};
    uint32_t word;
    memcpy(&word, pair, sizeof(word));
    return word;
}

// 16 bytes of elements, moved together.
template <typename T> struct alignas(16) Vector {
    static constexpr int LEN = 16 / sizeof(T);
    T x[LEN];
};

// 16 bytes of what is read once, past L1; zeros, and nothing is read, where `valid` is false.
__device__ __forceinline__ Vector<uint32_t> load_stream(const Vector<uint32_t>* from, bool valid) {
    Vector<uint32_t> words = {};
    if (valid) {
#ifdef __CUDACC__
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(words.x[0]), "=r"(words.x[1]), "=r"(words.x[2]), "=r"(words.x[3])
                     : "l"(from));
#else
        words = *from;
#endif
    }
    return words;
}

// Brings 128 bytes, of which this is one, near.
__device__ __forceinline__ void prefetch(const void* at) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(at));
#endif
    (void)at;
}

// Two elements of one word, the low one first.
template <typename T> __device__ __forceinline__ void unpack(uint32_t word, float& low, float& high);
template <> __device__ __forceinline__ void unpack<bf16>(uint32_t word, float& low, float& high) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
}
template <> __device__ __forceinline__ void unpack<f16>(uint32_t word, float& low, float& high) {
    f16 pair[2];
    memcpy(pair, &word, sizeof(pair));
    low = to_float(pair[0]);
    high = to_float(pair[1]);
}

// Eight e4m3 numbers times a scale, in T.
template <typename T>
__device__ __forceinline__ Vector<uint32_t> widened(uint32_t first, uint32_t second, float scale) {
    Vector<uint32_t> out;
#pragma unroll
    for (int word = 0; word < 2; ++word) {
        uint32_t pairs[2];
        widen(word == 0 ? first : second, pairs[0], pairs[1]);
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            float low, high;
            unpack<f16>(pairs[pair], low, high);
            out.x[word * 2 + pair] =
                pack<T>(low * (scale * WIDENED_UNIT), high * (scale * WIDENED_UNIT));
        }
    }
    return out;
}
