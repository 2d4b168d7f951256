// What a warp's tensor core makes of its lanes' fragments, all at once: see `mma` in shim.hpp.
// Most of an emulated kernel's time is spent here, so it is compiled without sanitizers: it reads
// no memory of a kernel's.
#pragma GCC optimize("O3")
#include "shim.hpp"

namespace shim {

namespace {

// Sums are of floats, in order of k.
template <typename T> void multiply(const unsigned char* met, void* made) {
    float left[16][16], right[16][8], sums[16][8];
    const auto number = [](uint32_t word, int i) { return to_float(T{uint16_t(word >> 16 * i)}); };
    for (unsigned lane = 0; lane < 32; ++lane) {
        Fragments own;
        memcpy(&own, met + lane * 64, sizeof(own));
        const unsigned row = lane / 4, column = lane % 4 * 2;
        for (int e = 0; e < 2; ++e) {
            for (int i = 0; i < 4; ++i) {
                left[row + i % 2 * 8][column + i / 2 * 8 + e] = number(own.a[i], e);
            }
            for (int i = 0; i < 2; ++i) {
                right[column + i * 8 + e][row] = number(own.b[i], e);
                sums[row + i * 8][column + e] = own.d[i * 2 + e];
            }
        }
    }
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) {
                sums[row][column] += left[row][k] * right[k][column];
            }
        }
    }
    float(*const results)[4] = static_cast<float(*)[4]>(made);
    for (unsigned lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            results[lane][i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    }
}

}  // namespace

template <> void warp_product<bf16>(const unsigned char* met, void* made) { multiply<bf16>(met, made); }
template <> void warp_product<f16>(const unsigned char* met, void* made) { multiply<f16>(met, made); }

}  // namespace shim
