#include "settings.hpp"

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <string>

#include "memory.hpp"

namespace fake {
namespace {

std::string variable(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value == nullptr || *value == 0 ? otherwise : value;
}

[[noreturn]] void refuse(const char* name, const std::string& value, const std::string& accepted) {
    fprintf(stderr, "fake GPU: %s is \"%s\": %s\n", name, value.c_str(), accepted.c_str());
    exit(2);
}

uint64_t number(const char* name, const char* otherwise) {
    const std::string value = variable(name, otherwise);
    char* end;
    const uint64_t result = strtoull(value.c_str(), &end, 10);
    if (value.empty() || *end != 0) {
        refuse(name, value, "it must be a number");
    }
    return result;
}

}  // namespace

Settings read_settings() {
    Settings settings{};
    const std::string profile = variable("SCONCE_FAKE_GPU_PROFILE", "h100");
    const Profile* found = find_profile(profile);
    if (found == nullptr) {
        refuse("SCONCE_FAKE_GPU_PROFILE", profile, "it may be " + profile_names());
    }
    settings.profile = *found;
    const uint64_t multiprocessors = number("SCONCE_FAKE_GPU_MULTIPROCESSORS", "0");
    if (multiprocessors != 0) {
        settings.profile.multiprocessors = int(multiprocessors);
    }
    settings.memory_bytes = number("SCONCE_FAKE_GPU_MEMORY", "0");
    if (settings.memory_bytes == 0) {
        settings.memory_bytes = settings.profile.memory_bytes;
    }
    if (settings.memory_bytes < CONTEXT_BYTES) {
        refuse("SCONCE_FAKE_GPU_MEMORY", std::to_string(settings.memory_bytes),
               "a context alone takes " + std::to_string(CONTEXT_BYTES));
    }
    const std::string mode = variable("SCONCE_FAKE_GPU_MODE", "eager");
    if (mode == "eager") {
        settings.mode = Mode::Eager;
    } else if (mode == "late") {
        settings.mode = Mode::Late;
    } else if (mode == "random") {
        settings.mode = Mode::Random;
    } else {
        refuse("SCONCE_FAKE_GPU_MODE", mode, "it may be eager, late or random");
    }
    settings.seed = number("SCONCE_FAKE_GPU_SEED", "1");
    settings.slower = number("SCONCE_FAKE_GPU_SLOWER", "1");
    settings.driver_version = int(number("SCONCE_FAKE_GPU_DRIVER", "13000"));
    const std::string checks = variable("SCONCE_FAKE_GPU_CHECKS", "abort");
    if (checks != "abort" && checks != "report") {
        refuse("SCONCE_FAKE_GPU_CHECKS", checks, "it may be abort or report");
    }
    settings.aborts = checks == "abort";
    const std::string faults = variable("SCONCE_FAKE_GPU_FAULTS", "");
    if (!faults.empty()) {
        const std::string wrong = settings.faults.read(faults);
        if (!wrong.empty()) {
            refuse("SCONCE_FAKE_GPU_FAULTS", faults, wrong);
        }
    }
    const std::string trace = variable("SCONCE_FAKE_GPU_TRACE", "");
    if (!trace.empty()) {
        settings.trace = open(trace.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (settings.trace < 0) {
            refuse("SCONCE_FAKE_GPU_TRACE", trace, "it cannot be written");
        }
    }
    return settings;
}

}  // namespace fake
