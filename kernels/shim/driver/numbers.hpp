// Numbers as cuBLAS and cuBLASLt find them in the device's memory, and leave them there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace numbers {

// cudaDataType_t.
enum { R_32F = 0, R_16F = 2, R_16BF = 14, R_8F_E4M3 = 28 };

inline size_t size_of(int type) { return type == R_32F ? 4 : type == R_8F_E4M3 ? 1 : 2; }

// Whether there are load and store of it.
inline bool is_known(int type) { return type == R_32F || type == R_16F || type == R_16BF; }

inline float load(const void* at, size_t i, int type) {
    if (type == R_32F) {
        return static_cast<const float*>(at)[i];
    }
    const uint16_t bits = static_cast<const uint16_t*>(at)[i];
    if (type == R_16BF) {
        const uint32_t word = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &word, sizeof(x));
        return x;
    }
    _Float16 half;
    memcpy(&half, &bits, sizeof(half));
    return float(half);
}

inline void store(void* at, size_t i, int type, float x) {
    if (type == R_32F) {
        static_cast<float*>(at)[i] = x;
        return;
    }
    uint16_t bits;
    if (type == R_16BF) {
        uint32_t word;
        memcpy(&word, &x, sizeof(word));
        bits = x != x ? 0x7fff : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
    } else {
        const _Float16 half = _Float16(x);
        memcpy(&bits, &half, sizeof(bits));
    }
    static_cast<uint16_t*>(at)[i] = bits;
}

}  // namespace numbers
