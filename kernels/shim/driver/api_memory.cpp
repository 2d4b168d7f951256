// Allocation and copies.
#include <cstring>

#include <sys/mman.h>

#include "streams.hpp"

using namespace fake;

namespace {

constexpr const char* STREAM_ORDERED = "Stream Ordered Memory Allocator";
constexpr const char* MANAGEMENT = "Memory Management";
constexpr const char* COPIES = "API synchronization behavior, Memcpy";
// Bytes a nanosecond between the host and the device.
constexpr uint64_t BUS = 50;
// What a copy takes beside its bytes, in nanoseconds.
constexpr uint64_t COPY_NS = 1500;

CUmemoryPool the_pool() {
    static int pool;
    return reinterpret_cast<CUmemoryPool>(&pool);
}

uintptr_t address(CUdeviceptr pointer) { return static_cast<uintptr_t>(pointer); }
void* host(CUdeviceptr pointer) { return reinterpret_cast<void*>(address(pointer)); }

CUresult allocate(CUdeviceptr* pointer, size_t bytes, Allocation*& allocation) {
    Device& d = device();
    if (pointer == nullptr || bytes == 0) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "no bytes are asked for", MANAGEMENT);
    }
    allocation = d.memory.allocate(bytes);
    if (allocation == nullptr) {
        return refuse(CUDA_ERROR_OUT_OF_MEMORY,
                      std::to_string(bytes) + " bytes are asked for, of " +
                          std::to_string(d.memory.total()) + " on the device " +
                          std::to_string(d.memory.free()) + " are free",
                      MANAGEMENT);
    }
    *pointer = allocation->begin;
    return CUDA_SUCCESS;
}

// The allocation that begins there, to be freed.
CUresult to_free(CUdeviceptr pointer, Allocation*& allocation) {
    Device& d = device();
    allocation = d.memory.at(address(pointer));
    if (allocation == nullptr) {
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "no allocation begins there: " + d.memory.describe(address(pointer)),
                      MANAGEMENT);
    }
    if (allocation->free_was_called) {
        corrupt(d.call, "it is freed a second time: " + d.memory.describe(address(pointer)),
                MANAGEMENT);
        return CUDA_ERROR_INVALID_VALUE;
    }
    d.memory.free_is_called(*allocation);
    return CUDA_SUCCESS;
}

// A copy, or what fills memory: the device's side must not be freed yet.
CUresult ask(Stream& stream, Op op, bool is_copy, uint64_t bytes, uint64_t rate) {
    Device& d = device();
    if (on_gone_memory(op)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    op.ns = COPY_NS + bytes / rate;
    if (is_copy) {
        op.ns *= d.settings.faults.of_copy();
    }
    enqueue(stream, std::move(op));
    return d.lost;
}

CUresult upload(CUdeviceptr to, const void* from, size_t bytes, Stream& stream) {
    Device& d = device();
    const bool is_pinned = pinned_at(from) != nullptr;
    if (!is_pinned && stream.capture != nullptr) {
        return forbidden_in_capture(&stream, "a copy from memory that is not page-locked");
    }
    Op op;
    op.name = d.call;
    op.spans = {{address(to), bytes, "where it copies to"}};
    if (is_pinned) {
        // Read when it runs.
        op.host = {host_span(from, bytes, false)};
        op.run = [=] { memcpy(host(to), from, bytes); };
    } else {
        // "The pageable buffer has been copied to the staging memory" when it returns.
        const auto* data = static_cast<const unsigned char*>(from);
        auto staged = std::make_shared<std::vector<unsigned char>>(data, data + bytes);
        op.run = [=] { memcpy(host(to), staged->data(), bytes); };
    }
    return ask(stream, std::move(op), true, bytes, BUS);
}

CUresult download(void* to, CUdeviceptr from, size_t bytes, Stream& stream) {
    Device& d = device();
    const bool is_pinned = pinned_at(to) != nullptr;
    if (!is_pinned && stream.capture != nullptr) {
        return forbidden_in_capture(&stream, "a copy to memory that is not page-locked");
    }
    Op op;
    op.name = d.call;
    op.spans = {{address(from), bytes, "where it copies from"}};
    if (is_pinned) {
        op.host = {host_span(to, bytes, true)};
    }
    op.run = [=] { memcpy(to, host(from), bytes); };
    const CUresult asked = ask(stream, std::move(op), true, bytes, BUS);
    // "For transfers from device memory to pageable host memory, the function will return
    // only once the copy has completed."
    return asked != CUDA_SUCCESS || is_pinned ? asked : wait_for(stream);
}

CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream& stream) {
    Op op;
    op.name = device().call;
    op.spans = {{address(to), bytes, "where it copies to"},
                {address(from), bytes, "where it copies from"}};
    op.run = [=] { memmove(host(to), host(from), bytes); };
    return ask(stream, std::move(op), true, 2 * bytes, device().settings.profile.bytes_a_ns);
}

CUresult fill(CUdeviceptr to, unsigned char byte, size_t bytes, Stream& stream) {
    Op op;
    op.name = device().call;
    op.spans = {{address(to), bytes, "what it fills"}};
    op.run = [=] {
        // Whole pages of zeros need not be there before they are used.
        constexpr uintptr_t PAGE = 4096;
        const uintptr_t first = (address(to) + PAGE - 1) / PAGE * PAGE;
        const uintptr_t last = (address(to) + bytes) / PAGE * PAGE;
        if (byte != 0 || bytes < (size_t(4) << 20)) {
            memset(host(to), byte, bytes);
            return;
        }
        memset(host(to), 0, first - address(to));
        madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
        memset(reinterpret_cast<void*>(last), 0, address(to) + bytes - last);
    };
    return ask(stream, std::move(op), false, bytes, device().settings.profile.bytes_a_ns);
}

}  // namespace

// With the stream that a handle is of.
#define STREAM(handle)                       \
    Stream* const stream = stream_of(handle); \
    if (stream == nullptr) {                 \
        return no_stream();                  \
    }

// A call that may not be made while a capture goes on.
#define NOT_IN_CAPTURE(what)                                            \
    const CUresult forbidden = forbidden_in_capture(nullptr, what);     \
    if (forbidden != CUDA_SUCCESS) {                                    \
        return forbidden;                                               \
    }

extern "C" {

CUresult cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, CUstream handle) {
    CALL(Context);
    STREAM(handle);
    if (stream->capture != nullptr) {
        return forbidden_in_capture(stream, "an allocation (graph memory nodes are not emulated)");
    }
    Allocation* allocation;
    const CUresult result = allocate(pointer, bytes, allocation);
    if (result == CUDA_SUCCESS) {
        Op op;
        op.name = device().call;
        op.run = [=] { device().memory.come_alive(*allocation); };
        enqueue(*stream, std::move(op));
    }
    return result;
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream handle) {
    CALL(Context);
    STREAM(handle);
    if (stream->capture != nullptr) {
        return forbidden_in_capture(stream, "a free (graph memory nodes are not emulated)");
    }
    Allocation* allocation;
    const CUresult result = to_free(pointer, allocation);
    if (result == CUDA_SUCCESS) {
        Op op;
        op.name = device().call;
        op.run = [=] {
            if (allocation->state == Allocation::State::NotYet) {
                corrupt("cuMemFreeAsync", "memory is freed before its allocation in the streams' order",
                        STREAM_ORDERED);
            }
            device().memory.retire(*allocation);
        };
        enqueue(*stream, std::move(op));
    }
    return result;
}

CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    CALL(Context);
    NOT_IN_CAPTURE("an allocation");
    Allocation* allocation;
    const CUresult result = allocate(pointer, bytes, allocation);
    if (result == CUDA_SUCCESS) {
        device().memory.come_alive(*allocation);
    }
    return result;
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    CALL(Context);
    NOT_IN_CAPTURE("a free");
    // It waits for all that may use the memory.
    const CUresult waited = wait_for_all();
    Allocation* allocation;
    const CUresult result = waited != CUDA_SUCCESS ? waited : to_free(pointer, allocation);
    if (result == CUDA_SUCCESS) {
        device().memory.retire(*allocation);
    }
    return result;
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    CALL(Context);
    *free = device().memory.free();
    *total = device().memory.total();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice) {
    CALL(Init);
    *pool = the_pool();
    return CUDA_SUCCESS;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    CALL(Init);
    if (pool != the_pool() || attribute != CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "only the default pool's release threshold is emulated",
                      STREAM_ORDERED);
    }
    uint64_t threshold;
    memcpy(&threshold, value, sizeof(threshold));
    device().memory.set_release_threshold(threshold);
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    CALL(Init);
    const Memory& memory = device().memory;
    const uint64_t result = attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
                                ? memory.get_release_threshold()
                            : attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT ? memory.reserved()
                                                                                : memory.used();
    if (pool != the_pool()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(value, &result, sizeof(result));
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    CALL(Init);
    if (pool != the_pool()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    device().memory.trim(keep);
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    CALL(Context);
    NOT_IN_CAPTURE("an allocation");
    if (bytes == 0) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "no bytes are asked for", MANAGEMENT);
    }
    Device& d = device();
    for (const auto& [begin, pinned] : d.pinned) {
        if (call.is_again && pinned.number == d.pinned_numbered) {
            *pointer = reinterpret_cast<void*>(begin);
            return CUDA_SUCCESS;
        }
    }
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    d.pinned[begin] = {begin, bytes, ++d.pinned_numbered};
    *pointer = memory;
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* pointer) {
    CALL(Context);
    NOT_IN_CAPTURE("a free");
    Device& d = device();
    const auto found = d.pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == d.pinned.end()) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "no pinned buffer begins there", MANAGEMENT);
    }
    const Pinned pinned = found->second;
    for (const auto& stream : d.streams) {
        for (const Op& op : stream->queue) {
            for (const HostSpan& span : op.host) {
                const auto at = reinterpret_cast<uintptr_t>(span.at);
                if (at >= pinned.begin && at < pinned.begin + pinned.bytes) {
                    corrupt(d.call,
                            std::string("host memory is freed before an asynchronous copy (") +
                                op.name + (span.is_written ? ") has written it: " : ") has read it: ") +
                                describe(span),
                            COPIES);
                }
            }
        }
    }
    // What still needs it then runs at once, for the process goes on.
    const CUresult waited = wait_for_all();
    d.pinned.erase(found);
    munmap(pointer, pinned.bytes);
    return waited;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    CALL(Context);
    STREAM(handle);
    return upload(to, from, bytes, *stream);
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    CALL(Context);
    STREAM(handle);
    return download(to, from, bytes, *stream);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    CALL(Context);
    STREAM(handle);
    return copy(to, from, bytes, *stream);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    CALL(Context);
    NOT_IN_CAPTURE("a copy through the default stream");
    STREAM(nullptr);
    const CUresult asked = upload(to, from, bytes, *stream);
    return asked != CUDA_SUCCESS ? asked : wait_for(*stream);
}

CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    CALL(Context);
    NOT_IN_CAPTURE("a copy through the default stream");
    STREAM(nullptr);
    const CUresult asked = download(to, from, bytes, *stream);
    return asked != CUDA_SUCCESS ? asked : wait_for(*stream);
}

// "For transfers from device memory to device memory, no host-side synchronization is
// performed."
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    CALL(Context);
    NOT_IN_CAPTURE("a copy through the default stream");
    STREAM(nullptr);
    return copy(to, from, bytes, *stream);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, CUstream handle) {
    CALL(Context);
    STREAM(handle);
    return fill(to, byte, bytes, *stream);
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char byte, size_t bytes) {
    CALL(Context);
    NOT_IN_CAPTURE("a memset on the default stream");
    STREAM(nullptr);
    return fill(to, byte, bytes, *stream);
}

}  // extern "C"
