// Copies of boxes of a tensor into shared memory by a unit of their own (PTX ISA,
// "cp.async.bulk.tensor"), for compute capability 9.0: one thread asks, a barrier counts the
// bytes that came.
#pragma once

#include "warpgroup.cuh"

// A tensor of rows, and boxes of 16 rows of 64 elements of it that land as `swizzled` has them,
// as the driver encodes that (CUDA Driver API, "Tensor Map Object Management").
struct alignas(128) TileMap {
    uint64_t words[16];
};

#if WARPGROUP_PRODUCTS && defined(__CUDACC__)

// Brings a map near.
__device__ __forceinline__ void prefetch_map(const TileMap& map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// Asks for the box whose first element is that of a column and row. Rows beyond the tensor are
// zeros; they count as bytes too.
__device__ __forceinline__ void copy_box(void* shared, const TileMap& map, int column, int row, Barrier& barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(shared_address(shared)),
                 "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
                 : "memory");
}

#endif
