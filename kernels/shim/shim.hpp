// CUDA's execution model on a CPU, for tests: a grid's blocks run one after another,
// a block's threads as fibers that switch at barriers, in an order shuffled by a
// seed. What a thread has not been promised it does not see: shared memory starts as
// NaN, and asynchronous copies land only when they are waited for, boxes of tensors at
// any time, the latest being when nobody can go on without. A barrier that
// can never be reached, a warp instruction that lanes reach with different masks and
// a thread that leaves its warp behind end the process with a message; memory errors
// are AddressSanitizer's.
//
// Results of tensor core instructions are sums in float, in order of k; a device may
// round otherwise, so results are compared within tolerances.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__ __restrict

using std::max;
using std::min;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace shim {

// Of the thread that runs.
extern Dim3 thread_index;
extern Dim3 block_index;
extern Dim3 block_dim;
extern Dim3 grid_dim;
extern unsigned char* dynamic_shared;

// The block's memory of a place, poisoned at the block's start.
void* shared_at(const void* place, size_t bytes);

// Ends the process.
[[noreturn]] void fail(const std::string& message);

void sync_block();
// The same, telling every thread how many voted for it.
int sync_and_count(bool vote);
// Waits until something is so that other threads bring about, who then call `tell`.
void wait_until(const std::function<bool()>& is_so);
void tell();
// A barrier of so many threads, by its number.
void sync_threads(int barrier, unsigned threads, bool waits);
// Waits for the warp's lanes of `mask`.
void sync_warp(uint32_t mask);
// Waits for the kernels before: a thread that ends without it could have overtaken them.
void await_previous();
// This lane's 64 bytes that other lanes may read between two warp barriers.
unsigned char* warp_slot(unsigned lane);
unsigned lane();
// Leaves up to 64 bytes for the whole warp and returns all lanes', 64 bytes apart;
// they stay until this lane's next meeting but one.
const unsigned char* meet(const void* value, size_t bytes);
// What `make` makes of all lanes' values, 16 bytes a lane: the first lane that has met makes it
// for all. It stays as long as they do.
const unsigned char* make_once(const unsigned char* met, void (*make)(const unsigned char* met, void* made));
void copy_async(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(int still_under_way);
// Asks for a box of a tensor, by its map; `tell` is called with its bytes when it has landed.
void copy_box(void* shared, const void* map, int column, int row, const std::function<void(uint32_t)>& tell);

using Body = void (*)(const void* params);
struct Kernel {
    Body body;
    size_t params_bytes;
    unsigned max_threads;
};
bool register_kernel(const char* name, Kernel kernel);
// Null where there is none of that name.
const Kernel* find_kernel(const std::string& name);

// Every lane of `mask` gives a value and gets that of lane `from(lane)`.
template <typename T, typename From> T exchange(uint32_t mask, const T& value, From from) {
    static_assert(sizeof(T) <= 64);
    if (!(mask >> lane() & 1)) {
        fail("a lane takes part in a warp instruction whose mask leaves it out");
    }
    if (mask == 0xffffffffu) {
        // One meeting: what is left there stays long enough.
        T result;
        const unsigned char* slots = meet(&value, sizeof(T));
        memcpy(&result, slots + from(lane()) % 32 * 64, sizeof(T));
        return result;
    }
    memcpy(warp_slot(lane()), &value, sizeof(T));
    sync_warp(mask);
    T result;
    const unsigned source = from(lane()) % 32;
    if (!(mask >> source & 1)) {
        fail("a lane reads from one that the mask leaves out");
    }
    memcpy(&result, warp_slot(source), sizeof(T));
    sync_warp(mask);
    return result;
}

// Every lane gives a value and sees all of them: `see(of)`, where `of(lane)` is one.
template <typename T, typename See> auto together(const T& value, See see) {
    static_assert(sizeof(T) <= 64);
    const unsigned char* slots = meet(&value, sizeof(T));
    return see([slots](unsigned lane) {
        T other;
        memcpy(&other, slots + lane * 64, sizeof(T));
        return other;
    });
}

}  // namespace shim

#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define blockDim shim::block_dim
#define gridDim shim::grid_dim

#define KERNEL_BEGINNING(name, Params, first, threads)                                        \
    static void name(const Params& p);                                                       \
    static const bool name##_is_registered = shim::register_kernel(                          \
        #name, {[](const void* params) {                                                     \
                    first;                                                                   \
                    name(*static_cast<const Params*>(params));                               \
                },                                                                           \
                sizeof(Params), threads});                                                   \
    static void name(const Params& p)

#define KERNEL(name, Params, threads)                                                        \
    KERNEL_BEGINNING(name, Params, shim::await_previous(), threads)
#define KERNEL_RESIDENT(name, Params, threads, blocks) KERNEL(name, Params, threads)
#define KERNEL_LAST(name, Params, threads, blocks) KERNEL(name, Params, threads)
#define KERNEL_EARLY(name, Params, threads) KERNEL_BEGINNING(name, Params, (void)0, threads)
#define KERNEL_EARLY_RESIDENT(name, Params, threads, blocks) KERNEL_EARLY(name, Params, threads)

// Each place in the source (and each instance of a template) has its own memory.
#define SHARED(type, name, count)                                                            \
    static const char name##_place = 0;                                                      \
    type* name = static_cast<type*>(shim::shared_at(&name##_place, sizeof(type) * (count)))

#define DYNAMIC_SHARED(name) unsigned char* name = shim::dynamic_shared

inline void await_previous() { shim::await_previous(); }
// Kernels run one after another.
inline void let_next_start() {}
inline void __syncthreads() { shim::sync_block(); }
inline int __syncthreads_count(int vote) { return shim::sync_and_count(vote != 0); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { shim::sync_warp(mask); }
inline void __threadfence() {}

template <typename T> T __shfl_sync(uint32_t mask, T value, int from) {
    return shim::exchange(mask, value, [=](unsigned) { return unsigned(from); });
}
template <typename T> T __shfl_xor_sync(uint32_t mask, T value, int with) {
    return shim::exchange(mask, value, [=](unsigned lane) { return lane ^ unsigned(with); });
}
template <typename T> T __shfl_up_sync(uint32_t mask, T value, int by) {
    return shim::exchange(mask, value,
                          [=](unsigned lane) { return lane < unsigned(by) ? lane : lane - by; });
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote) {
    if (mask != 0xffffffffu) {
        shim::fail("votes of part of a warp are not emulated");
    }
    return shim::together(uint32_t(vote), [](auto of) {
        uint32_t votes = 0;
        for (unsigned lane = 0; lane < 32; ++lane) {
            votes |= of(lane) << lane;
        }
        return votes;
    });
}
inline bool __any_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) == mask; }

template <typename T> T atomicAdd(T* at, T value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <typename T> T atomicMax(T* at, T value) {
    const T old = *at;
    *at = max(old, value);
    return old;
}
template <typename T> T atomicMin(T* at, T value) {
    const T old = *at;
    *at = min(old, value);
    return old;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __float2int_rd(float x) { return int(std::floor(x)); }
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

// Element types: bits, and conversions to nearest, ties to even.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
struct e4m3 {
    uint8_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
    // The exponents' biases are 112 apart; a product with a power of two is exact.
    const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
    const bool is_finite = (x.bits & 0x7c00) != 0x7c00;
    const uint32_t bits = is_finite ? __float_as_uint(__uint_as_float(magnitude) * 0x1p112f) : magnitude | 0x7f800000;
    return __uint_as_float(bits | uint32_t(x.bits & 0x8000) << 16);
}
inline float to_float(e4m3 x) {
    const int exponent = x.bits >> 3 & 15;
    const int mantissa = x.bits & 7;
    float value = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                : std::ldexp(float(8 + mantissa), exponent - 10);
    if ((x.bits & 0x7f) == 0x7f) {
        value = std::nanf("");
    }
    return x.bits & 0x80 ? -value : value;
}

template <typename T> T from_float(float x);
template <> inline float from_float(float x) { return x; }
template <> inline bf16 from_float(float x) {
    uint32_t bits = __float_as_uint(x);
    if (std::isnan(x)) {
        return {0x7fff};
    }
    bits += 0x7fff + (bits >> 16 & 1);
    return {uint16_t(bits >> 16)};
}
template <> inline f16 from_float(float x) {
    const _Float16 half = _Float16(x);
    f16 result;
    memcpy(&result.bits, &half, sizeof(half));
    return result;
}
template <> inline e4m3 from_float(float x) {
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    if (std::isnan(x)) {
        return {uint8_t(sign | 0x7f)};
    }
    const float magnitude = std::min(std::fabs(x), 448.0f);
    if (magnitude == 0.0f) {
        // Which has no exponent.
        return {sign};
    }
    // Units of the last place: 2^-9 for subnormals, else 2^(exponent - 3).
    int exponent;
    std::frexp(magnitude, &exponent);
    const int unit = std::max(exponent - 4, -9);
    const int steps = int(std::nearbyint(std::ldexp(magnitude, -unit)));
    // Steps count on over the binades: 8 a binade after the first 8.
    const int code = unit == -9 ? steps : (unit + 9) * 8 + steps;
    return {uint8_t(sign | std::min(code, 0x7e))};
}

// 2^x; 0 for -infinity and what underflows.
inline float power_of_two(float x) {
    const float y = std::exp2(x);
    return y < 0x1p-126f ? 0.0f : y;
}

// The larger one, or NaN if one is.
inline float max_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : max(a, b); }

// What f16s that `widen` gives are to be multiplied with.
constexpr float WIDENED_UNIT = 1.0f;

// Four e4m3 as f16: bytes 0 and 1, and bytes 2 and 3.
inline void widen(uint32_t bytes, uint32_t& low, uint32_t& high) {
    const auto pair = [bytes](int first) {
        uint32_t word = 0;
        for (int i = 1; i >= 0; --i) {
            const e4m3 x = {uint8_t(bytes >> 8 * (first + i))};
            word = word << 16 | from_float<f16>(to_float(x)).bits;
        }
        return word;
    };
    low = pair(0);
    high = pair(2);
}

// The same: bytes 0 and 2, and bytes 1 and 3.
inline void widen_crossed(uint32_t bytes, uint32_t& low, uint32_t& high) {
    const uint32_t swapped = (bytes & 0xff0000ffu) | (bytes >> 8 & 0xff00u) | (bytes << 8 & 0xff0000u);
    widen(swapped, low, high);
}

namespace shim {
// A lane's part of a 16x8x16 product, as the PTX ISA lays it out.
struct Fragments {
    uint32_t a[4];
    uint32_t b[2];
    float d[4];
};
// Makes all lanes' results, four floats each, of the fragments that lanes left.
template <typename T> void warp_product(const unsigned char* met, void* made);
template <> void warp_product<bf16>(const unsigned char* met, void* made);
template <> void warp_product<f16>(const unsigned char* met, void* made);
}  // namespace shim

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    shim::Fragments own;
    memcpy(own.a, a, sizeof(own.a));
    memcpy(own.b, b, sizeof(own.b));
    memcpy(own.d, d, sizeof(own.d));
    const unsigned char* made = shim::make_once(shim::meet(&own, sizeof(own)), shim::warp_product<T>);
    memcpy(d, made + shim::lane() * sizeof(d), sizeof(d));
}

namespace shim {
struct FourWords {
    uint32_t r[4];
};
inline FourWords load_matrices(const void* row, bool transposed) {
    return together(row, [&](auto of) {
        FourWords words;
        const unsigned own = lane();
        for (unsigned matrix = 0; matrix < 4; ++matrix) {
            uint16_t pair[2];
            for (unsigned e = 0; e < 2; ++e) {
                const unsigned row = transposed ? own % 4 * 2 + e : own / 4;
                const unsigned column = transposed ? own / 4 : own % 4 * 2 + e;
                const void* from = of(matrix * 8 + row);
                if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
                    fail("ldmatrix from an address that is no multiple of 16");
                }
                memcpy(&pair[e], static_cast<const uint16_t*>(from) + column, sizeof(pair[e]));
            }
            memcpy(&words.r[matrix], pair, sizeof(pair));
        }
        return words;
    });
}
}  // namespace shim

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    const auto words = shim::load_matrices(row, false);
    memcpy(r, words.r, sizeof(r));
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    const auto words = shim::load_matrices(row, true);
    memcpy(r, words.r, sizeof(r));
}

inline void copy_async(void* shared, const void* global, bool valid) {
    shim::copy_async(shared, global, valid);
}
inline void copy_async_commit() { shim::copy_async_commit(); }
template <int N> void copy_async_wait() { shim::copy_async_wait(N); }

#include "products.hpp"
