// A tensor's map as the shim and the fake driver encode it, and src/driver.rs: what a device's
// says too, in an order of its own.
#pragma once

#include <cstdint>

namespace shim {

struct TensorMap {
    // First, where a launch's parameters are searched for addresses.
    uint64_t address;
    uint64_t rows;
    // Of two bytes.
    uint32_t columns;
    uint32_t mark;
    // Pieces of 16 bytes of a box's row are XORed with the row's number of its eight.
    uint32_t box_columns, box_rows;
    uint64_t rest[12];
};
static_assert(sizeof(TensorMap) == 128, "as a device has it");

// What no other 128 bytes have there.
constexpr uint32_t TENSOR_MAP_MARK = 0x7e4504a9;

}  // namespace shim
