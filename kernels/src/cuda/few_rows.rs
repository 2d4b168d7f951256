//! Products of few rows in one launch, with the norm before them and what becomes of them: by
//! `gemv.cu` of up to four rows, by `skinny.cu` of up to sixteen.

use std::ops::RangeInclusive;

use super::{
    Cuda, DevicePointer, Driver, Gemv, GemvForm, Launch, ProductForm, RopeEnd, Skinny,
    memory::WeightKind,
    names,
    products::{Operands, Outcome},
    word,
};
use crate::{Activation, Dtype, KernelError};

/// How `skinny.cu` computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkinnyPlan {
    /// Groups of eight rows that there is room for.
    pub groups: usize,
    /// Tiles of outputs that a block computes side by side.
    pub tiles: usize,
    /// Units of inputs whose columns of `x` are in shared memory at a time.
    pub panel: usize,
    /// Blocks.
    pub blocks: usize,
    /// Dynamic shared memory of each.
    pub shared_bytes: usize,
}

impl SkinnyPlan {
    /// Rows that it is there for.
    pub const ROWS: RangeInclusive<usize> = 2..=16;
    /// Threads of a block.
    pub const THREADS: u32 = 512;
    const WARPS: usize = Self::THREADS as usize / 32;
    /// Outputs of a tile.
    const OUTPUTS: usize = 16;
    /// Inputs of a unit.
    const UNIT: usize = 64;
    /// Shared memory beside the dynamic: the system's, and what norms are summed in.
    const OTHER_SHARED_BYTES: usize = 2048;
    /// With one tile a block asks for too little of the weight at a time. That is made good where
    /// the tiles of every multiprocessor are then so many fewer.
    const ONE_TILE: f64 = 0.8;

    /// For so many rows, outputs and inputs, on so many multiprocessors whose blocks may have so
    /// much shared memory; `None` where it cannot compute such a product. Norms need all of a row
    /// at once, and pairs of outputs two tiles.
    #[must_use]
    pub fn of(
        (rows, n, k): (usize, usize, usize),
        (are_pairs, is_normed): (bool, bool),
        multiprocessors: usize,
        shared_bytes: usize,
    ) -> Option<Self> {
        let outputs = if are_pairs { n / 2 } else { n };
        let is_whole = outputs > 0
            && outputs.is_multiple_of(Self::OUTPUTS)
            && n.is_multiple_of(outputs)
            && k > 0
            && k.is_multiple_of(Self::UNIT);
        if !is_whole || !Self::ROWS.contains(&rows) {
            return None;
        }
        let all = outputs / Self::OUTPUTS;
        // What the busiest multiprocessor computes.
        let most = |tiles: usize| all.div_ceil(tiles).div_ceil(multiprocessors) * tiles;
        let tiles = if are_pairs {
            2
        } else {
            let several = if most(3) < most(2) { 3 } else { 2 };
            if (most(1) as f64) < most(several) as f64 * Self::ONE_TILE { 1 } else { several }
        };
        let groups = rows.div_ceil(8);
        let [none, one] = [0, 1].map(|panel| Self::shared_bytes(groups, tiles, panel));
        let room = shared_bytes.checked_sub(none + Self::OTHER_SHARED_BYTES)? / (one - none);
        let units = k / Self::UNIT;
        let panel = if units <= room {
            units
        } else if is_normed || room < Self::WARPS {
            return None;
        } else {
            let panels = units.div_ceil(room / Self::WARPS * Self::WARPS);
            units.div_ceil(panels).next_multiple_of(Self::WARPS)
        };
        let tasks = if are_pairs { all } else { all.div_ceil(tiles) };
        Some(Self {
            groups,
            tiles,
            panel,
            blocks: tasks.min(multiprocessors),
            shared_bytes: Self::shared_bytes(groups, tiles, panel),
        })
    }

    /// Dynamic shared memory of a block with so many groups, tiles, and units of a panel: sums of
    /// each warp, and rows of `x`, each with 64 bytes at its end.
    #[must_use]
    pub const fn shared_bytes(groups: usize, tiles: usize, panel: usize) -> usize {
        let sums = tiles * groups * Self::WARPS * Self::OUTPUTS * 8 * size_of::<f32>();
        sums + groups * 8 * (panel * Self::UNIT * 2 + 64)
    }
}

/// What a kernel is told of a product's outcome; `None` where none of them has it.
fn epilogue(outcome: Outcome, out_dtype: Dtype) -> Option<u32> {
    Some(match outcome {
        Outcome::Store if out_dtype == Dtype::F32 => Gemv::STORE_F32,
        Outcome::Store => Gemv::STORE,
        Outcome::Add if out_dtype == Dtype::F32 => return None,
        Outcome::Add => Gemv::ADD,
        Outcome::Gate(Activation::Silu) => Gemv::SILU,
        Outcome::Gate(Activation::GeluTanh) => Gemv::GELU,
        Outcome::Rope(_) if out_dtype == Dtype::F32 => return None,
        Outcome::Rope(_) => Gemv::ROPE,
    })
}

/// What becomes of a product.
#[derive(Clone, Copy)]
struct End {
    epilogue: u32,
    /// Whether its outputs come in pairs.
    are_pairs: bool,
    rope: RopeEnd,
}

impl End {
    fn of(outcome: Outcome, out_dtype: Dtype) -> Option<Self> {
        let rope = if let Outcome::Rope(end) = outcome { end } else { RopeEnd::default() };
        let epilogue = epilogue(outcome, out_dtype)?;
        Some(Self { epilogue, are_pairs: outcome.has_pairs(), rope })
    }
}

impl<D: Driver> Cuda<D> {
    /// Launches the form's own kernel if it has one that can compute this; else false.
    pub(super) fn few_rows(
        &mut self,
        form: ProductForm,
        outcome: Outcome,
        operands: &Operands,
    ) -> Result<bool, KernelError> {
        let Some(end) = End::of(outcome, operands.out_dtype) else { return Ok(false) };
        match form {
            ProductForm::FewRows(form) => self.by_gemv(form, end, operands),
            ProductForm::Skinny => self.by_skinny(end, operands),
            ProductForm::Library | ProductForm::Fp8(..) | ProductForm::Proposed(_) => Ok(false),
        }
    }

    /// Whether the form has a kernel of its own for such a product, without a norm.
    pub(super) fn has_own_kernel(
        &self,
        form: ProductForm,
        are_pairs: bool,
        sizes: (usize, usize, usize),
        kind: WeightKind,
    ) -> bool {
        match form {
            ProductForm::FewRows(form) => self.gemv_launch(form, are_pairs, sizes, kind).is_some(),
            ProductForm::Skinny => self.skinny_plan(sizes, (are_pairs, false), kind).is_some(),
            ProductForm::Library | ProductForm::Fp8(..) | ProductForm::Proposed(_) => false,
        }
    }

    fn by_gemv(
        &mut self,
        form: GemvForm,
        end: End,
        operands: &Operands,
    ) -> Result<bool, KernelError> {
        let &Operands { rows, n, k, .. } = operands;
        let kind = WeightKind::of(operands.scales);
        // What four rows of a weight in e4m3 take leaves no registers for a rotation, nor do two
        // blocks; another form than the one that was found right is not taken instead.
        let is_full = form.blocks > 1 || (kind != WeightKind::Plain && rows == Gemv::MAX_ROWS);
        if end.epilogue == Gemv::ROPE && is_full {
            return Ok(false);
        }
        let Some(launch) = self.gemv_launch(form, end.are_pairs, (rows, n, k), kind) else {
            return Ok(false);
        };
        let params = Gemv {
            x: operands.x,
            w: operands.w,
            scales: operands.scales.map_or(DevicePointer::NULL, |scales| scales.address),
            bias: operands.bias.unwrap_or(DevicePointer::NULL),
            norm: operands.norm.map_or(DevicePointer::NULL, |(norm, _)| norm),
            out: operands.out,
            n: word(n),
            k: word(k),
            epilogue: end.epilogue,
            runs: operands.scales.map_or(0, |scales| word(scales.runs)),
            eps: operands.norm.map_or(0.0, |(_, eps)| eps),
            padding: 0,
            rope: end.rope,
        };
        self.launch(&launch, &params)?;
        Ok(true)
    }

    /// How `gemv.cu` is launched, if there is such a kernel and the device can.
    fn gemv_launch(
        &self,
        form: GemvForm,
        are_pairs: bool,
        (rows, n, k): (usize, usize, usize),
        kind: WeightKind,
    ) -> Option<Launch<'static>> {
        if self.is_deterministic {
            return None;
        }
        let is_narrow = kind != WeightKind::Plain;
        let kernel = names::gemv((self.dtype, is_narrow), rows, form)?;
        let shared_bytes = form.shared_bytes(rows, k, if is_narrow { 1 } else { 2 });
        let resident = self.driver.shared_bytes() / (shared_bytes + GemvForm::OTHER_SHARED_BYTES);
        // Of a pair a warp has both rows.
        if resident == 0 || (are_pairs && form.rows == 1) {
            return None;
        }
        let blocks = self.driver.multiprocessors() * resident.min(form.blocks as usize);
        let tasks = if are_pairs { n / 2 } else { n }.div_ceil(form.outputs(are_pairs));
        let warps = form.threads as usize / 32;
        let grid = [word(blocks.min(tasks.div_ceil(warps))), 1];
        Some(Launch { file: "gemv", kernel, grid, threads: form.threads, shared_bytes })
    }

    fn by_skinny(&mut self, end: End, operands: &Operands) -> Result<bool, KernelError> {
        let &Operands { rows, n, k, .. } = operands;
        let kind = WeightKind::of(operands.scales);
        // A tile is of one half of a head.
        if end.epilogue == Gemv::ROPE && !end.rope.head_dim.is_multiple_of(32) {
            return Ok(false);
        }
        let ends = (end.are_pairs, operands.norm.is_some());
        let Some(plan) = self.skinny_plan((rows, n, k), ends, kind) else { return Ok(false) };
        let kernel = names::skinny(self.dtype, plan.groups, plan.tiles);
        let launch = Launch {
            file: "skinny",
            kernel: kernel.expect("the plan is of groups and tiles that there are"),
            grid: [word(plan.blocks), 1],
            threads: SkinnyPlan::THREADS,
            shared_bytes: plan.shared_bytes,
        };
        let params = Skinny {
            x: operands.x,
            w: operands.w,
            bias: operands.bias.unwrap_or(DevicePointer::NULL),
            norm: operands.norm.map_or(DevicePointer::NULL, |(norm, _)| norm),
            out: operands.out,
            n: word(n),
            k: word(k),
            rows: word(rows),
            epilogue: end.epilogue,
            panel: word(plan.panel),
            eps: operands.norm.map_or(0.0, |(_, eps)| eps),
            rope: end.rope,
        };
        self.launch(&launch, &params)?;
        Ok(true)
    }

    fn skinny_plan(
        &self,
        sizes: (usize, usize, usize),
        ends: (bool, bool),
        kind: WeightKind,
    ) -> Option<SkinnyPlan> {
        if self.is_deterministic || kind != WeightKind::Plain {
            return None;
        }
        SkinnyPlan::of(sizes, ends, self.driver.multiprocessors(), self.driver.shared_bytes())
    }
}
