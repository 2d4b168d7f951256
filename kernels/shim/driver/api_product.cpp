#include "product.hpp"

#include <cstdio>

#include "streams.hpp"
#include "times.hpp"

using namespace fake;

extern "C" {

int sconce_fake_fault(const char* name) {
    const std::lock_guard<std::mutex> lock(device().mutex);
    initialize();
    return device().settings.faults.of_call(name).error;
}

int sconce_fake_enqueue(void* stream_handle, const sconce_fake_work* work) {
    // Faults of the library's function were looked up by it.
    const Call call(__func__);
    if (call.failed != CUDA_SUCCESS) {
        return call.failed;
    }
    device().call = work->name;
    Stream* const stream = stream_of(static_cast<CUstream>(stream_handle));
    if (stream == nullptr) {
        return refuse(CUDA_ERROR_INVALID_HANDLE, "its stream was destroyed", "cuBLAS, cublasSetStream");
    }
    Op op;
    op.name = work->name;
    for (size_t i = 0; i < work->num_operands; ++i) {
        const sconce_fake_operand& operand = work->operands[i];
        op.spans.push_back({uintptr_t(operand.address), operand.bytes, operand.what});
    }
    const auto* bytes = static_cast<const unsigned char*>(work->arguments);
    const std::vector<unsigned char> arguments(bytes, bytes + work->arguments_bytes);
    const auto run = work->run;
    op.run = [run, arguments] { run(arguments.data()); };
    const Settings& settings = device().settings;
    op.ns = settings.slower * product_ns(settings.profile, work->flops, work->bytes);
    return ask_launch(*stream, std::move(op));
}

void sconce_fake_uuid(char* text) {
    initialize();
    CUuuid uuid;
    cuDeviceGetUuid_v2(&uuid, 0);
    char* to = text + snprintf(text, 41, "GPU-");
    for (int i = 0; i < 16; ++i) {
        const bool begins_group = i == 4 || i == 6 || i == 8 || i == 10;
        to += snprintf(to, 4, begins_group ? "-%02x" : "%02x", (unsigned char)uuid.bytes[i]);
    }
}

}  // extern "C"
