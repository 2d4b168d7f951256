// Device memory, contexts, launches, modules.
#include "driver.hpp"

namespace {

CASE(host_reads_device_memory) {
    start();
    Row row;
    MUST(cuStreamSynchronize(row.stream));
    volatile auto* x = reinterpret_cast<volatile uint16_t*>(row.x);
    printf("%d\n", x[0]);
}

CASE(freed_twice) {
    start();
    Row row;
    MUST(cuMemFreeAsync(row.x, row.stream));
    cuMemFreeAsync(row.x, row.stream);
}

CASE(launch_with_freed_memory) {
    start();
    Row row;
    MUST(cuMemFreeAsync(row.x, row.stream));
    add_bias(row.kernel, row.params(), row.stream);
}

CASE(launch_before_the_allocation) {
    start();
    Row row;
    MUST(cuStreamSynchronize(row.stream));
    CUstream other = new_stream();
    AddBias params = row.params();
    params.x = allocate(16, other);
    // It must wait for the other stream.
    MUST(add_bias(row.kernel, params, row.stream));
    MUST(cuStreamSynchronize(row.stream));
}

CASE(launch_beyond_its_memory) {
    start();
    Row row;
    AddBias params = row.params();
    params.rows = 4096;
    MUST(add_bias(row.kernel, params, row.stream));
    MUST(cuStreamSynchronize(row.stream));
}

CASE(copy_beyond_its_memory) {
    start();
    Row row;
    char from[64] = {};
    MUST(cuMemcpyHtoDAsync(row.x, from, 64, row.stream));
    MUST(cuStreamSynchronize(row.stream));
}

CASE(more_memory_than_there_is) {
    start();
    CUdeviceptr pointer;
    size_t free, total;
    MUST(cuMemGetInfo(&free, &total));
    MUST_BE(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc(&pointer, free + 1));
    MUST(cuMemAlloc(&pointer, free / 256 * 256));
    MUST(cuMemFree(pointer));
    MUST(cuMemAlloc(&pointer, free / 256 * 256));
}

CASE(no_context) {
    MUST(cuInit(0));
    CUdeviceptr pointer;
    MUST_BE(CUDA_ERROR_INVALID_CONTEXT, cuMemAlloc(&pointer, 16));
}

CASE(no_initialization) {
    int count;
    MUST_BE(CUDA_ERROR_NOT_INITIALIZED, cuDeviceGetCount(&count));
}

CASE(wrong_context) {
    start();
    int other;
    MUST_BE(CUDA_ERROR_INVALID_CONTEXT, cuCtxSetCurrent(reinterpret_cast<CUcontext>(&other)));
}

CASE(a_context_that_is_gone) {
    start();
    CUstream stream = new_stream();
    MUST(cuDevicePrimaryCtxRelease(0));
    MUST_BE(CUDA_ERROR_CONTEXT_IS_DESTROYED, cuStreamSynchronize(stream));
}

CASE(too_much_shared_memory) {
    start();
    Row row;
    MUST_BE(CUDA_ERROR_INVALID_VALUE, add_bias(row.kernel, row.params(), row.stream, 256, 50'000));
    constexpr auto MOST = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    MUST(cuFuncSetAttribute(row.kernel, MOST, 50'000));
    MUST(add_bias(row.kernel, row.params(), row.stream, 256, 50'000));
    MUST_BE(CUDA_ERROR_INVALID_VALUE, cuFuncSetAttribute(row.kernel, MOST, 500'000));
}

CASE(too_many_threads) {
    start();
    Row row;
    MUST_BE(CUDA_ERROR_INVALID_VALUE, add_bias(row.kernel, row.params(), row.stream, 512));
}

// What was refused has not run; the driver has said so.
CASE(an_error_is_swallowed) {
    start();
    Row row;
    add_bias(row.kernel, row.params(), row.stream, 512);
    CHECK(row.first() == 0);
}

CASE(too_many_blocks) {
    start();
    Row row;
    MUST_BE(CUDA_ERROR_INVALID_VALUE,
            add_bias(row.kernel, row.params(), row.stream, 256, 0, 70'000));
}

void load(CUresult wanted, std::vector<char> image) {
    start();
    CUmodule module;
    MUST_BE(wanted, cuModuleLoadData(&module, image.data()));
}

CASE(a_fatbin_cut_short) {
    std::vector<char> image = fatbin("add_bias");
    memset(image.data() + image.size() / 2, 0, image.size() / 2);
    load(CUDA_ERROR_INVALID_IMAGE, image);
}

CASE(no_image_at_all) { load(CUDA_ERROR_INVALID_IMAGE, std::vector<char>(256)); }

// An entry's architecture is at byte 28 of it.
CASE(for_another_architecture) {
    std::vector<char> image = fatbin("add_bias");
    for (size_t at = 16; at < image.size();) {
        uint32_t header, architecture = 120;
        uint64_t bytes;
        memcpy(&header, &image[at + 4], 4);
        memcpy(&bytes, &image[at + 8], 8);
        memcpy(&image[at + 28], &architecture, 4);
        at += header + bytes;
    }
    load(CUDA_ERROR_NO_BINARY_FOR_GPU, image);
}

CASE(for_a_newer_driver) { load(CUDA_ERROR_INVALID_IMAGE, fatbin("add_bias")); }

// What a kernel's .nv.info says of its parameters, 24 bytes, is made to be 16.
CASE(other_parameters) {
    start();
    std::vector<char> image = fatbin("add_bias");
    // The third word has them from its bit 18 on.
    const char says[] = {4, 0x17, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    int changed = 0;
    for (size_t at = 0; at + sizeof(says) + 4 <= image.size(); ++at) {
        if (memcmp(&image[at], says, sizeof(says)) == 0) {
            uint32_t word;
            memcpy(&word, &image[at + sizeof(says)], sizeof(word));
            CHECK(word >> 18 == 24);
            word ^= (24 ^ 16) << 18;
            memcpy(&image[at + sizeof(says)], &word, sizeof(word));
            ++changed;
        }
    }
    CHECK(changed > 0);
    CUmodule module;
    CUfunction kernel;
    MUST(cuModuleLoadData(&module, image.data()));
    MUST(cuModuleGetFunction(&kernel, module, "add_bias_bf16"));
    Row row;
    MUST_BE(CUDA_ERROR_INVALID_VALUE, add_bias(kernel, row.params(), row.stream));
}

CASE(a_kernel_that_is_not_there) {
    start();
    CUmodule module;
    CUfunction kernel;
    MUST(cuModuleLoadData(&module, fatbin("add_bias").data()));
    MUST_BE(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&kernel, module, "add_bias_f64"));
}

CASE(a_kernel_of_an_unloaded_module) {
    start();
    CUmodule module;
    CUfunction kernel;
    MUST(cuModuleLoadData(&module, fatbin("add_bias").data()));
    MUST(cuModuleGetFunction(&kernel, module, "add_bias_bf16"));
    MUST(cuModuleUnload(module));
    Row row;
    MUST_BE(CUDA_ERROR_INVALID_HANDLE, add_bias(kernel, row.params(), row.stream));
}

}  // namespace
