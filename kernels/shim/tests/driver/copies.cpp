// Copies, and host memory that the device reads or writes.
#include "driver.hpp"

namespace {

CASE(a_row_is_added_to) {
    start();
    Row row;
    row.add();
    CHECK(row.first() == ONE);
}

CASE(changed_before_read) {
    start();
    CUstream stream = new_stream();
    CUdeviceptr to = allocate(64, stream);
    pinned<char>(4096);
    char* from = pinned<char>(64);
    MUST(cuMemcpyHtoDAsync(to, from, 64, stream));
    from[3] = 1;
    MUST(cuStreamSynchronize(stream));
}

CASE(changed_after_its_event) {
    start();
    CUstream stream = new_stream();
    CUevent event = new_event();
    CUdeviceptr to = allocate(64, stream);
    char* from = pinned<char>(64);
    for (char i = 0; i < 3; ++i) {
        from[3] = i;
        MUST(cuMemcpyHtoDAsync(to, from, 64, stream));
        MUST(cuEventRecord(event, stream));
        MUST(cuEventSynchronize(event));
    }
    char back[64];
    MUST(cuMemcpyDtoHAsync(back, to, 64, stream));
    CHECK(back[3] == 2);
}

CASE(wait_on_the_wrong_event) {
    start();
    CUstream stream = new_stream();
    CUevent event = new_event();
    CUdeviceptr to = allocate(64, stream);
    char* from = pinned<char>(64);
    MUST(cuEventRecord(event, stream));
    MUST(cuMemcpyHtoDAsync(to, from, 64, stream));
    MUST(cuEventSynchronize(event));
    from[3] = 1;
    MUST(cuStreamSynchronize(stream));
}

CASE(written_before_a_copy_to_it) {
    start();
    Row row;
    auto* to = pinned<uint16_t>(8);
    MUST(cuMemcpyDtoHAsync(to, row.x, 16, row.stream));
    to[0] = 5;
    MUST(cuStreamSynchronize(row.stream));
}

CASE(read_too_early) {
    start();
    Row row;
    auto* to = pinned<uint16_t>(8);
    to[0] = 5;
    MUST(cuMemcpyDtoHAsync(to, row.x, 16, row.stream));
    // Neither what it held nor what it will.
    CHECK(to[0] != 5 && to[0] != 0);
    MUST(cuStreamSynchronize(row.stream));
    CHECK(to[0] == 0);
}

CASE(pinned_memory_freed_early) {
    start();
    CUstream stream = new_stream();
    CUdeviceptr to = allocate(64, stream);
    char* from = pinned<char>(64);
    MUST(cuMemcpyHtoDAsync(to, from, 64, stream));
    MUST(cuMemFreeHost(from));
}

CASE(pageable_memory_is_staged) {
    start();
    Row row;
    uint16_t from[8] = {ONE};
    MUST(cuMemcpyHtoDAsync(row.x, from, 16, row.stream));
    from[0] = 0;
    CHECK(row.first() == ONE);
}

}  // namespace
