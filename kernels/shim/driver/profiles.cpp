#include "profiles.hpp"

namespace fake {
namespace {

constexpr size_t MIB = size_t(1) << 20;
constexpr int KIB = 1 << 10;

// Compute capability, shared memory of a multiprocessor and of a block: CUDA C++ Programming
// Guide, "Technical Specifications per Compute Capability", and the tuning guides of Ampere,
// Ada, Hopper and Blackwell (164/163, 100/99, 228/227, 228/227 KB). Multiprocessors, and L2 as
// the driver tells it: the architectures' white papers, deviceQuery, PyTorch's device
// properties (H100 50 MB, H200 60 MB: seen on both; L40S 100,663,296 bytes; B200 126.5 MB).
// Memory: the same, to some MiB, which driver and firmware decide; nvidia-smi counts what is
// reserved too (81,559 MiB on an H100, 143,771 on an H200). Bandwidth and dense bf16 without
// sparsity: data sheets of A100 (2,039 GB/s, 312 TFLOP/s), L40S (864, 362.05), H100 SXM
// (3.35 TB/s, 989.5), H200 SXM (4.8, 989.5), HGX B200 (2,250 TFLOP/s); the B200's 8 TB/s is
// rounded up: its driver tells of 7,680 bits at 3,996 MHz, twice a cycle.
constexpr Profile PROFILES[] = {
    {"a100", "NVIDIA A100-SXM4-80GB", 8, 0, 108, 81050 * MIB, 164 * KIB, 163 * KIB, 40 << 20,
     2039, 312'000, 400},
    {"l40s", "NVIDIA L40S", 8, 9, 142, 45589 * MIB, 100 * KIB, 99 * KIB, 96 << 20, 864, 362'050,
     350},
    {"h100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 81080 * MIB, 228 * KIB, 227 * KIB, 50 << 20,
     3352, 989'500, 700},
    {"h200", "NVIDIA H200", 9, 0, 132, 143156 * MIB, 228 * KIB, 227 * KIB, 60 << 20, 4800,
     989'500, 700},
    {"b200", "NVIDIA B200", 10, 0, 148, 182630 * MIB, 228 * KIB, 227 * KIB, 129'536 * KIB, 7672,
     2'250'000, 1000},
};

}  // namespace

const Profile* find_profile(const std::string& name) {
    for (const Profile& profile : PROFILES) {
        if (name == profile.name) {
            return &profile;
        }
    }
    return nullptr;
}

std::string profile_names() {
    std::string names;
    for (const Profile& profile : PROFILES) {
        names += (names.empty() ? "" : ", ") + std::string(profile.name);
    }
    return names;
}

}  // namespace fake
