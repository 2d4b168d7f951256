// libcurand.so.10: a generator that can be made and destroyed, as candle's device wants;
// nothing draws from it.
#include <cstdint>

extern "C" {

int curandCreateGenerator(void** generator, int) {
    *generator = new int(0);
    return 0;
}
int curandSetStream(void*, void*) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
int curandSetGeneratorOffset(void*, unsigned long long) { return 0; }
int curandDestroyGenerator(void* generator) {
    delete static_cast<int*>(generator);
    return 0;
}

}  // extern "C"
