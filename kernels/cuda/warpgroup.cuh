// Products of a group of four warps that read shared memory themselves (PTX ISA, "wgmma"),
// for compute capability 9.0. Registers hold rows and columns as with `mma`: warp w of the
// group has rows 16 * w to 16 * w + 15.
#pragma once

#include "kv_tiles.cuh"

// The shim emulates them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define WARPGROUP_PRODUCTS 1
#else
#define WARPGROUP_PRODUCTS 0
#endif

#if WARPGROUP_PRODUCTS && defined(__CUDACC__)

// An address as descriptors have it.
__device__ __forceinline__ uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Makes what this thread wrote to shared memory visible to such products.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// What tensor cores read: `between` are the bytes from one unit of eight rows to the next,
// `blocks` those from one block of 64 columns to the next, where these are what is
// summed over.
using Matrix = uint64_t;

__device__ __forceinline__ Matrix matrix(const void* at, uint32_t between, uint32_t blocks) {
    const uint32_t address = shared_address(at);
    return uint64_t(address >> 4) | uint64_t(blocks >> 4) << 16 | uint64_t(between >> 4) << 32 | uint64_t(1) << 62;
}

// The same, so many bytes further on.
__device__ __forceinline__ Matrix moved(Matrix matrix, uint32_t bytes) { return matrix + (bytes >> 4); }

// Before the first product after registers were written, or shared memory.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until at most N committed groups are under way.
template <int N> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}

// Whether this is the one lane of its warp that does what one has to.
__device__ __forceinline__ bool is_elected() {
    uint32_t elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}\n"
                 : "=r"(elected));
    return elected != 0;
}

// Arrivals at a place in shared memory, in phases of `arrivals` each (PTX ISA, "mbarrier").
struct Barrier {
    uint64_t state;

    __device__ __forceinline__ void begin(uint32_t arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&state)), "r"(arrivals)
                     : "memory");
    }

    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&state)) : "memory");
    }

    // The phase does not end before so many bytes more have come.
    __device__ __forceinline__ void expect(uint32_t bytes) {
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&state)), "r"(bytes)
                     : "memory");
    }

    // Waits for the end of the phase of that parity; the one before the first has parity 1. A wait
    // that takes ten seconds, more than any grid, ends the kernel with an error: a trial of it is
    // over then, and names it. Signed, as the timer may be set back.
    __device__ __forceinline__ void await(uint32_t parity) {
        asm volatile("{\n"
                     ".reg .pred ended, over;\n"
                     ".reg .u64 since, now;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                     "@ended bra done;\n"
                     "mov.u64 since, %globaltimer;\n"
                     "again:\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                     "@ended bra done;\n"
                     "mov.u64 now, %globaltimer;\n"
                     "sub.u64 now, now, since;\n"
                     "setp.gt.s64 over, now, 10000000000;\n"
                     "@over trap;\n"
                     "bra again;\n"
                     "done:\n"
                     "}\n" ::"r"(shared_address(&state)),
                     "r"(parity)
                     : "memory");
    }
};

// Waits until so many threads have come to the block's barrier of that number, or comes to it
// without a wait.
__device__ __forceinline__ void sync_threads(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_threads(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// What registers the threads of a group have from here on.
template <int REGISTERS> __device__ __forceinline__ void give_registers_back() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

// Keeps the compiler from moving what touches these registers past this place.
template <int TILES> __device__ __forceinline__ void pin(float (&d)[TILES][4]) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            asm volatile("" : "+f"(d[n][i])::"memory");
        }
    }
}

__device__ __forceinline__ void pin(uint32_t& word) { asm volatile("" : "+r"(word)::"memory"); }

// Has these numbers computed before the wait for products that follows, behind which the assembler
// would move them: a `nanosleep` depends on them that is never executed, since no float that is
// computed has these bits.
__device__ __forceinline__ void settle(float (&x)[2]) {
    asm volatile("{\n"
                 ".reg .pred p, q;\n"
                 "setp.eq.u32 p, %0, 0x7fffdead;\n"
                 "setp.eq.or.u32 q, %1, 0x7fffdead, p;\n"
                 "@q nanosleep.u32 0;\n"
                 "}\n" ::"r"(__float_as_uint(x[0])),
                 "r"(__float_as_uint(x[1])));
}

template <int STEPS> __device__ __forceinline__ void pin(uint32_t (&a)[STEPS][4]) {
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            asm volatile("" : "+r"(a[k][i])::"memory");
        }
    }
}

// D = A * B, and what D was where `adds`: 64 rows by 64 columns, a sum over 16; a row of A,
// and a column of B, lie in one row of shared memory.
template <typename M>
__device__ __forceinline__ void multiply_shared(float (&d)[8][4], Matrix a, Matrix b, int adds);

// The same of A in registers.
template <typename M>
__device__ __forceinline__ void multiply_rows(float (&d)[8][4], const uint32_t (&a)[4], Matrix b, int adds);

// D += A * B: 64 rows by 8 * TILES columns, a sum over 16; A is in registers, and a row of B
// lies in rows of shared memory, 64 columns each.
template <typename M, int TILES>
__device__ __forceinline__ void multiply_registers(float (&d)[TILES][4], const uint32_t (&a)[4], Matrix b);

#define PRODUCT_OF_SHARED(M, name)                                                                  \
    template <>                                                                                     \
    __device__ __forceinline__ void multiply_shared<M>(float (&d)[8][4], Matrix a, Matrix b,    \
                                                       int adds) {                                  \
        asm volatile("{\n"                                                                          \
                     ".reg .pred p;\n"                                                              \
                     "setp.ne.b32 p, %34, 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " "                \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "      \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "\
                     "%32, %33, p, 1, 1, 0, 0;\n"                                                   \
                     "}\n"                                                                          \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                  \
                       "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                  \
                       "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                  \
                       "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                  \
                       "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                  \
                       "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                  \
                       "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                  \
                       "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])                   \
                     : "l"(a), "l"(b), "r"(adds));                                                  \
    }

#define PRODUCT_OF_ROWS(M, name)                                                                    \
    template <>                                                                                     \
    __device__ __forceinline__ void multiply_rows<M>(float (&d)[8][4], const uint32_t (&a)[4],     \
                                                     Matrix b, int adds) {                          \
        asm volatile("{\n"                                                                          \
                     ".reg .pred p;\n"                                                              \
                     "setp.ne.b32 p, %37, 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " "                \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "      \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "\
                     "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n"                                    \
                     "}\n"                                                                          \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                  \
                       "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                  \
                       "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                  \
                       "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                  \
                       "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                  \
                       "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                  \
                       "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                  \
                       "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));              \
    }

#define PRODUCT_OF_REGISTERS_9(M, name)                                                             \
    template <>                                                                                     \
    __device__ __forceinline__ void multiply_registers<M, 9>(                                       \
        float (&d)[9][4], const uint32_t (&a)[4], Matrix b) {                                       \
        asm volatile("wgmma.mma_async.sync.aligned.m64n72k16.f32." name "." name " "                \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "      \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
                     "%32, %33, %34, %35}, "                                                        \
                     "{%36, %37, %38, %39}, %40, 1, 1, 1, 1;\n"                                     \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                  \
                       "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                  \
                       "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                  \
                       "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                  \
                       "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                  \
                       "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                  \
                       "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                  \
                       "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),                  \
                       "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3])                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                         \
    }

#define PRODUCT_OF_REGISTERS_16(M, name)                                                            \
    template <>                                                                                     \
    __device__ __forceinline__ void multiply_registers<M, 16>(                                      \
        float (&d)[16][4], const uint32_t (&a)[4], Matrix b) {                                      \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " "               \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "      \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
                     "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                     \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                  \
                       "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                  \
                       "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                  \
                       "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                  \
                       "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                  \
                       "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                  \
                       "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                  \
                       "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),                  \
                       "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),                  \
                       "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),                  \
                       "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),              \
                       "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),              \
                       "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),              \
                       "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),              \
                       "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),              \
                       "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                         \
    }

#define PRODUCT_OF_REGISTERS_17(M, name)                                                            \
    template <>                                                                                     \
    __device__ __forceinline__ void multiply_registers<M, 17>(                                      \
        float (&d)[17][4], const uint32_t (&a)[4], Matrix b) {                                      \
        asm volatile("wgmma.mma_async.sync.aligned.m64n136k16.f32." name "." name " "               \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "      \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
                     "%64, %65, %66, %67}, "                                                        \
                     "{%68, %69, %70, %71}, %72, 1, 1, 1, 1;\n"                                     \
                     : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                  \
                       "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                  \
                       "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                  \
                       "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                  \
                       "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                  \
                       "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                  \
                       "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                  \
                       "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),                  \
                       "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),                  \
                       "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),                  \
                       "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),              \
                       "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),              \
                       "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),              \
                       "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),              \
                       "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),              \
                       "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]),              \
                       "+f"(d[16][0]), "+f"(d[16][1]), "+f"(d[16][2]), "+f"(d[16][3])               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                         \
    }

PRODUCT_OF_SHARED(bf16, "bf16")
PRODUCT_OF_ROWS(bf16, "bf16")
PRODUCT_OF_REGISTERS_9(bf16, "bf16")
PRODUCT_OF_REGISTERS_16(bf16, "bf16")
PRODUCT_OF_REGISTERS_17(bf16, "bf16")
PRODUCT_OF_SHARED(f16, "f16")
PRODUCT_OF_ROWS(f16, "f16")
PRODUCT_OF_REGISTERS_9(f16, "f16")
PRODUCT_OF_REGISTERS_16(f16, "f16")
PRODUCT_OF_REGISTERS_17(f16, "f16")

#endif

// Rows of 64 elements of two bytes in shared memory, 128 bytes each and as many blocks of
// them as a head has 64 dimensions: [D / 64][rows][64], pieces of 16 bytes XORed with the
// row % 8 (the 128-byte swizzle, whose unit of eight rows is aligned to its size).
constexpr int SWIZZLED_COLUMNS = 64;
constexpr int SWIZZLED_ROW = 128;
constexpr int SWIZZLED_UNIT = 8 * SWIZZLED_ROW;

// Where a piece of a row lies, in bytes from the start of `rows` rows.
template <int ROWS> __device__ __forceinline__ int swizzled(int row, int piece) {
    return piece / 8 * (ROWS * SWIZZLED_ROW) + row * SWIZZLED_ROW + (piece % 8 ^ row % 8) * 16;
}
