//! Products with weights, and which form computes each: cuBLAS, or a kernel for few rows
//! (`few_rows.rs`). `fp8_products.rs` has what weights in e4m3 have of their own.

use std::fmt;

use super::{
    AddBias, Choice, Cuda, CudaBuffer, CudaMatrix, CudaVector, DevicePointer, Driver, Fp8Scaling,
    Gemv, GemvForm, Matmul, RopeEnd,
    memory::{Fp8Scales, WeightKind},
    ops::pieces,
    word,
};
use crate::{Activation, Dtype, KernelError, cuda::names::of_dtype};

/// Numbers of more than a few rows that forms are tried by, each for what lies between it and
/// the one before. What is beyond is cuBLAS's; a weight in e4m3 has one more number.
pub(super) const MANY_ROWS: [usize; 7] = [8, 16, 32, 64, 128, 256, FP8_ROWS];
pub(super) const FP8_ROWS: usize = 1024;
/// Of a weight with more outputs, a head's, many rows are cuBLAS's, and of one with fewer
/// elements, whose time is a launch's.
pub(super) const MOST_OUTPUTS: usize = 1 << 16;
const LARGE: usize = 1 << 21;

/// What computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductForm {
    /// cuBLAS, and kernels for what stands around the product; a weight in e4m3 is widened
    /// before.
    Library,
    /// `gemv.cu`, where it can; else cuBLAS.
    FewRows(GemvForm),
    /// `skinny.cu`, where it can; else cuBLAS.
    Skinny,
    /// cuBLASLt's product of e4m3 with e4m3, in which the rows are quantized, where it can; else
    /// cuBLAS. The second is the algorithm's rank among those proposed.
    Fp8(Fp8Scaling, u8),
    /// cuBLASLt's, by the algorithm of that rank.
    Proposed(u8),
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Store,
    Add,
    Gate(Activation),
    /// Of Q, K and V.
    Rope(RopeEnd),
}

impl Outcome {
    /// Whether its outputs come in pairs.
    pub(super) const fn has_pairs(self) -> bool {
        matches!(self, Self::Gate(_) | Self::Rope(_))
    }
}

impl ProductForm {
    /// Whether the forms of products with such a weight are tried: with smaller ones all is
    /// cuBLAS's.
    pub(super) const fn is_tried(n: usize, k: usize) -> bool {
        const ELEMENTS: usize = 1 << 18;
        const INPUTS: usize = 256;
        k >= INPUTS && n * k >= ELEMENTS
    }

    /// Forms that there may be, in the order in which they are preferred: what is timed is the
    /// product alone, and kernels for few rows do what stands around it in the same launch.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let fp8 = |scaling| (0..Choice::MOST).map(move |rank| Self::Fp8(scaling, rank));
        [
            Self::FewRows(GemvForm::DEFAULT),
            Self::FewRows(GemvForm { blocks: 2, ..GemvForm::DEFAULT }),
            Self::Skinny,
        ]
        .into_iter()
        .chain(fp8(Fp8Scaling::Library))
        .chain(fp8(Fp8Scaling::Own))
        .chain([Self::Library])
        .chain((0..Choice::MOST).map(Self::Proposed))
    }

    /// Those that are tried by so many rows stand for `rows` too.
    pub(super) fn tried_rows(rows: usize) -> Option<usize> {
        if rows <= Gemv::MAX_ROWS {
            return Some(rows);
        }
        MANY_ROWS.into_iter().find(|tried| rows <= *tried)
    }
}

impl fmt::Display for ProductForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library => f.write_str("cuBLAS"),
            Self::Skinny => f.write_str("skinny"),
            Self::Fp8(scaling, rank) => {
                let after = if *scaling == Fp8Scaling::Own { ", scaled after it" } else { "" };
                write!(f, "cuBLASLt in fp8{after}")?;
                if *rank > 0 { write!(f, ", choice {rank}") } else { Ok(()) }
            }
            Self::Proposed(rank) => write!(f, "cuBLASLt, choice {rank}"),
            Self::FewRows(GemvForm { rows, ahead, threads, blocks }) => {
                write!(f, "gemv, {rows} rows {ahead} ahead, {blocks} x {threads} threads")
            }
        }
    }
}

/// Operands of a product, which have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) x: DevicePointer,
    pub(super) w: DevicePointer,
    pub(super) scales: Option<Fp8Scales>,
    pub(super) bias: Option<DevicePointer>,
    /// Of an RMSNorm before the product, with its epsilon: kernels for few rows have it.
    pub(super) norm: Option<(DevicePointer, f32)>,
    pub(super) out: DevicePointer,
    pub(super) out_dtype: Dtype,
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl<D: Driver> Cuda<D> {
    /// Rows of every product where a row's bits may not depend on their number: cuBLAS chooses
    /// its algorithm, and with it the order of its sums, by the number that it is given. Fewer
    /// would make prompts slow, more would make decodes slow.
    pub const TILE_ROWS: usize = 128;

    /// Computes products in tiles of [`Self::TILE_ROWS`] rows, so that no row's bits depend on
    /// how many others there are. For a backend that has allocated nothing yet.
    #[must_use]
    pub fn deterministic(mut self, is_deterministic: bool) -> Self {
        self.is_deterministic = is_deterministic;
        self
    }

    /// Rows that a buffer of `capacity` must have.
    pub(super) fn padded_rows(&self, capacity: usize) -> usize {
        if self.is_deterministic { capacity.next_multiple_of(Self::TILE_ROWS) } else { capacity }
    }

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
        let form = self.form_of(&operands);
        if self.few_rows(form, outcome, &operands)? {
            return Ok(());
        }
        self.many_rows(form, outcome == Outcome::Add, &operands)?;
        let Some(bias) = operands.bias else { return Ok(()) };
        let pieces = pieces(op, w.n)?;
        let params = AddBias { bias, x: out.address, pieces: word(pieces), rows: word(rows) };
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
        let operands = Operands::of(rows, x, w, bias, out);
        self.few_rows(self.form_of(&operands), Outcome::Gate(activation), &operands)
    }

    /// `linear` or `linear_gated` of rows that are normed first, or Q, K and V of them rotated, in
    /// one launch; false, and nothing done, where it takes several.
    pub(super) fn product_of_normed(
        &mut self,
        (rows, outcome): (usize, Outcome),
        x: &CudaBuffer<D::Memory>,
        (norm, eps): (&CudaVector<D::Memory>, f32),
        w: &CudaMatrix<D::Memory>,
        bias: Option<&CudaVector<D::Memory>>,
        out: &mut CudaBuffer<D::Memory>,
    ) -> Result<bool, KernelError> {
        const OP: &str = "linear_of_normed";
        let is_gated = matches!(outcome, Outcome::Gate(_));
        x.check(OP, "x", (rows, w.k), self.dtype)?;
        norm.check(OP, "norm", w.k)?;
        out.check(OP, "out", (rows, if is_gated { w.n / 2 } else { w.n }), self.dtype)?;
        if let Some(bias) = bias {
            bias.check(OP, "bias", w.n)?;
        }
        if rows == 0 || (is_gated && !w.n.is_multiple_of(2)) {
            return Ok(false);
        }
        let plain = Operands::of(rows, x, w, bias, out);
        let operands = Operands { norm: Some((norm.address, eps)), ..plain };
        self.few_rows(self.form_of(&operands), outcome, &operands)
    }

    /// What was not tried is cuBLAS's. A weight in e4m3 would be widened for that, so few rows
    /// have their own kernel even then, and many rows the form that so many are tried by.
    fn form_of(&self, operands: &Operands) -> ProductForm {
        let &Operands { rows, n, k, .. } = operands;
        let kind = WeightKind::of(operands.scales);
        let known = |rows| self.product_forms.get(&(rows, n, k, kind)).copied();
        let tried = ProductForm::tried_rows(rows);
        let form = self.product_form.or_else(|| tried.and_then(known));
        if kind == WeightKind::Plain {
            return form.unwrap_or(ProductForm::Library);
        }
        let of_most = || if rows > Gemv::MAX_ROWS { known(FP8_ROWS) } else { None };
        form.or_else(of_most).unwrap_or(ProductForm::FewRows(GemvForm::DEFAULT))
    }

    /// A form without a kernel of its own. Without a bias.
    pub(super) fn many_rows(
        &mut self,
        form: ProductForm,
        accumulate: bool,
        operands: &Operands,
    ) -> Result<(), KernelError> {
        let stride = operands.n;
        let Some(scales) = operands.scales else {
            if let ProductForm::Proposed(rank) = form
                && self.by_proposed(rank, accumulate, operands)?
            {
                return Ok(());
            }
            return self.by_library(accumulate, operands, stride);
        };
        if let ProductForm::Fp8(scaling, rank) = form
            && self.by_fp8((scaling, rank), accumulate, operands)?
        {
            return Ok(());
        }
        self.by_widened(accumulate, operands, scales)
    }

    /// By an algorithm of cuBLASLt; false where it cannot compute so many rows.
    fn by_proposed(
        &mut self,
        rank: u8,
        accumulate: bool,
        operands: &Operands,
    ) -> Result<bool, KernelError> {
        let Some(choice) = self.choice(rank, operands.rows) else { return Ok(false) };
        let product = self.matmul_of(accumulate, operands, operands.n);
        match self.driver.matmul(&Matmul { choice: Some(choice), ..product }) {
            // It was tried by another number of rows.
            Err(KernelError::Device { sticky: false, .. }) if choice.rows != operands.rows => {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// The algorithm of a rank among those that are proposed for so many rows as were tried.
    pub(super) fn choice(&self, rank: u8, rows: usize) -> Option<Choice> {
        if self.is_deterministic {
            return None;
        }
        Some(Choice { rank, rows: ProductForm::tried_rows(rows).unwrap_or(rows) })
    }

    /// Whether cuBLASLt has an algorithm of that rank for a product with a weight as it is.
    pub(super) fn has_proposed(
        &mut self,
        rank: u8,
        (rows, n, k): (usize, usize, usize),
        kind: WeightKind,
    ) -> Result<bool, KernelError> {
        let is_tried =
            (Gemv::MAX_ROWS + 1..FP8_ROWS).contains(&rows) && n <= MOST_OUTPUTS && n * k >= LARGE;
        let choice = self.choice(rank, rows);
        if !is_tried || kind != WeightKind::Plain || choice.is_none() {
            return Ok(false);
        }
        let product = Matmul {
            x: DevicePointer::NULL,
            w: DevicePointer::NULL,
            out: DevicePointer::NULL,
            rows,
            n,
            k,
            dtype: self.dtype,
            out_dtype: self.dtype,
            out_stride: n,
            accumulate: false,
            choice,
        };
        Ok(self.driver.choices(&product)? > rank)
    }

    fn matmul_of(&self, accumulate: bool, operands: &Operands, out_stride: usize) -> Matmul {
        let &Operands { x, w, out, out_dtype, rows, n, k, .. } = operands;
        let (dtype, choice) = (self.dtype, None);
        Matmul { x, w, out, rows, n, k, dtype, out_dtype, out_stride, accumulate, choice }
    }

    /// By cuBLAS, into rows of `out` that are `out_stride` apart.
    pub(super) fn by_library(
        &mut self,
        accumulate: bool,
        operands: &Operands,
        out_stride: usize,
    ) -> Result<(), KernelError> {
        let &Operands { x, out, out_dtype, rows, k, .. } = operands;
        let dtype = self.dtype;
        let whole = self.matmul_of(accumulate, operands, out_stride);
        if !self.is_deterministic {
            return self.driver.matmul(&whole);
        }
        // What lies behind the last row is computed too, and read by nobody: buffers are of
        // whole tiles.
        for first in (0..rows).step_by(Self::TILE_ROWS) {
            let moved = |at: DevicePointer, cols: usize, dtype: Dtype| {
                at.behind(first * cols * dtype.size())
            };
            let (x, out) = (moved(x, k, dtype), moved(out, out_stride, out_dtype));
            self.driver.matmul(&Matmul { x, out, rows: Self::TILE_ROWS, ..whole })?;
        }
        Ok(())
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
            scales: w.scales,
            bias: bias.map(|bias| bias.address),
            norm: None,
            out: out.address,
            out_dtype: out.dtype,
            rows,
            n: w.n,
            k: w.k,
        }
    }
}
