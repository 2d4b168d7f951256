// libnvidia-ml.so.1: the energy counter of the fake GPU, which counts virtual time.
#include <cstring>

#include "product.hpp"

namespace {

// nvmlReturn_t.
enum { Success = 0, InvalidArgument = 2, NotFound = 6 };
int the_device;

}  // namespace

extern "C" {

int nvmlInit_v2(void) { return Success; }
int nvmlInitWithFlags(unsigned) { return Success; }
int nvmlShutdown(void) { return Success; }
const char* nvmlErrorString(int) { return "an error of the fake NVML"; }

int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 1;
    return Success;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    *device = &the_device;
    return index == 0 ? Success : InvalidArgument;
}

int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
    char own[41];
    sconce_fake_uuid(own);
    *device = &the_device;
    return strcmp(uuid, own) == 0 ? Success : NotFound;
}

int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
    if (device != &the_device) {
        return InvalidArgument;
    }
    *millijoules = sconce_fake_energy_mj();
    return Success;
}

}  // extern "C"
