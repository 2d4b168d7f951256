// Maps of tensors.
#include <cstring>

#include "device.hpp"
#include "profiles.hpp"
#include "tensor_map.hpp"

using namespace fake;

namespace {

constexpr const char* TENSORS = "Tensor Map Object Management, cuTensorMapEncodeTiled";

CUresult refused(const std::string& what) { return refuse(CUDA_ERROR_INVALID_VALUE, what, TENSORS); }

}  // namespace

extern "C" {

// Of maps that a device takes those of rows of two bytes an element whose boxes are swizzled by
// 128 bytes.
CUresult cuTensorMapEncodeTiled(CUtensorMap* result, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    CALL(Init);
    constexpr cuuint64_t MOST_DIM = cuuint64_t(1) << 32, MOST_STRIDE = cuuint64_t(1) << 40;
    constexpr cuuint32_t BYTES = 2, SWIZZLED = 128, MOST_BOX = 256, MOST_STEP = 8;
    if (device().settings.profile.major < 9) {
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "maps of tensors begin with compute capability 9.0", TENSORS);
    }
    if (reinterpret_cast<uintptr_t>(result) % alignof(CUtensorMap) != 0) {
        return refused("the map is not aligned to " + std::to_string(alignof(CUtensorMap)) + " bytes");
    }
    if (rank != 2 || (type != CU_TENSOR_MAP_DATA_TYPE_UINT16 && type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16 &&
                      type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) ||
        interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
        fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "a map of this kind is not emulated", TENSORS);
    }
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
        return refused("the tensor's address is no multiple of 16");
    }
    for (int i = 0; i < 2; ++i) {
        if (dims[i] == 0 || dims[i] > MOST_DIM || box[i] == 0 || box[i] > MOST_BOX || steps[i] == 0 ||
            steps[i] > MOST_STEP) {
            return refused("dimension " + std::to_string(i) + " of the tensor, its boxes or steps is over the limits");
        }
    }
    if (strides[0] % 16 != 0 || strides[0] >= MOST_STRIDE) {
        return refused("the bytes from row to row are no multiple of 16, or over the limits");
    }
    if (box[0] * BYTES % 16 != 0 || box[0] * BYTES > SWIZZLED) {
        return refused("a box's rows are not of whole pieces of 16 bytes, or of more than are swizzled");
    }
    if (strides[0] != dims[0] * BYTES || steps[0] != 1 || steps[1] != 1 || dims[0] == MOST_DIM) {
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "rows that do not follow each other are not emulated", TENSORS);
    }
    if (!device().memory.contains(reinterpret_cast<uintptr_t>(address))) {
        return refused("the tensor is not in the device's memory");
    }
    shim::TensorMap map = {};
    map.address = reinterpret_cast<uintptr_t>(address);
    map.columns = uint32_t(dims[0]);
    map.rows = dims[1];
    map.mark = shim::TENSOR_MAP_MARK;
    map.box_columns = box[0];
    map.box_rows = box[1];
    memcpy(result, &map, sizeof(map));
    return CUDA_SUCCESS;
}

}  // extern "C"
