// Programmatic dependent launch (PTX ISA, "griddepcontrol"; sm_90): a kernel may start
// once every block of its predecessor has triggered or ended, and waits itself before it
// touches what the predecessor writes, or what it reads and this one writes.
#pragma once

#include "probe.cuh"

// Until the predecessor has ended and its writes are visible. Nothing without PDL.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// A launch, after its predecessor on the stream or, with `pdl`, beside its end.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int grid, int threads, size_t shared,
            cudaStream_t stream, bool pdl, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = pdl ? 1 : 0;
    CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}
