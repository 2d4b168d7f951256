// libcurand.so.10: a generator that can be made and destroyed, as candle's device wants;
// nothing draws from it.
#include "product.hpp"

extern "C" {

int curandCreateGenerator(void** generator, int) {
    if (const int error = sconce_fake_fault(__func__)) {
        return error;
    }
    *generator = new int(0);
    return 0;
}
int curandSetStream(void*, void*) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
int curandSetGeneratorOffset(void*, unsigned long long) { return 0; }
int curandDestroyGenerator(void* generator) {
    if (const int error = sconce_fake_fault(__func__)) {
        return error;
    }
    delete static_cast<int*>(generator);
    return 0;
}

}  // extern "C"
