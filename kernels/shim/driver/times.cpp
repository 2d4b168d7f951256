#include "times.hpp"

#include <algorithm>
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
    {"prefill_attention", 4000}, {"prefix_attention", 4000}, {"decode_attention", 4000}, {"sample", 20'000},
    {"token_logprobs", 20'000}, {"rms_norm", 500}, {"gemv", 500}, {"rope", 300}, {"embedding", 300},
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
    if (on_gone_memory(op)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    op.is_launch = true;
    // What is captured is a launch each time that it is replayed.
    if (stream.capture == nullptr) {
        take_launch_faults(op);
    }
    enqueue(stream, std::move(op));
    return device().lost;
}

void take_launch_faults(Op& op) {
    // The call's name ends with the kernel's.
    const std::string kernel = op.name.substr(op.name.rfind(' ') + 1);
    const Faults::Launch fault = device().settings.faults.of_launch(kernel);
    op.fails = fault.sticky;
    op.hangs = fault.hangs;
    op.launch = fault.number;
    const uint64_t changed = std::max(fault.nan_at_pointer, fault.wrong_at_pointer);
    if (changed > 0 && changed <= op.spans.size()) {
        const Span span = op.spans[changed - 1];
        const auto run = op.run;
        const bool is_nan = fault.nan_at_pointer > 0;
        op.run = [run, span, is_nan] {
            run();
            const Allocation* allocation = device().memory.before(span.at);
            const size_t left = allocation->begin + allocation->bytes - span.at;
            auto* words = reinterpret_cast<uint16_t*>(span.at);
            for (size_t i = 0; i < std::min(left, size_t(64)) / 2; ++i) {
                // Of a number in two bytes, or the upper half of an f32: an exponent's bit.
                words[i] = is_nan ? 0xffff : words[i] ^ 0x0400;
            }
        };
    }
}

}  // namespace fake
