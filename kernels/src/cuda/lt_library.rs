//! Products by algorithms of cuBLASLt: of e4m3 with e4m3, and of f16 or bf16 where one of them
//! was faster than what cuBLAS chooses.
#![expect(unsafe_code, reason = "descriptors are given addresses, and destroyed")]

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    mem::MaybeUninit,
};

use cudarc::{
    cublas::sys::cublasOperation_t,
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver::sys::CUstream,
};

use super::{Choice, DevicePointer, Fp8Matmul, Fp8Scaling, Matmul};
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

/// Algorithms that are asked for, at most: the library lists the likeliest first.
const MOST: usize = Choice::MOST as usize;

/// A product as the library sees it.
#[derive(Clone, Copy)]
pub(super) struct Product {
    x: DevicePointer,
    w: DevicePointer,
    out: DevicePointer,
    rows: usize,
    n: usize,
    k: usize,
    element: sys::cudaDataType,
    out_dtype: Dtype,
    out_stride: usize,
    /// Of rows and of outputs.
    scales: Option<[DevicePointer; 2]>,
    accumulate: bool,
    choice: Choice,
}

impl From<&Fp8Matmul> for Product {
    fn from(product: &Fp8Matmul) -> Self {
        let Fp8Matmul { x, w, scales, out, rows, n, k, out_dtype, accumulate, choice } = *product;
        Self {
            x,
            w,
            out,
            rows,
            n,
            k,
            element: sys::cudaDataType::CUDA_R_8F_E4M3,
            out_dtype,
            out_stride: n,
            scales,
            accumulate,
            choice,
        }
    }
}

impl Product {
    /// Of the choice, and of `product` otherwise.
    pub(super) fn of(product: &Matmul, choice: Choice) -> Self {
        let Matmul { x, w, out, rows, n, k, dtype, out_dtype, out_stride, accumulate, .. } =
            *product;
        let element = data_type(dtype);
        let scales = None;
        Self { x, w, out, rows, n, k, element, out_dtype, out_stride, scales, accumulate, choice }
    }
}

const fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// What the algorithms that the library proposes depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    n: usize,
    k: usize,
    element: sys::cudaDataType,
    out_dtype: Dtype,
    is_scaled: bool,
}

/// The algorithms that were proposed so far: to ask for them takes longer than to launch.
#[derive(Default)]
pub(super) struct LtLibrary {
    proposed: HashMap<Shape, Vec<sys::cublasLtMatmulAlgo_t>>,
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

/// What the library is told of a product.
struct Told {
    how: Descriptor<sys::cublasLtMatmulDesc_t>,
    w: Descriptor<sys::cublasLtMatrixLayout_t>,
    x: Descriptor<sys::cublasLtMatrixLayout_t>,
    out: Descriptor<sys::cublasLtMatrixLayout_t>,
}

impl Told {
    /// As of so many rows.
    fn of(product: &Product, rows: usize) -> Result<Self, CublasError> {
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
            cudaDataType::CUDA_R_32F,
        };
        let Product { n, k, element, out_dtype, out_stride, scales, .. } = *product;
        let layout = |data_type, of_column: usize, columns: usize, stride: usize| {
            let stride = i64::try_from(stride).unwrap_or(i64::MAX);
            result::create_matrix_layout(data_type, of_column as u64, columns as u64, stride)
                .map(|layout| Descriptor(layout, result::destroy_matrix_layout))
        };
        // Columns come first: what the library sees are the transposes, as in `matmul`.
        let w = layout(element, k, n, k)?;
        let x = layout(element, k, rows, k)?;
        let out = layout(data_type(out_dtype), n, rows, out_stride)?;
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
        Ok(Self { how, w, x, out })
    }
}

impl LtLibrary {
    /// The algorithms that are proposed for a product of the choice's rows, the likeliest
    /// first.
    pub(super) fn proposed(
        &mut self,
        place: Place,
        product: &Product,
    ) -> Result<&[sys::cublasLtMatmulAlgo_t], CublasError> {
        let &Product { n, k, element, out_dtype, choice, .. } = product;
        let is_scaled = product.scales.is_some();
        let shape = Shape { rows: choice.rows, n, k, element, out_dtype, is_scaled };
        match self.proposed.entry(shape) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => Ok(new.insert(propose(place, &Told::of(product, choice.rows)?)?)),
        }
    }

    pub(super) fn multiply(&mut self, place: Place, product: &Product) -> Result<(), CublasError> {
        const ONE: f32 = 1.0;
        let keep = if product.accumulate { 1.0_f32 } else { 0.0 };
        let told = Told::of(product, product.rows)?;
        let proposed = self.proposed(place, product)?;
        let chosen = proposed.get(usize::from(product.choice.rank));
        let algorithm = *chosen.or(proposed.first()).ok_or(NONE)?;
        let pointer = |pointer: DevicePointer| pointer.0 as *mut c_void;
        // SAFETY: the backend checked that the matrices and scales have these shapes, and keeps
        // them; alpha and beta are read before the call returns. An algorithm that cannot
        // compute so many rows is refused by the library.
        unsafe {
            result::matmul(
                place.handle.cast(),
                told.how.0,
                std::ptr::from_ref(&ONE).cast(),
                std::ptr::from_ref(&keep).cast(),
                pointer(product.w),
                told.w.0,
                pointer(product.x),
                told.x.0,
                pointer(product.out),
                told.out.0,
                pointer(product.out),
                told.out.0,
                &raw const algorithm,
                pointer(place.workspace),
                place.workspace_bytes,
                place.stream.cast(),
            )
        }
    }
}

/// What is said where the library proposes no algorithm.
const NONE: CublasError = CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);

fn set<T>(
    how: &Descriptor<sys::cublasLtMatmulDesc_t>,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), CublasError> {
    let from = std::ptr::from_ref(value).cast();
    // SAFETY: the descriptor lives, and the value, of the attribute's type, is copied.
    unsafe { result::set_matmul_desc_attribute(how.0, attribute, from, size_of::<T>()) }
}

fn propose(place: Place, told: &Told) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as MAX;
    let preference = Descriptor(result::create_matmul_pref()?, result::destroy_matmul_pref);
    let bytes = std::ptr::from_ref(&place.workspace_bytes).cast();
    let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed() }; MOST];
    let mut number = 0;
    // SAFETY: the descriptors live, the number of bytes is copied, and there is room for as many
    // results as are asked for.
    unsafe {
        result::set_matmul_pref_attribute(preference.0, MAX, bytes, size_of::<usize>())?;
        sys::cublasLtMatmulAlgoGetHeuristic(
            place.handle.cast(),
            told.how.0,
            told.w.0,
            told.x.0,
            told.out.0,
            told.out.0,
            preference.0,
            i32::from(Choice::MOST),
            found.as_mut_ptr().cast(),
            &raw mut number,
        )
        .result()?;
    }
    let number = usize::try_from(number).unwrap_or(0);
    // SAFETY: the library wrote so many, and all of them are of plain numbers, zeros before.
    let found = found.iter().take(number).map(|one| unsafe { one.assume_init_ref() });
    Ok(found.filter(|one| one.state.result().is_ok()).map(|one| one.algo).collect())
}
