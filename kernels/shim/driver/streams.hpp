// When work runs.
#pragma once

#include "device.hpp"

namespace fake {

CUresult initialize();

// The stream of a handle, the default ones among them; null where it is none, or was
// destroyed.
Stream* stream_of(CUstream handle);
// The refusal of a handle that is no stream's.
CUresult no_stream();
Stream* new_stream(bool is_blocking);

// Adds work to a stream, or to the graph that it captures, and runs what the mode says.
void enqueue(Stream& stream, Op op);
// Whether work is asked for on memory that is freed by then, which is said.
bool on_gone_memory(const Op& op);
// Work that an event waits for, put into a stream.
std::shared_ptr<Recording> record(Stream& stream);

// The host waits: for a stream's work, for a recording, or for all.
CUresult wait_for(Stream& stream);
CUresult wait_for(Recording& recording);
CUresult wait_for_all();
// The same without waiting for what never ends; whether all is done.
bool run_all(Stream& stream);
bool run_all(Recording& recording);
// Some of the work of some streams, by the seed.
void run_some();

// That nothing which may not be asked for during a capture is asked for: such a call
// makes what is being captured invalid.
CUresult forbidden_in_capture(const Stream* stream, const char* what);

// Memory that a copy reads, checked when it runs.
HostSpan host_span(const void* at, size_t bytes, bool is_written);
// The page-locked memory that an address is in; null where it is pageable.
const Pinned* pinned_at(const void* at);
std::string describe(const HostSpan& span);

}  // namespace fake
