// What streams, events and graphs do when.
#include "driver.hpp"

namespace {

// What is forbidden while a stream captures; the capture is worth nothing then.
void in_a_capture(CUresult (*forbidden)(Row&)) {
    start();
    Row row;
    MUST(cuStreamSynchronize(row.stream));
    MUST(cuStreamBeginCapture(row.stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    row.add();
    MUST_BE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, forbidden(row));
    CUgraph graph;
    MUST_BE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(row.stream, &graph));
}

CASE(pageable_copy_in_a_capture) {
    in_a_capture([](Row& row) {
        static char from[16];
        return cuMemcpyHtoDAsync(row.x, from, 16, row.stream);
    });
}

CASE(wait_in_a_capture) {
    in_a_capture([](Row& row) { return cuStreamSynchronize(row.stream); });
}

CASE(allocation_in_a_capture) {
    in_a_capture([](Row&) {
        void* pointer;
        return cuMemHostAlloc(&pointer, 16, 0);
    });
}

CASE(module_loading_in_a_capture) {
    in_a_capture([](Row&) {
        CUmodule module;
        return cuModuleLoadData(&module, "// PTX");
    });
}

// A graph of one addition.
CUgraphExec captured(const Row& row) {
    CUgraph graph;
    CUgraphExec executable;
    MUST(cuStreamBeginCapture(row.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    row.add();
    MUST(cuStreamEndCapture(row.stream, &graph));
    MUST(cuGraphInstantiate(&executable, graph, 0));
    MUST(cuGraphDestroy(graph));
    return executable;
}

CASE(a_graph_is_replayed) {
    start();
    Row row;
    CUgraphExec graph = captured(row);
    CHECK(row.first() == 0);
    for (int i = 0; i < 3; ++i) {
        MUST(cuGraphLaunch(graph, row.stream));
    }
    CHECK(row.first() == 0x4040);  // 3
    MUST(cuGraphExecDestroy(graph));
    MUST_BE(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(graph, row.stream));
}

CASE(a_replay_with_freed_memory) {
    start();
    Row row;
    CUgraphExec graph = captured(row);
    MUST(cuMemFreeAsync(row.x, row.stream));
    cuGraphLaunch(graph, row.stream);
}

// Without a wait between streams, the second reads what the first has not written.
uint16_t of_two_streams(bool waits) {
    start();
    Row row;
    MUST(cuStreamSynchronize(row.stream));
    CUstream other = new_stream();
    row.add();
    if (waits) {
        CUevent event = new_event(CU_EVENT_DISABLE_TIMING);
        MUST(cuEventRecord(event, row.stream));
        MUST(cuStreamWaitEvent(other, event, 0));
        MUST(cuEventDestroy(event));
    }
    uint16_t first[8];
    MUST(cuMemcpyDtoHAsync(first, row.x, 16, other));
    return first[0];
}

CASE(streams_without_an_event) { printf("%d\n", of_two_streams(false)); }
CASE(streams_with_an_event) { CHECK(of_two_streams(true) == ONE); }

// Nothing has run before somebody waits, and a query is no wait.
CASE(a_query_is_no_wait) {
    start();
    Row row;
    CUevent event = new_event();
    MUST(cuEventRecord(event, row.stream));
    MUST_BE(CUDA_ERROR_NOT_READY, cuEventQuery(event));
    MUST(cuEventSynchronize(event));
    MUST(cuEventQuery(event));
}

// The same numbers in every mode: 1,500 ns and bytes for the copy, 2,000 and a round of
// blocks for the launch.
CASE(times_are_exact) {
    start();
    Row row;
    CUevent events[3] = {new_event(), new_event(), new_event()};
    char* from = pinned<char>(16);
    MUST(cuEventRecord(events[0], row.stream));
    MUST(cuMemcpyHtoDAsync(row.x, from, 16, row.stream));
    MUST(cuEventRecord(events[1], row.stream));
    row.add();
    MUST(cuEventRecord(events[2], row.stream));
    MUST(cuStreamSynchronize(row.stream));
    float copy, launch;
    MUST(cuEventElapsedTime(&copy, events[0], events[1]));
    MUST(cuEventElapsedTime(&launch, events[1], events[2]));
    printf("%.0f %.0f\n", copy * 1e6, launch * 1e6);
}

// An event's time is there once it was waited for.
CASE(a_time_taken_at_launch) {
    start();
    Row row;
    CUevent events[2] = {new_event(), new_event()};
    MUST(cuEventRecord(events[0], row.stream));
    row.add();
    MUST(cuEventRecord(events[1], row.stream));
    float ms;
    MUST_BE(CUDA_ERROR_NOT_READY, cuEventElapsedTime(&ms, events[0], events[1]));
    MUST(cuEventSynchronize(events[1]));
    MUST(cuEventElapsedTime(&ms, events[0], events[1]));
}

// The bias is what fresh memory holds.
CASE(a_launch_before_its_upload) {
    start();
    Row row;
    AddBias params = row.params();
    params.bias = allocate(32, row.stream);
    MUST(add_bias(row.kernel, params, row.stream));
    const float values[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    MUST(cuMemcpyHtoDAsync(params.bias, values, sizeof(values), row.stream));
    printf("%s\n", (row.first() & 0x7f80) == 0x7f80 ? "nan" : "a number");
}

CASE(time_of_an_event_without_timing) {
    start();
    CUstream stream = new_stream();
    CUevent event = new_event(CU_EVENT_DISABLE_TIMING);
    MUST(cuEventRecord(event, stream));
    MUST(cuStreamSynchronize(stream));
    float ms;
    MUST_BE(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime(&ms, event, event));
}

// What fails is told by the script.
CASE(faults) {
    start();
    Row row;
    row.add();
    CUdeviceptr pointer;
    const CUresult allocated = cuMemAllocAsync(&pointer, 16, row.stream);
    const CUresult waited = cuStreamSynchronize(row.stream);
    const CUresult again = cuStreamSynchronize(row.stream);
    printf("%d %d %d\n", allocated, waited, again);
    if (waited == CUDA_SUCCESS) {
        printf("%x\n", row.first());
    }
}

// Legacy default stream: after what blocking streams were asked for, and only theirs.
CASE(the_default_stream_waits_for_blocking_ones) {
    start();
    Row row;
    MUST(cuStreamSynchronize(row.stream));
    CUstream blocking;
    MUST(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    MUST(add_bias(row.kernel, row.params(), blocking));
    uint16_t first[8];
    MUST(cuMemcpyDtoH(first, row.x, 16));
    CHECK(first[0] == ONE);
    row.add();
    MUST(cuMemcpyDtoH(first, row.x, 16));
    printf("%x\n", first[0]);
}

}  // namespace
