// cuBLAS and NVML.
#include "driver.hpp"

#include <dlfcn.h>

namespace {

// A function of another of the libraries.
template <typename F> F of(const char* library, const char* name) {
    void* opened = dlopen(library, RTLD_NOW);
    CHECK(opened != nullptr);
    void* symbol = dlsym(opened, name);
    CHECK(symbol != nullptr);
    return reinterpret_cast<F>(symbol);
}

// Millijoules of H100's 700 W: 1,500 ns each for the copy of the bias and the memset, and
// 3,000 for each launch.
CASE(energy_counts) {
    start();
    Row row;
    for (int i = 0; i < 1000; ++i) {
        row.add();
    }
    MUST(cuStreamSynchronize(row.stream));
    constexpr const char* NVML = "libnvidia-ml.so.1";
    void* handle;
    unsigned long long millijoules;
    CHECK(of<int (*)()>(NVML, "nvmlInit_v2")() == 0);
    CHECK(of<int (*)(unsigned, void**)>(NVML, "nvmlDeviceGetHandleByIndex_v2")(0, &handle) == 0);
    CHECK(of<int (*)(void*, unsigned long long*)>(NVML, "nvmlDeviceGetTotalEnergyConsumption")(
              handle, &millijoules) == 0);
    printf("%llu\n", millijoules);
}

// C = A^T B in column-major f32, of two rows, two columns and k = 2.
int product(CUdeviceptr a, CUdeviceptr b, CUdeviceptr c, CUstream stream) {
    constexpr const char* CUBLAS = "libcublas.so.13";
    void* handle;
    CHECK(of<int (*)(void**)>(CUBLAS, "cublasCreate_v2")(&handle) == 0);
    CHECK(of<int (*)(void*, CUstream)>(CUBLAS, "cublasSetStream_v2")(handle, stream) == 0);
    using Gemm = int (*)(void*, int, int, int, int, int, const void*, CUdeviceptr, int, int,
                         CUdeviceptr, int, int, const void*, CUdeviceptr, int, int, int, int);
    const float one = 1, zero = 0;
    constexpr int T = 1, N = 0, R_32F = 0, COMPUTE_32F = 68;
    return of<Gemm>(CUBLAS, "cublasGemmEx")(handle, T, N, 2, 2, 2, &one, a, R_32F, 2, b, R_32F, 2,
                                            &zero, c, R_32F, 2, COMPUTE_32F, -1);
}

CASE(a_product_is_right) {
    start();
    CUstream stream = new_stream();
    const float a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8};
    CUdeviceptr memory[3];
    for (CUdeviceptr& one : memory) {
        one = allocate(16, stream);
    }
    MUST(cuMemcpyHtoDAsync(memory[0], a, 16, stream));
    MUST(cuMemcpyHtoDAsync(memory[1], b, 16, stream));
    CHECK(product(memory[0], memory[1], memory[2], stream) == 0);
    float c[4];
    MUST(cuMemcpyDtoHAsync(c, memory[2], 16, stream));
    CHECK(c[0] == 17 && c[1] == 39 && c[2] == 23 && c[3] == 53);
}

CASE(a_product_beyond_its_memory) {
    start();
    CUstream stream = new_stream();
    CUdeviceptr memory = allocate(8, stream);
    product(memory, memory, memory, stream);
    MUST(cuStreamSynchronize(stream));
}

// The script has the first launch hang.
CASE(never_ready) {
    start();
    Row row;
    CUevent event = new_event();
    row.add();
    MUST(cuEventRecord(event, row.stream));
    for (int i = 0; i < 100; ++i) {
        MUST_BE(CUDA_ERROR_NOT_READY, cuEventQuery(event));
        MUST_BE(CUDA_ERROR_NOT_READY, cuStreamQuery(row.stream));
    }
}

}  // namespace
