// What work takes, in virtual nanoseconds: no more than an order of magnitude, but the
// same at every run.
#pragma once

#include "device.hpp"

namespace fake {

// A launch's own cost.
constexpr uint64_t LAUNCH_NS = 2000;

// Of a kernel on so many blocks: as many rounds as the multiprocessors need.
uint64_t kernel_ns(const Profile& profile, const std::string& name, uint64_t blocks);
// Of a matrix product: its operations or its bytes, whichever take longer.
uint64_t product_ns(const Profile& profile, uint64_t flops, uint64_t bytes);

// Puts a launch into a stream, with the faults that were asked for, or into the graph that the
// stream captures.
CUresult ask_launch(Stream& stream, Op op);
// Counts a launch that is to run, and gives it the faults that were asked for it.
void take_launch_faults(Op& op);

}  // namespace fake
