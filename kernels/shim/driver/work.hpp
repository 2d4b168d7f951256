// Work for the device, as it waits in a stream or stands in a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace fake {

struct Stream;
struct Graph;

// One recording of an event: the work of a stream up to it.
struct Recording {
    Stream* stream = nullptr;
    bool done = false;
    // Whether a query has been told that it is not.
    bool was_queried = false;
    // In virtual nanoseconds.
    uint64_t at = 0;
    // The graph that was being captured, if one was.
    Graph* graph = nullptr;
};

// Memory of the device that work is given.
struct Span {
    uintptr_t at;
    size_t bytes;
    // In words.
    std::string what;
};

// Page-locked memory that an asynchronous copy reads or writes.
struct HostSpan {
    const void* at;
    size_t bytes;
    bool is_written;
    bool is_checked;
    // What it held when the copy was asked for.
    uint64_t hash;
};

struct Op {
    // The call that asked for it, and what for.
    std::string name;
    std::function<void()> run;
    std::vector<Span> spans;
    std::vector<HostSpan> host;
    std::shared_ptr<Recording> waits_for;
    std::shared_ptr<Recording> records;
    // What it takes, and when it was asked for, in virtual nanoseconds.
    uint64_t ns = 0;
    uint64_t issued = 0;
    // A kernel's or a product's, and which it is of those that ran, from 1; 0 where it is none.
    bool is_launch = false;
    uint64_t launch = 0;
    // Never ends.
    bool hangs = false;
    // Fails with this CUresult when it runs, and takes the context along.
    int fails = 0;
};

}  // namespace fake
