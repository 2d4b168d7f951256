//! Products of e4m3 with e4m3 by cuBLASLt.
#![expect(unsafe_code, reason = "descriptors are given addresses, and destroyed")]

use std::{collections::HashMap, ffi::c_void};

use cudarc::{
    cublas::sys::cublasOperation_t,
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver::sys::CUstream,
};

use super::{DevicePointer, Fp8Matmul, Fp8Scaling};
use crate::Dtype;

/// The versions of cuBLASLt that multiply e4m3, and that scale rows and columns.
const FP8: usize = 120_000;
const SCALED: usize = 120_900;

/// The ways in which a device of a compute capability scales such products.
pub(super) fn scalings(capability: (i32, i32)) -> &'static [Fp8Scaling] {
    // SAFETY: it has no arguments.
    let version = unsafe { sys::cublasLtGetVersion() };
    match capability {
        // Scales of rows and columns are Hopper's ("cuBLAS, Narrow precision data types usage").
        (9, 0) if version >= SCALED => &[Fp8Scaling::Library, Fp8Scaling::Own],
        (8, 9) | (9.., _) if version >= FP8 => &[Fp8Scaling::Own],
        _ => &[],
    }
}

/// What the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    n: usize,
    k: usize,
    out_dtype: Dtype,
    is_scaled: bool,
}

/// The algorithms that were chosen so far: to choose takes longer than to launch.
#[derive(Default)]
pub(super) struct Fp8Library {
    chosen: HashMap<Shape, sys::cublasLtMatmulAlgo_t>,
}

/// What products of cuBLASLt run on.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// A handle of cuBLAS, which is one of cuBLASLt too.
    pub(super) handle: *mut c_void,
    pub(super) stream: CUstream,
    pub(super) workspace: DevicePointer,
    pub(super) workspace_bytes: usize,
}

/// A descriptor, which its drop destroys.
struct Descriptor<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once, by its own function.
        let _ = unsafe { (self.1)(self.0) };
    }
}

impl Fp8Library {
    pub(super) fn multiply(
        &mut self,
        place: Place,
        product: &Fp8Matmul,
    ) -> Result<(), CublasError> {
        use cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use sys::{
            cublasLtMatmulDescAttributes_t::{
                CUBLASLT_MATMUL_DESC_A_SCALE_MODE as A_MODE,
                CUBLASLT_MATMUL_DESC_A_SCALE_POINTER as A_SCALES,
                CUBLASLT_MATMUL_DESC_B_SCALE_MODE as B_MODE,
                CUBLASLT_MATMUL_DESC_B_SCALE_POINTER as B_SCALES,
                CUBLASLT_MATMUL_DESC_TRANSA as TRANSA, CUBLASLT_MATMUL_DESC_TRANSB as TRANSB,
            },
            cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as VECTOR,
            cudaDataType::{CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F},
        };
        const ONE: f32 = 1.0;
        let Fp8Matmul { rows, n, k, out_dtype, scales, .. } = *product;
        let keep = if product.accumulate { 1.0_f32 } else { 0.0 };
        let out_type = match out_dtype {
            Dtype::F32 => CUDA_R_32F,
            Dtype::F16 => CUDA_R_16F,
            Dtype::Bf16 => CUDA_R_16BF,
        };
        let layout = |data_type, of_column: usize, columns: usize| {
            let stride = i64::try_from(of_column).unwrap_or(i64::MAX);
            result::create_matrix_layout(data_type, of_column as u64, columns as u64, stride)
                .map(|layout| Descriptor(layout, result::destroy_matrix_layout))
        };
        // Columns come first: what the library sees are the transposes, as in `matmul`.
        let w = layout(CUDA_R_8F_E4M3, k, n)?;
        let x = layout(CUDA_R_8F_E4M3, k, rows)?;
        let out = layout(out_type, n, rows)?;
        let how =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F)?;
        let how = Descriptor(how, result::destroy_matmul_desc);
        set(&how, TRANSA, &CUBLAS_OP_T)?;
        set(&how, TRANSB, &CUBLAS_OP_N)?;
        if let Some([of_rows, of_outputs]) = scales {
            set(&how, A_MODE, &VECTOR)?;
            set(&how, B_MODE, &VECTOR)?;
            set(&how, A_SCALES, &of_outputs.0)?;
            set(&how, B_SCALES, &of_rows.0)?;
        }
        let shape = Shape { rows, n, k, out_dtype, is_scaled: scales.is_some() };
        let algorithm = match self.chosen.get(&shape) {
            Some(known) => *known,
            None => {
                let algorithm = choose(place, &how, [&w, &x, &out])?;
                self.chosen.insert(shape, algorithm);
                algorithm
            }
        };
        let pointer = |pointer: DevicePointer| pointer.0 as *mut c_void;
        // SAFETY: the backend checked that the matrices and scales have these shapes, and keeps
        // them; alpha and beta are read before the call returns.
        unsafe {
            result::matmul(
                place.handle.cast(),
                how.0,
                std::ptr::from_ref(&ONE).cast(),
                std::ptr::from_ref(&keep).cast(),
                pointer(product.w),
                w.0,
                pointer(product.x),
                x.0,
                pointer(product.out),
                out.0,
                pointer(product.out),
                out.0,
                &raw const algorithm,
                pointer(place.workspace),
                place.workspace_bytes,
                place.stream.cast(),
            )
        }
    }
}

fn set<T>(
    how: &Descriptor<sys::cublasLtMatmulDesc_t>,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), CublasError> {
    let from = std::ptr::from_ref(value).cast();
    // SAFETY: the descriptor lives, and the value, of the attribute's type, is copied.
    unsafe { result::set_matmul_desc_attribute(how.0, attribute, from, size_of::<T>()) }
}

/// The library's own choice.
fn choose(
    place: Place,
    how: &Descriptor<sys::cublasLtMatmulDesc_t>,
    [w, x, out]: [&Descriptor<sys::cublasLtMatrixLayout_t>; 3],
) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as MAX;
    let preference = Descriptor(result::create_matmul_pref()?, result::destroy_matmul_pref);
    let bytes = std::ptr::from_ref(&place.workspace_bytes).cast();
    // SAFETY: the descriptors live, and the number of bytes is copied.
    let heuristic = unsafe {
        result::set_matmul_pref_attribute(preference.0, MAX, bytes, size_of::<usize>())?;
        result::get_matmul_algo_heuristic(
            place.handle.cast(),
            how.0,
            w.0,
            x.0,
            out.0,
            out.0,
            preference.0,
        )?
    };
    Ok(heuristic.algo)
}
