// Capture and replay.
#include "streams.hpp"
#include "times.hpp"

using namespace fake;

namespace {

constexpr const char* CAPTURE = "Stream Management, cuStreamEndCapture";
constexpr const char* GRAPHS = "Graph Management";

template <typename Handle> Graph* graph_of(Handle handle, std::set<Graph*>& among) {
    auto* graph = reinterpret_cast<Graph*>(handle);
    return among.count(graph) != 0 ? graph : nullptr;
}

CUresult no_graph() {
    return refuse(CUDA_ERROR_INVALID_VALUE, "this is no graph, or one that was destroyed", GRAPHS);
}

template <typename Handle> CUresult destroy(Handle handle, std::set<Graph*>& among) {
    Graph* const graph = graph_of(handle, among);
    if (graph == nullptr) {
        return no_graph();
    }
    among.erase(graph);
    delete graph;
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    CALL(Context);
    Stream* const stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    if (stream->capture != nullptr || stream == device().legacy) {
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "the stream is capturing already, or is the legacy default stream",
                      "Stream Management, cuStreamBeginCapture");
    }
    stream->capture = new Graph{{}, CUDA_SUCCESS, mode, stream, {stream}};
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    CALL(Context);
    Stream* const stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    *status = stream->capture == nullptr                    ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->invalid == CUDA_SUCCESS ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                                            : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* result) {
    CALL(Context);
    *result = nullptr;
    Stream* const stream = stream_of(handle);
    if (stream == nullptr) {
        return no_stream();
    }
    Graph* const graph = stream->capture;
    if (graph == nullptr || graph->origin != stream) {
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                      "the capture was not begun on this stream", CAPTURE);
    }
    for (Stream* part : graph->streams) {
        part->capture = nullptr;
    }
    if (graph->invalid != CUDA_SUCCESS) {
        const CUresult error = graph->invalid;
        delete graph;
        return refuse(error, "something that may not be captured was asked for", CAPTURE);
    }
    device().graphs.insert(graph);
    *result = reinterpret_cast<CUgraph>(graph);
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* result, CUgraph handle, unsigned long long) {
    CALL(Context);
    Graph* const graph = graph_of(handle, device().graphs);
    if (graph == nullptr) {
        return no_graph();
    }
    auto* executable = new Graph(*graph);
    device().executables.insert(executable);
    *result = reinterpret_cast<CUgraphExec>(executable);
    return CUDA_SUCCESS;
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
    CALL(Context);
    if (graph_of(handle, device().executables) == nullptr) {
        return no_graph();
    }
    return stream_of(stream_handle) == nullptr ? no_stream() : CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    CALL(Context);
    Graph* const graph = graph_of(handle, device().executables);
    Stream* const stream = stream_of(stream_handle);
    if (graph == nullptr || stream == nullptr) {
        return graph == nullptr ? no_graph() : no_stream();
    }
    Device& d = device();
    for (const Op& op : graph->ops) {
        for (const Span& span : op.spans) {
            const std::string gone = d.memory.is_gone(span);
            if (!gone.empty()) {
                corrupt(d.call, "a captured " + op.name + ": " + gone, GRAPHS);
                return CUDA_ERROR_INVALID_VALUE;
            }
        }
        for (const HostSpan& span : op.host) {
            if (pinned_at(span.at) == nullptr) {
                corrupt(d.call, "a captured " + op.name + ": its page-locked memory was freed",
                        GRAPHS);
                return CUDA_ERROR_INVALID_VALUE;
            }
        }
    }
    for (Op op : graph->ops) {
        if (op.is_launch) {
            op.name = "cuGraphLaunch of " + op.name.substr(op.name.rfind(' ') + 1);
            take_launch_faults(op);
        }
        enqueue(*stream, std::move(op));
    }
    return d.lost;
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
    CALL(Context);
    return destroy(handle, device().executables);
}

CUresult cuGraphDestroy(CUgraph handle) {
    CALL(Context);
    return destroy(handle, device().graphs);
}

}  // extern "C"
