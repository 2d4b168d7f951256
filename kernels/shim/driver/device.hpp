// The device and all that the driver knows: streams, events, memory, modules.
#pragma once

#include <cuda.h>

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "memory.hpp"
#include "settings.hpp"
#include "work.hpp"

namespace fake {

// A list of work, as captured, with what it was given frozen.
struct Graph {
    std::vector<Op> ops;
    // Set while it is being captured and something that may not be asked for was.
    CUresult invalid = CUDA_SUCCESS;
    CUstreamCaptureMode mode;
    Stream* origin;
    // Streams that take part in the capture.
    std::set<Stream*> streams;
};

struct Stream {
    uint64_t number;
    // It waits for the legacy default stream, and that one for it.
    bool is_blocking;
    bool is_destroyed = false;
    bool hangs = false;
    std::deque<Op> queue;
    // Virtual time up to which it has worked.
    uint64_t clock = 0;
    Graph* capture = nullptr;
};

struct Event {
    unsigned flags;
    std::shared_ptr<Recording> last;
};

struct Pinned {
    uintptr_t begin;
    size_t bytes;
    uint64_t number;
};

struct Device {
    std::mutex mutex;
    Settings settings;
    bool is_initialized = false;
    unsigned context_uses = 0;
    // An error after which nothing works any more.
    CUresult lost = CUDA_SUCCESS;
    // The call that is under way.
    const char* call = "";
    std::mt19937_64 random;

    Memory memory;
    std::map<uintptr_t, Pinned> pinned;
    uint64_t pinned_numbered = 0;

    std::list<std::unique_ptr<Stream>> streams;
    uint64_t streams_numbered = 0;
    Stream* legacy = nullptr;
    Stream* per_thread = nullptr;
    std::set<Event*> events;
    std::set<Graph*> graphs, executables;

    // Virtual nanoseconds: of the host, which moves on when it waits, and of the device
    // at work.
    uint64_t host_ns = 0, busy_ns = 0;
    // What runs now, for messages.
    const Op* running = nullptr;
};

Device& device();

// The calling thread's context, or null.
CUcontext current_context();
void set_current_context(CUcontext context);
// The device's primary context, the only one.
CUcontext primary_context();

// A call of a driver function: takes the lock, and says what it must return at once, if
// anything: no initialization, no context, an error that is there to stay, or a fault
// that was asked for.
class Call {
public:
    enum class Needs { Nothing, Init, Context };
    explicit Call(const char* name, Needs needs = Needs::Context);
    CUresult failed = CUDA_SUCCESS;
    // Whether a script leaves the call out.
    bool is_skipped = false;
    // Whether it makes it give what the call before it gave.
    bool is_again = false;

private:
    std::unique_lock<std::mutex> lock;
};

#define CALL(needs)                                            \
    const fake::Call call(__func__, fake::Call::Needs::needs); \
    if (call.failed != CUDA_SUCCESS || call.is_skipped) {      \
        return call.failed;                                    \
    }

// Says what is wrong with the call that is under way, by which part of the
// documentation, and returns the error that it has for this.
CUresult refuse(CUresult error, const std::string& what, const char* rule);

// Says what went wrong where a GPU would have computed something else, or nothing, in
// silence; ends the process, unless the settings say to go on.
void corrupt(const std::string& name, const std::string& what, const char* rule);

}  // namespace fake
