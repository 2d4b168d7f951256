#include "profiles.hpp"

namespace fake {
namespace {

constexpr size_t MIB = size_t(1) << 20;
constexpr int KIB = 1 << 10;

// Memory as the driver reports it, to some MiB: a little less than is sold.
constexpr Profile PROFILES[] = {
    {"a100", "NVIDIA A100-SXM4-80GB", 8, 0, 108, 81050 * MIB, 164 * KIB, 163 * KIB, 40 << 20,
     2039, 312'000, 400},
    {"l40s", "NVIDIA L40S", 8, 9, 142, 45470 * MIB, 100 * KIB, 99 * KIB, 96 << 20, 864, 362'000,
     350},
    {"h100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 81080 * MIB, 228 * KIB, 227 * KIB, 50 << 20,
     3352, 989'000, 700},
    {"h200", "NVIDIA H200", 9, 0, 132, 143160 * MIB, 228 * KIB, 227 * KIB, 50 << 20, 4800,
     989'000, 700},
    {"b200", "NVIDIA B200", 10, 0, 148, 182640 * MIB, 228 * KIB, 227 * KIB, 126 << 20, 8000,
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
