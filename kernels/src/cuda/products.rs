//! Products with weights, and which form computes each: cuBLAS, or the kernel for few rows.

use super::{
    AddBias, Cuda, CudaBuffer, CudaMatrix, CudaVector, DevicePointer, Driver, Gemv, GemvForm,
    Launch, Matmul, names, ops::pieces, word,
};
use crate::{Activation, Dtype, KernelError, cuda::names::of_dtype};

/// What computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductForm {
    /// cuBLAS, and kernels for what stands around the product.
    Library,
    /// `gemv.cu`, where it can; else cuBLAS.
    FewRows(GemvForm),
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Store,
    Add,
    Gate(Activation),
}

impl ProductForm {
    /// Weights from which on `gemv.cu` is used: of smaller ones the launch decides.
    const LARGE: usize = 1 << 21;

    /// The form that a product of these dimensions takes unless another was asked for.
    fn of(rows: usize, n: usize, k: usize) -> Self {
        if rows <= Gemv::MAX_ROWS && n * k >= Self::LARGE {
            return Self::FewRows(GemvForm::DEFAULT);
        }
        Self::Library
    }
}

/// Operands of a product, which have been checked.
struct Operands {
    x: DevicePointer,
    w: DevicePointer,
    bias: Option<DevicePointer>,
    out: DevicePointer,
    out_dtype: Dtype,
    rows: usize,
    n: usize,
    k: usize,
}

impl<D: Driver> Cuda<D> {
    /// Has every product take this form where it can; `None`: the one that fits it.
    pub fn use_product_form(&mut self, form: Option<ProductForm>) {
        self.product_form = form;
    }

    /// `linear`, or `linear_add`.
    pub(super) fn product(
        &mut self,
        op: &'static str,
        (rows, outcome): (usize, Outcome),
        x: &CudaBuffer<D::Memory>,
        w: &CudaMatrix<D::Memory>,
        bias: Option<&CudaVector<D::Memory>>,
        out: &mut CudaBuffer<D::Memory>,
    ) -> Result<(), KernelError> {
        x.check(op, "x", (rows, w.k), self.dtype)?;
        out.check(op, "out", (rows, w.n), out.dtype)?;
        if let Some(bias) = bias {
            bias.check(op, "bias", w.n)?;
            out.check(op, "out with a bias", (rows, w.n), self.dtype)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let operands = Operands::of(rows, x, w, bias, out);
        if self.few_rows(outcome, &operands)? {
            return Ok(());
        }
        let &Operands { x, w, out, out_dtype, n, k, .. } = &operands;
        let (dtype, accumulate) = (self.dtype, outcome == Outcome::Add);
        self.driver.matmul(&Matmul { x, w, out, rows, n, k, dtype, out_dtype, accumulate })?;
        let Some(bias) = operands.bias else { return Ok(()) };
        let pieces = pieces(op, n)?;
        let params = AddBias { bias, x: out, pieces: word(pieces), rows: word(rows) };
        let kernel = of_dtype!("add_bias", self.dtype);
        self.launch(&self.elementwise("add_bias", kernel, rows * pieces), &params)
    }

    /// `linear_gated` in one launch; false, and nothing done, where it takes several.
    pub(super) fn gated_product(
        &mut self,
        (rows, activation): (usize, Activation),
        x: &CudaBuffer<D::Memory>,
        w: &CudaMatrix<D::Memory>,
        bias: Option<&CudaVector<D::Memory>>,
        out: &mut CudaBuffer<D::Memory>,
    ) -> Result<bool, KernelError> {
        const OP: &str = "linear_gated";
        x.check(OP, "x", (rows, w.k), self.dtype)?;
        out.check(OP, "out", (rows, w.n / 2), self.dtype)?;
        if let Some(bias) = bias {
            bias.check(OP, "bias", w.n)?;
        }
        if rows == 0 || !w.n.is_multiple_of(2) {
            return Ok(false);
        }
        self.few_rows(Outcome::Gate(activation), &Operands::of(rows, x, w, bias, out))
    }

    /// Launches `gemv.cu` if that is the product's form and can compute it.
    fn few_rows(&mut self, outcome: Outcome, operands: &Operands) -> Result<bool, KernelError> {
        let &Operands { rows, n, k, out_dtype, .. } = operands;
        let form = self.product_form.unwrap_or_else(|| ProductForm::of(rows, n, k));
        let ProductForm::FewRows(form) = form else { return Ok(false) };
        let epilogue = match outcome {
            Outcome::Store if out_dtype == Dtype::F32 => Gemv::STORE_F32,
            Outcome::Store => Gemv::STORE,
            Outcome::Add if out_dtype == Dtype::F32 => return Ok(false),
            Outcome::Add => Gemv::ADD,
            Outcome::Gate(Activation::Silu) => Gemv::SILU,
            Outcome::Gate(Activation::GeluTanh) => Gemv::GELU,
        };
        let is_gated = matches!(outcome, Outcome::Gate(_));
        let Some(kernel) = names::gemv(self.dtype, rows, form) else { return Ok(false) };
        let shared_bytes = form.shared_bytes(rows, k);
        let resident = self.driver.shared_bytes() / (shared_bytes + GemvForm::OTHER_SHARED_BYTES);
        if resident == 0 || (is_gated && form.rows == 1) {
            return Ok(false);
        }
        let blocks = self.driver.multiprocessors() * resident.min(form.blocks as usize);
        let tasks = if is_gated { n / 2 } else { n }.div_ceil(form.outputs(is_gated));
        let launch = Launch {
            file: "gemv",
            kernel,
            grid: [word(blocks.min(tasks.div_ceil(form.threads as usize / 32))), 1],
            threads: form.threads,
            shared_bytes,
        };
        let params = Gemv {
            x: operands.x,
            w: operands.w,
            bias: operands.bias.unwrap_or(DevicePointer::NULL),
            norm: DevicePointer::NULL,
            out: operands.out,
            n: word(n),
            k: word(k),
            epilogue,
            eps: 0.0,
        };
        self.launch(&launch, &params)?;
        Ok(true)
    }
}

impl Operands {
    fn of<M>(
        rows: usize,
        x: &CudaBuffer<M>,
        w: &CudaMatrix<M>,
        bias: Option<&CudaVector<M>>,
        out: &CudaBuffer<M>,
    ) -> Self {
        Self {
            x: x.address,
            w: w.address,
            bias: bias.map(|bias| bias.address),
            out: out.address,
            out_dtype: out.dtype,
            rows,
            n: w.n,
            k: w.k,
        }
    }
}
