// mbarrier and 1-D bulk copies (PTX ISA, "mbarrier" and "cp.async.bulk"; sm_90). One
// phase of a barrier that is initialised with count 1: one thread's arrive.expect_tx, then
// the copies that it issues; the phase ends when the arrival and all those bytes are in.
#pragma once

#include "probe.cuh"

// How long a wait may take, in clocks, before the kernel gives up: about a second.
constexpr long long LONGEST_WAIT = 2'000'000'000;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_BULK_COPIES 1

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
                 :
                 : "r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
}

// After the inits, by the thread that did them, before the block barrier that precedes
// their use: makes them visible to the asynchronous proxy, whose copies complete on them.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("{\n.reg .b64 state;\n"
                 "mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n"
                 :
                 : "r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("{\n.reg .b64 state;\n"
                 "mbarrier.arrive.shared::cta.b64 state, [%0];\n}\n"
                 :
                 : "r"(shared_address(barrier))
                 : "memory");
}

// Waits until the phase of this parity is over: that of the barrier's first phase is 0.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
    const long long from = clock64();
    for (;;) {
        uint32_t over;
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}\n"
                     : "=r"(over)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
        if (over) {
            return;
        }
        if (clock64() - from > LONGEST_WAIT) {
            __trap();
        }
    }
}

// `bytes` a multiple of 16, both addresses aligned to 16.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes,
                                          uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n"
        :
        : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}
#endif
