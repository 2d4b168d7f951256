// Streams and events.
#include <algorithm>

#include "streams.hpp"

using namespace fake;

namespace {

constexpr const char* STREAMS = "Stream Management";
constexpr const char* EVENTS = "Event Management";

Event* event_of(CUevent handle) {
    auto* event = reinterpret_cast<Event*>(handle);
    return device().events.count(event) != 0 ? event : nullptr;
}

CUresult no_event() {
    return refuse(CUDA_ERROR_INVALID_HANDLE, "this is no event, or one that was destroyed",
                  EVENTS);
}

// An event that was recorded in a capture may be waited for in it only.
CUresult captured() {
    return refuse(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capturing stream",
                  EVENTS);
}

}  // namespace

extern "C" {

CUresult cuStreamCreate(CUstream* handle, unsigned flags) {
    CALL(Context);
    *handle = reinterpret_cast<CUstream>(new_stream((flags & CU_STREAM_NON_BLOCKING) == 0));
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int) {
    return cuStreamCreate(handle, flags);
}

// What is in it runs to its end: "the resources associated with it will be released
// automatically once the device has completed all work".
CUresult cuStreamDestroy_v2(CUstream handle) {
    CALL(Context);
    Stream* const stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    stream->is_destroyed = true;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle) {
    CALL(Context);
    Stream* const stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    if (stream->capture != nullptr) {
        return forbidden_in_capture(stream, "a wait for the stream");
    }
    return wait_for(*stream);
}

CUresult cuStreamQuery(CUstream handle) {
    CALL(Context);
    Stream* const stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    if (stream->capture != nullptr) {
        return forbidden_in_capture(stream, "a query of the stream");
    }
    // So that who asks again and again gets there.
    if (stream->queue.empty()) {
        return CUDA_SUCCESS;
    }
    run_all(*stream);
    return device().lost != CUDA_SUCCESS ? device().lost : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    CALL(Context);
    Stream* const stream = stream_of(handle);
    Event* const event = event_of(event_handle);
    if (stream == nullptr || event == nullptr) {
        return stream == nullptr ? no_stream() : no_event();
    }
    // "If the event was never recorded, this has no effect."
    if (event->last == nullptr) {
        return CUDA_SUCCESS;
    }
    Graph* const graph = event->last->graph;
    if (graph != nullptr) {
        if (stream->capture == nullptr && stream->queue.empty()) {
            stream->capture = graph;
            graph->streams.insert(stream);
        }
        if (stream->capture != graph) {
            return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                          "the event was recorded in another capture", STREAMS);
        }
        // The graph's order is that of the calls.
        return CUDA_SUCCESS;
    }
    if (stream->capture != nullptr) {
        return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                      "a capturing stream waits for an event of none", STREAMS);
    }
    Op op;
    op.name = device().call;
    op.waits_for = event->last;
    enqueue(*stream, std::move(op));
    return device().lost;
}

CUresult cuEventCreate(CUevent* handle, unsigned flags) {
    CALL(Context);
    auto* event = new Event{flags, nullptr};
    device().events.insert(event);
    *handle = reinterpret_cast<CUevent>(event);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent handle) {
    CALL(Context);
    Event* const event = event_of(handle);
    if (event == nullptr) {
        return no_event();
    }
    device().events.erase(event);
    delete event;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    CALL(Context);
    Stream* const stream = stream_of(stream_handle);
    Event* const event = event_of(handle);
    if (stream == nullptr || event == nullptr) {
        return stream == nullptr ? no_stream() : no_event();
    }
    event->last = std::make_shared<Recording>();
    event->last->stream = stream;
    event->last->graph = stream->capture;
    if (stream->capture == nullptr) {
        Op op;
        op.name = device().call;
        op.records = event->last;
        enqueue(*stream, std::move(op));
    }
    return device().lost;
}

CUresult cuEventQuery(CUevent handle) {
    CALL(Context);
    Event* const event = event_of(handle);
    if (event == nullptr) {
        return no_event();
    }
    if (event->last == nullptr || event->last->done) {
        return CUDA_SUCCESS;
    }
    if (event->last->graph != nullptr) {
        return captured();
    }
    // Not ready at first, so that nobody takes a query for a wait; then it gets there.
    const bool is_done = event->last->was_queried && run_all(*event->last);
    event->last->was_queried = true;
    if (is_done) {
        return CUDA_SUCCESS;
    }
    return device().lost != CUDA_SUCCESS ? device().lost : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent handle) {
    CALL(Context);
    Event* const event = event_of(handle);
    if (event == nullptr) {
        return no_event();
    }
    if (event->last == nullptr) {
        return CUDA_SUCCESS;
    }
    return event->last->graph != nullptr ? captured() : wait_for(*event->last);
}

CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent first, CUevent second) {
    CALL(Context);
    const Event* const start = event_of(first);
    const Event* const end = event_of(second);
    if (start == nullptr || end == nullptr) {
        return no_event();
    }
    if (start->last == nullptr || end->last == nullptr) {
        return refuse(CUDA_ERROR_INVALID_HANDLE, "one of the events was never recorded", EVENTS);
    }
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) {
        return refuse(CUDA_ERROR_INVALID_HANDLE,
                      "one of the events was created with CU_EVENT_DISABLE_TIMING", EVENTS);
    }
    if (!start->last->done || !end->last->done) {
        return CUDA_ERROR_NOT_READY;
    }
    const auto ns = double(end->last->at) - double(start->last->at);
    *milliseconds = float(ns / 1e6);
    return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float* milliseconds, CUevent first, CUevent second) {
    return cuEventElapsedTime_v2(milliseconds, first, second);
}

}  // extern "C"
