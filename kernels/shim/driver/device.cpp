#include "device.hpp"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#include "errors.hpp"
#include "launch.hpp"
#include "streams.hpp"

namespace fake {
namespace {

thread_local CUcontext thread_context;
int the_context;
struct sigaction before_ours;

// An access to the device's memory that nobody was given: by the host, or by work that
// ran beyond what it was given.
void on_fault(int signal, siginfo_t* info, void* more) {
    Device& d = device();
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    if (!d.memory.contains(address)) {
        // Not ours: as it was before.
        if (before_ours.sa_flags & SA_SIGINFO && before_ours.sa_sigaction != nullptr) {
            before_ours.sa_sigaction(signal, info, more);
        } else {
            std::signal(signal, SIG_DFL);
        }
        return;
    }
    const std::string where = d.memory.describe(address);
    if (d.running != nullptr) {
        fprintf(stderr, "fake GPU: %s: it accessed %s, which it was not given "
                        "(CUDA_ERROR_ILLEGAL_ADDRESS)\n",
                d.running->name.c_str(), where.c_str());
    } else {
        fprintf(stderr, "fake GPU: the host accessed %s: device memory is not the host's "
                        "(CUDA C++ Programming Guide, Device Memory)\n", where.c_str());
    }
    std::signal(SIGABRT, SIG_DFL);
    abort();
}

void on_kernel_failure(const char* message) {
    fprintf(stderr, "fake GPU: %s\n", message);
    abort();
}

}  // namespace

Device& device() {
    // Never destroyed: work may be asked for while the process ends.
    static Device* the_device = new Device;
    return *the_device;
}

CUcontext primary_context() { return reinterpret_cast<CUcontext>(&the_context); }
CUcontext current_context() { return thread_context; }
void set_current_context(CUcontext context) { thread_context = context; }

CUresult initialize() {
    Device& d = device();
    if (d.is_initialized) {
        return CUDA_SUCCESS;
    }
    d.settings = read_settings();
    d.random.seed(d.settings.seed);
    d.memory.start(d.settings.memory_bytes);
    shim::on_failure = on_kernel_failure;
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_ours);
    d.is_initialized = true;
    return CUDA_SUCCESS;
}

Call::Call(const char* name, Needs needs) : lock(device().mutex) {
    Device& d = device();
    d.call = name;
    if (needs == Needs::Nothing) {
        return;
    }
    if (!d.is_initialized) {
        failed = refuse(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called", "Initialization");
        return;
    }
    const Faults::Answer injected = d.settings.faults.of_call(name);
    if (injected.error != 0 || injected.is_skipped) {
        failed = CUresult(injected.error);
        is_skipped = injected.is_skipped;
        return;
    }
    is_again = injected.is_again;
    if (needs == Needs::Init) {
        return;
    }
    if (d.lost != CUDA_SUCCESS) {
        failed = d.lost;
        return;
    }
    if (thread_context == nullptr) {
        failed = refuse(CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context",
                        "CUresult: CUDA_ERROR_INVALID_CONTEXT");
        return;
    }
    if (d.context_uses == 0) {
        failed = refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED,
                        "the primary context was released by its last user",
                        "Primary Context Management");
        return;
    }
    if (d.settings.mode == Mode::Random) {
        run_some();
    }
    failed = d.lost;
}

CUresult refuse(CUresult error, const std::string& what, const char* rule) {
    fprintf(stderr, "fake GPU: %s: %s (%s): %s\n", device().call, what.c_str(), rule,
            error_name(error));
    return error;
}

void corrupt(const std::string& name, const std::string& what, const char* rule) {
    fprintf(stderr, "fake GPU: %s: %s (%s)\n", name.c_str(), what.c_str(), rule);
    if (device().settings.aborts) {
        abort();
    }
}

}  // namespace fake
