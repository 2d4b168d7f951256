// What the environment asks of the fake driver:
//   SCONCE_FAKE_GPU_PROFILE   which GPU it is (profiles.cpp); h100 unless set
//   SCONCE_FAKE_GPU_MEMORY    bytes of the device's memory; the profile's unless set
//   SCONCE_FAKE_GPU_MULTIPROCESSORS   how many it has; the profile's unless set
//   SCONCE_FAKE_GPU_MODE      when work runs: eager, late or random; eager unless set
//   SCONCE_FAKE_GPU_SEED      of the mode `random`
//   SCONCE_FAKE_GPU_SLOWER    how many times a kernel's usual (virtual) time each takes; 1 unless
//                             set
//   SCONCE_FAKE_GPU_DRIVER    what cuDriverGetVersion says; 13000 unless set
//   SCONCE_FAKE_GPU_CHECKS    abort (unless set), or report: go on after a fault that a
//                             GPU would not have noticed
//   SCONCE_FAKE_GPU_FAULTS    a file of faults to inject (faults.hpp)
//   SCONCE_FAKE_GPU_TRACE     a file that gets a line for all work as it runs: when it began
//                             and what it took, in virtual nanoseconds, the launch's number
//                             (0 where it is none) and the call
#pragma once

#include <cstdint>

#include "faults.hpp"
#include "profiles.hpp"

namespace fake {

// When the work of a stream runs.
enum class Mode {
    // As it is asked for.
    Eager,
    // As late as it may: when somebody waits for it.
    Late,
    // At every call, a random part of some streams' work.
    Random,
};

struct Settings {
    Profile profile;
    size_t memory_bytes;
    Mode mode;
    uint64_t seed;
    uint64_t slower;
    int driver_version;
    bool aborts;
    Faults faults;
    // A file's descriptor; -1 where there is none.
    int trace = -1;
};

// Ends the process, with a message, where a variable cannot be read.
Settings read_settings();

}  // namespace fake
