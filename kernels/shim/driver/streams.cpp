#include "streams.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>

namespace fake {
namespace {

constexpr const char* COPIES = "CUDA Driver API, API synchronization behavior, Memcpy";

// Of bytes; not for adversaries.
uint64_t hash_of(const void* at, size_t bytes) {
    const auto* data = static_cast<const unsigned char*>(at);
    uint64_t hash = bytes;
    auto mix = [&hash](uint64_t word) {
        hash = (hash ^ word) * 0x9e37'79b9'7f4a'7c15u;
        hash ^= hash >> 29;
    };
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        mix(word);
    }
    uint64_t word = 0;
    memcpy(&word, data, bytes);
    mix(word);
    return hash;
}

// What the host must have left alone since the copy was asked for.
void check_host(const Op& op) {
    for (const HostSpan& span : op.host) {
        if (span.is_checked && hash_of(span.at, span.bytes) != span.hash) {
            corrupt(op.name,
                    span.is_written
                        ? "the host wrote to memory before an asynchronous copy had written it: " +
                              describe(span)
                        : "host memory was changed before an asynchronous copy had read it: " +
                              describe(span),
                    COPIES);
        }
    }
}

void execute(Op& op) {
    Device& d = device();
    if (op.fails != 0) {
        d.lost = CUresult(op.fails);
        return;
    }
    for (const Span& span : op.spans) {
        const std::string amiss = d.memory.amiss(span);
        if (!amiss.empty()) {
            corrupt(op.name, amiss, "CUresult: CUDA_ERROR_ILLEGAL_ADDRESS");
            d.lost = CUDA_ERROR_ILLEGAL_ADDRESS;
            return;
        }
    }
    check_host(op);
    if (!op.run) {
        return;
    }
    d.running = &op;
    d.memory.open(op.spans, true);
    op.run();
    d.memory.open(op.spans, false);
    d.running = nullptr;
}

bool run_next(Stream& stream);

// Writes what was done in one call, since the process may end while another of its threads is
// in here: a stdio buffer would then be written out as far as it had been filled.
void trace(int file, uint64_t clock, const Op& op) {
    const std::string line = std::to_string(clock) + ' ' + std::to_string(op.ns) + ' ' +
                             std::to_string(op.launch) + ' ' + op.name + '\n';
    if (write(file, line.data(), line.size()) != ssize_t(line.size())) {
        perror("fake GPU: the trace");
        abort();
    }
}

// Runs a stream until a recording is done; false where it never will be.
bool advance_to(Recording& recording) {
    while (!recording.done) {
        if (!run_next(*recording.stream)) {
            return false;
        }
    }
    return true;
}

// Runs a stream's oldest work, and what it waits for; false where there is none, or it
// hangs, or nothing works any more.
bool run_next(Stream& stream) {
    Device& d = device();
    if (d.lost != CUDA_SUCCESS || stream.hangs || stream.queue.empty()) {
        return false;
    }
    if (stream.queue.front().hangs) {
        stream.hangs = true;
        return false;
    }
    const std::shared_ptr<Recording> waits_for = stream.queue.front().waits_for;
    if (waits_for != nullptr && !advance_to(*waits_for)) {
        return false;
    }
    Op op = std::move(stream.queue.front());
    stream.queue.pop_front();
    stream.clock = std::max(stream.clock, op.issued);
    if (waits_for != nullptr) {
        stream.clock = std::max(stream.clock, waits_for->at);
    }
    execute(op);
    if (d.settings.trace >= 0) {
        trace(d.settings.trace, stream.clock, op);
    }
    stream.clock += op.ns;
    d.busy_ns += op.ns;
    if (op.records != nullptr) {
        op.records->done = true;
        op.records->at = stream.clock;
    }
    return d.lost == CUDA_SUCCESS;
}

// The host waits for what never ends.
[[noreturn]] void hang() {
    device().mutex.unlock();
    for (;;) {
        pause();
    }
}

// Whether work that waits writes what this is, or the other way round.
bool is_shared(const HostSpan& span) {
    const auto* begin = static_cast<const char*>(span.at);
    for (const auto& stream : device().streams) {
        for (const Op& op : stream->queue) {
            for (const HostSpan& other : op.host) {
                const auto* at = static_cast<const char*>(other.at);
                if (at < begin + span.bytes && begin < at + other.bytes &&
                    (span.is_written || other.is_written)) {
                    return true;
                }
            }
        }
    }
    return false;
}

void push(Stream& stream, Op op) {
    op.issued = device().host_ns;
    for (HostSpan& span : op.host) {
        // Other copies may change it by then.
        span.is_checked = !is_shared(span);
        if (!span.is_checked) {
            continue;
        }
        // What it holds until then is undefined: the host must not rely on it.
        if (span.is_written) {
            memset(const_cast<void*>(span.at), 0xdb, span.bytes);
        }
        span.hash = hash_of(span.at, span.bytes);
    }
    stream.queue.push_back(std::move(op));
}

// The legacy default stream waits for every blocking one, and they for it (CUDA Driver
// API, Stream synchronization behavior, Legacy default stream).
void join_default(Stream& stream) {
    Device& d = device();
    if (&stream == d.legacy) {
        for (const auto& other : d.streams) {
            if (other.get() != &stream && other->is_blocking && !other->queue.empty()) {
                Op wait;
                wait.name = "the default stream's wait";
                wait.waits_for = record(*other);
                push(stream, std::move(wait));
            }
        }
    } else if (stream.is_blocking && d.legacy != nullptr && !d.legacy->queue.empty()) {
        Op wait;
        wait.name = "a wait for the default stream";
        wait.waits_for = record(*d.legacy);
        push(stream, std::move(wait));
    }
}

}  // namespace

Stream* new_stream(bool is_blocking) {
    Device& d = device();
    d.streams.push_back(std::make_unique<Stream>());
    Stream* stream = d.streams.back().get();
    stream->number = d.streams_numbered++;
    stream->is_blocking = is_blocking;
    return stream;
}

Stream* stream_of(CUstream handle) {
    Device& d = device();
    auto of_default = [](Stream*& stream) {
        if (stream == nullptr) {
            stream = new_stream(true);
        }
        return stream;
    };
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        return of_default(d.legacy);
    }
    if (handle == CU_STREAM_PER_THREAD) {
        return of_default(d.per_thread);
    }
    for (const auto& stream : d.streams) {
        if (stream.get() == reinterpret_cast<Stream*>(handle) && !stream->is_destroyed) {
            return stream.get();
        }
    }
    return nullptr;
}

void enqueue(Stream& stream, Op op) {
    Device& d = device();
    if (stream.capture != nullptr) {
        stream.capture->ops.push_back(std::move(op));
        return;
    }
    join_default(stream);
    push(stream, std::move(op));
    if (d.settings.mode == Mode::Eager) {
        while (run_next(stream)) {
        }
    }
}

std::shared_ptr<Recording> record(Stream& stream) {
    auto recording = std::make_shared<Recording>();
    recording->stream = &stream;
    Op op;
    op.name = "an event's recording";
    op.records = recording;
    push(stream, std::move(op));
    return recording;
}

CUresult wait_for(Stream& stream) {
    Device& d = device();
    while (run_next(stream)) {
    }
    if (d.lost != CUDA_SUCCESS) {
        return d.lost;
    }
    if (!stream.queue.empty()) {
        hang();
    }
    d.host_ns = std::max(d.host_ns, stream.clock);
    d.memory.trim(d.memory.get_release_threshold());
    return CUDA_SUCCESS;
}

CUresult wait_for(Recording& recording) {
    Device& d = device();
    if (!advance_to(recording) && d.lost == CUDA_SUCCESS) {
        hang();
    }
    d.host_ns = std::max(d.host_ns, recording.at);
    d.memory.trim(d.memory.get_release_threshold());
    return d.lost;
}

bool run_all(Stream& stream) {
    while (run_next(stream)) {
    }
    return stream.queue.empty();
}

bool run_all(Recording& recording) { return advance_to(recording); }

CUresult wait_for_all() {
    for (const auto& stream : device().streams) {
        const CUresult result = wait_for(*stream);
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    return CUDA_SUCCESS;
}

void run_some() {
    Device& d = device();
    for (const auto& stream : d.streams) {
        if (stream->queue.empty() || d.random() % 2 == 0) {
            continue;
        }
        for (size_t left = d.random() % (stream->queue.size() + 1); left > 0; --left) {
            run_next(*stream);
        }
    }
}

CUresult no_stream() {
    return refuse(CUDA_ERROR_INVALID_HANDLE, "this is no stream, or one that was destroyed",
                  "Stream Management");
}

bool on_gone_memory(const Op& op) {
    for (const Span& span : op.spans) {
        const std::string gone = device().memory.is_gone(span);
        if (!gone.empty()) {
            corrupt(op.name, gone, "CUresult: CUDA_ERROR_ILLEGAL_ADDRESS");
            return true;
        }
    }
    return false;
}

CUresult forbidden_in_capture(const Stream* stream, const char* what) {
    Device& d = device();
    for (const auto& other : d.streams) {
        Graph* graph = other->capture;
        // In relaxed mode only the capturing stream itself may not be waited for.
        if (graph == nullptr || (stream != nullptr && stream->capture != graph) ||
            (stream == nullptr && graph->mode == CU_STREAM_CAPTURE_MODE_RELAXED)) {
            continue;
        }
        graph->invalid = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      std::string(what) + " while stream " + std::to_string(other->number) +
                          " is capturing",
                      "CUDA C++ Programming Guide, CUDA Graphs, Prohibited and Unhandled "
                      "Operations");
    }
    return CUDA_SUCCESS;
}

HostSpan host_span(const void* at, size_t bytes, bool is_written) {
    return {at, bytes, is_written, false, 0};
}

const Pinned* pinned_at(const void* at) {
    Device& d = device();
    const auto address = reinterpret_cast<uintptr_t>(at);
    auto after = d.pinned.upper_bound(address);
    if (after == d.pinned.begin()) {
        return nullptr;
    }
    const Pinned& pinned = std::prev(after)->second;
    return address < pinned.begin + pinned.bytes ? &pinned : nullptr;
}

std::string describe(const HostSpan& span) {
    const Pinned* pinned = pinned_at(span.at);
    if (pinned == nullptr) {
        return "memory that is not page-locked";
    }
    const size_t offset = reinterpret_cast<uintptr_t>(span.at) - pinned->begin;
    return "bytes " + std::to_string(offset) + " to " + std::to_string(offset + span.bytes) +
           " of pinned buffer " + std::to_string(pinned->number) + " of " +
           std::to_string(pinned->bytes) + " bytes";
}

}  // namespace fake
