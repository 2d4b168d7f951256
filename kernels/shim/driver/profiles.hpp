// What is known of the GPUs that the fake driver can be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fake {

struct Profile {
    // As SCONCE_FAKE_GPU_PROFILE and --profile name it.
    const char* name;
    // As cuDeviceGetName gives it.
    const char* product;
    int major, minor;
    int multiprocessors;
    size_t memory_bytes;
    // Of a multiprocessor, and of a block that has asked for it (CUDA C++ Programming
    // Guide, "Technical Specifications per Compute Capability"); 1 KiB of each block's is
    // the system's.
    int shared_of_multiprocessor, shared_opt_in;
    int l2_bytes;
    // What the model of time divides by: bytes of memory and operations a nanosecond.
    uint64_t bytes_a_ns, flops_a_ns;
    // Under load, for the energy counter.
    uint64_t watts;
};

// Null where there is none of that name.
const Profile* find_profile(const std::string& name);
// All names, for messages.
std::string profile_names();

}  // namespace fake
