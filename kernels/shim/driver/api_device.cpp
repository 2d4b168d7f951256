// Initialization, the device, its context, errors.
#include <cstdio>
#include <cstring>

#include "errors.hpp"
#include "streams.hpp"

using namespace fake;

namespace {

int attribute(const Profile& p, CUdevice_attribute attribute, bool& known) {
    known = true;
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return p.major;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return p.minor;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return p.multiprocessors;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return p.shared_opt_in;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
            return p.shared_of_multiprocessor;
        case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
            return p.major == 8 && p.minor == 9 ? 1536 : 2048;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return p.l2_bytes;
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: return 1;
        case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
        default: known = false; return 0;
    }
}

CUresult check_device(CUdevice ordinal) {
    return ordinal == 0 ? CUDA_SUCCESS
                        : refuse(CUDA_ERROR_INVALID_DEVICE,
                                 "there is one device, not device " + std::to_string(ordinal),
                                 "Device Management");
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) {
    const Call call(__func__, Call::Needs::Nothing);
    if (flags != 0) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "its flags must be 0", "Initialization");
    }
    initialize();
    return CUresult(device().settings.faults.of_call(__func__).error);
}

CUresult cuDriverGetVersion(int* version) {
    const Call call(__func__, Call::Needs::Nothing);
    if (version == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    initialize();
    *version = device().settings.driver_version;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = error_name(error);
    return *name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    return cuGetErrorName(error, text);
}

CUresult cuDeviceGetCount(int* count) {
    CALL(Init);
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* handle, int ordinal) {
    CALL(Init);
    *handle = ordinal;
    return check_device(ordinal);
}

CUresult cuDeviceGetName(char* name, int bytes, CUdevice ordinal) {
    CALL(Init);
    snprintf(name, size_t(bytes), "%s", device().settings.profile.product);
    return check_device(ordinal);
}

CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice ordinal) {
    CALL(Init);
    memset(uuid->bytes, 0, sizeof(uuid->bytes));
    memcpy(uuid->bytes, "fake", 4);
    memcpy(uuid->bytes + 10, device().settings.profile.name, 4);
    return check_device(ordinal);
}

#undef cuDeviceGetUuid
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice ordinal) {
    return cuDeviceGetUuid_v2(uuid, ordinal);
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice ordinal) {
    CALL(Init);
    *bytes = device().settings.memory_bytes;
    return check_device(ordinal);
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice ordinal) {
    CALL(Init);
    bool known;
    *value = attribute(device().settings.profile, which, known);
    if (!known) {
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "attribute " + std::to_string(which) + " is not emulated",
                      "Device Management");
    }
    return check_device(ordinal);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice ordinal) {
    CALL(Init);
    const CUresult result = check_device(ordinal);
    if (result == CUDA_SUCCESS) {
        *context = primary_context();
        ++device().context_uses;
    }
    return result;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
    CALL(Init);
    Device& d = device();
    if (d.context_uses == 0) {
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "nobody holds the primary context",
                      "Primary Context Management");
    }
    --d.context_uses;
    return check_device(ordinal);
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    CALL(Init);
    *context = current_context();
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    CALL(Init);
    if (context != nullptr && context != primary_context()) {
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "this is no context", "Context Management");
    }
    set_current_context(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* ordinal) {
    CALL(Context);
    *ordinal = 0;
    return CUDA_SUCCESS;
}

#undef cuCtxSynchronize
CUresult cuCtxSynchronize(void) {
    CALL(Context);
    const CUresult forbidden = forbidden_in_capture(nullptr, "a wait for the context");
    return forbidden != CUDA_SUCCESS ? forbidden : wait_for_all();
}

// Of the device's work, in virtual time: what NVML's counter counts.
uint64_t sconce_fake_energy_mj(void) {
    const std::lock_guard<std::mutex> lock(device().mutex);
    initialize();
    return device().busy_ns * device().settings.profile.watts / 1'000'000;
}

}  // extern "C"
