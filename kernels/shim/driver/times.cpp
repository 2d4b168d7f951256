#include "times.hpp"

#include <cstring>

#include "streams.hpp"

namespace fake {
namespace {

// By the beginning of a kernel's name: what one block takes.
struct Row {
    const char* prefix;
    uint64_t block_ns;
};
constexpr Row TABLE[] = {
    {"prefill_attention", 4000}, {"decode_attention", 4000}, {"sample", 20'000},
    {"token_logprobs", 20'000}, {"rms_norm", 500}, {"rope", 300}, {"embedding", 300},
    {"", 1000},
};

}  // namespace

uint64_t kernel_ns(const Profile& profile, const std::string& name, uint64_t blocks) {
    const uint64_t rounds =
        (blocks + uint64_t(profile.multiprocessors) - 1) / uint64_t(profile.multiprocessors);
    for (const Row& row : TABLE) {
        if (name.compare(0, strlen(row.prefix), row.prefix) == 0) {
            return LAUNCH_NS + rounds * row.block_ns;
        }
    }
    return LAUNCH_NS;
}

uint64_t product_ns(const Profile& profile, uint64_t flops, uint64_t bytes) {
    return LAUNCH_NS + std::max(flops / profile.flops_a_ns, bytes / profile.bytes_a_ns);
}

CUresult ask_launch(Stream& stream, Op op) {
    Device& d = device();
    if (on_gone_memory(op)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // The call's name ends with the kernel's.
    const std::string kernel = op.name.substr(op.name.rfind(' ') + 1);
    const Faults::Launch fault = d.settings.faults.of_launch(kernel);
    op.fails = fault.sticky;
    op.hangs = fault.hangs;
    op.launch = fault.number;
    if (fault.nan_at_pointer > 0 && fault.nan_at_pointer <= op.spans.size()) {
        const Span span = op.spans[fault.nan_at_pointer - 1];
        const auto run = op.run;
        op.run = [run, span] {
            run();
            const Allocation* allocation = device().memory.before(span.at);
            const size_t left = allocation->begin + allocation->bytes - span.at;
            memset(reinterpret_cast<void*>(span.at), 0xff, std::min(left, size_t(64)));
        };
    }
    enqueue(stream, std::move(op));
    return d.lost;
}

}  // namespace fake
