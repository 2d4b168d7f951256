// What the cases are made of. Each is a program that breaks one rule of the driver, or
// keeps them all; main.rs says what the fake driver must say of it.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#define MUST(call) expect(call, CUDA_SUCCESS, #call, __LINE__)
#define MUST_BE(error, call) expect(call, error, #call, __LINE__)
#define CHECK(condition)                                                         \
    if (!(condition)) {                                                          \
        fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
        exit(1);                                                                 \
    }

// A program of its own, by the name that main.rs has.
#define CASE(name)                                             \
    void name();                                               \
    const bool name##_is_added = add_case(#name, name);        \
    void name()

bool add_case(const char* name, void (*run)());

inline void expect(CUresult got, CUresult wanted, const char* call, int line) {
    if (got != wanted) {
        fprintf(stderr, "line %d: %s is %d, not %d\n", line, call, int(got), int(wanted));
        exit(1);
    }
}

inline CUcontext start() {
    CUcontext context;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    return context;
}

inline CUstream new_stream() {
    CUstream stream;
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    return stream;
}

inline CUevent new_event(unsigned flags = CU_EVENT_DEFAULT) {
    CUevent event;
    MUST(cuEventCreate(&event, flags));
    return event;
}

inline CUdeviceptr allocate(size_t bytes, CUstream stream) {
    CUdeviceptr pointer;
    MUST(cuMemAllocAsync(&pointer, bytes, stream));
    return pointer;
}

template <typename T> T* pinned(size_t count) {
    void* pointer;
    MUST(cuMemHostAlloc(&pointer, count * sizeof(T), 0));
    return static_cast<T*>(pointer);
}

// A file of FATBINS, the folder of the compiled kernels.
inline std::vector<char> fatbin(const char* name) {
    std::ifstream file(std::string(getenv("FATBINS")) + "/" + name + ".fatbin", std::ios::binary);
    CHECK(file);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline CUfunction function(const char* file, const char* name) {
    CUmodule module;
    CUfunction result;
    MUST(cuModuleLoadData(&module, fatbin(file).data()));
    MUST(cuModuleGetFunction(&result, module, name));
    return result;
}

// x[r][i] += bias[i], of 8 columns.
struct AddBias {
    CUdeviceptr bias, x;
    uint32_t pieces, rows;
};

inline CUresult add_bias(CUfunction function, AddBias params, CUstream stream,
                         unsigned threads = 256, unsigned shared = 0, unsigned grid_y = 1) {
    void* arguments[] = {&params};
    return cuLaunchKernel(function, 1, grid_y, 1, threads, 1, 1, shared, stream, arguments,
                          nullptr);
}

// 1 in every column.
inline CUdeviceptr ones(CUstream stream) {
    const float values[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    const CUdeviceptr bias = allocate(sizeof(values), stream);
    MUST(cuMemcpyHtoDAsync(bias, values, sizeof(values), stream));
    return bias;
}

constexpr uint16_t ONE = 0x3f80;  // in bf16

// Eight elements that are 0, and an addition of 1 to them: by then they are 1.
struct Row {
    CUstream stream = new_stream();
    CUfunction kernel = function("add_bias", "add_bias_bf16");
    CUdeviceptr bias = ones(stream);
    CUdeviceptr x = allocate(16, stream);

    Row() { MUST(cuMemsetD8Async(x, 0, 16, stream)); }
    AddBias params() const { return {bias, x, 1, 1}; }
    void add() const { MUST(add_bias(kernel, params(), stream)); }
    uint16_t first() const {
        uint16_t row[8];
        MUST(cuMemcpyDtoHAsync(row, x, 16, stream));
        return row[0];
    }
};
