// What a launch is, beside its parameters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace shim {

struct Launch {
    std::string kernel;
    uint64_t seed;
    uint32_t grid[3];
    uint32_t threads;
    uint64_t shared_bytes;
};

// Called with what is amiss before the process ends; it need not return.
extern void (*on_failure)(const char* message);

// Runs a kernel to its end; anything amiss ends the process.
void launch(const Launch& launch, const void* params, size_t params_bytes);

}  // namespace shim
