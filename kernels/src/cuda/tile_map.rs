//! Maps of tensors, from which tiles are copied by boxes.
#![expect(unsafe_code, reason = "the driver is given arrays")]

use std::ffi::c_void;

use cudarc::driver::sys;

use super::{DevicePointer, TileMap};

/// Columns and rows of a box, which `bulk_copies.cuh` has too.
const BOX: [u32; 2] = [64, 16];

/// As [`super::Driver::tile_map`] has it; none, where the driver refuses it or is too old to know
/// of such maps.
pub(super) fn encode(at: DevicePointer, rows: usize, columns: usize) -> Option<TileMap> {
    // Where a box begins is said by numbers with a sign.
    i32::try_from(rows).ok()?;
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let dims = [columns as u64, rows as u64];
    let row_bytes = [columns as u64 * 2];
    let steps = [1_u32; 2];
    // SAFETY: the arrays have an element for each of the two dimensions, of strides one less, and
    // are read before the call returns; it writes the map alone, and reads nothing at the address.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            // Bits are copied, whatever they stand for.
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            at.0 as *mut c_void,
            dims.as_ptr(),
            row_bytes.as_ptr(),
            BOX.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded.result().ok().map(|()| TileMap(map.opaque))
}
