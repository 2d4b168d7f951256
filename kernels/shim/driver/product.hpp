// What the fake cuBLAS asks the fake driver for: work in a stream, as a launch of a
// kernel of its own is.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct sconce_fake_operand {
    uint64_t address;
    size_t bytes;
    // In words.
    const char* what;
};

struct sconce_fake_work {
    const char* name;
    const sconce_fake_operand* operands;
    size_t num_operands;
    // For the model of time.
    uint64_t flops, bytes;
    // Is called with a copy of the arguments.
    void (*run)(const void* arguments);
    const void* arguments;
    size_t arguments_bytes;
};

// What a script of faults has this call of a library's function return, or 0.
int sconce_fake_fault(const char* name);
// A CUresult.
int sconce_fake_enqueue(void* stream, const sconce_fake_work* work);
// The device's energy since the beginning, in millijoules of virtual time.
uint64_t sconce_fake_energy_mj(void);
// As NVIDIA's tools write it; `text` has room for 41 bytes.
void sconce_fake_uuid(char* text);
}
