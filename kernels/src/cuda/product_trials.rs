//! Products by each of their forms, on random numbers: which are right, and how fast.

use std::time::Duration;

use super::{
    Cuda, Driver, Gemv, ProductForm,
    memory::{Fp8Scales, WeightKind, decode, encode},
    products::{MANY_ROWS, Operands, Outcome},
};
use crate::{
    Activation, Dtype, Findings, KernelError, Verdict, fp8, ops::sampling::uniform, reference,
};

/// Few rows, each number by itself, and numbers that stand for others.
fn all_rows() -> impl Iterator<Item = usize> {
    (1..=Gemv::MAX_ROWS).chain(MANY_ROWS)
}

/// Random numbers, over and over: a prime, so that no two rows of a weight are alike.
pub(super) const PERIOD: usize = 65_521;
/// Of weights that take turns, so that none is found in a cache.
const WEIGHT_BYTES: usize = 256 << 20;
/// Below that nothing can be said of times.
const FEWEST_WEIGHT_BYTES: usize = 1 << 20;
/// By so many rows every product is tried.
const CHECKED_ROWS: usize = 16;
/// Outputs of a row that are compared with the reference, and rows; all must be finite.
const COMPARED: usize = 128;
const COMPARED_ROWS: usize = 16;
/// What is timed at a time lasts about so long.
const REPETITION: Duration = Duration::from_micros(500);
/// A call that takes so long is timed once: on an emulated device, or one that is very slow.
pub(super) const SLOW: Duration = Duration::from_millis(5);

/// A product that is tried.
#[derive(Clone, Copy, Debug)]
struct Product {
    rows: usize,
    n: usize,
    k: usize,
    kind: WeightKind,
}

/// A weight whose products are tried: outputs, inputs, kind.
type Weight = (usize, usize, WeightKind);

/// Weights of a Llama of 8 B, for a device of which nothing is known.
const USUAL: [Weight; 5] = [
    (6144, 4096, WeightKind::Plain),
    (4096, 4096, WeightKind::Plain),
    (28_672, 4096, WeightKind::Plain),
    (4096, 14_336, WeightKind::Plain),
    (128_256, 4096, WeightKind::Plain),
];

/// What a product's name ends with, for the kind of its weight.
const KINDS: [(WeightKind, &str); 3] = [
    (WeightKind::Fp8Runs, " and fp8 in runs"),
    (WeightKind::Fp8, " and fp8"),
    (WeightKind::Plain, ""),
];

impl Product {
    fn name(self, dtype: Dtype) -> String {
        let Self { rows, n, k, kind } = self;
        let end = KINDS.iter().find(|(known, _)| *known == kind).map_or("", |(_, end)| end);
        format!("product of {rows} rows, {n} x {k}, {dtype:?}{end}")
    }

    fn weight_bytes(self, dtype: Dtype) -> usize {
        let element = if self.kind == WeightKind::Plain { dtype.size() } else { 1 };
        self.n * self.k * element
    }

    /// Scales of a row of the weight.
    fn runs(self) -> usize {
        match self.kind {
            WeightKind::Plain => 0,
            WeightKind::Fp8 => 1,
            WeightKind::Fp8Runs => self.k.div_ceil(fp8::RUN),
        }
    }
}

/// The outputs, inputs and kind of weight that a product's name has.
fn weight_of(operation: &str) -> Option<Weight> {
    let mut parts = operation.strip_prefix("product of ")?.split(", ").skip(1);
    let (n, k) = parts.next()?.split_once(" x ")?;
    let (kind, _) = KINDS.iter().find(|(_, end)| operation.ends_with(end))?;
    Some((n.parse().ok()?, k.parse().ok()?, *kind))
}

/// Random numbers in [-1, 1).
pub(super) fn pattern(seed: u64) -> Vec<f32> {
    let number = move |i: u32| (uniform(seed, i) * 2.0 - 1.0) as f32;
    (0..).take(PERIOD).map(number).collect()
}

/// The scale of number `i` of a weight's scales in trials.
fn trial_scale(i: usize) -> f32 {
    0.5 + (i % 5) as f32 / 8.0
}

/// What trials with weights of a kind compute with. A weight of any shape is a part of one
/// memory.
struct Room<M> {
    weight_bytes: usize,
    weights: M,
    /// Of weights in e4m3.
    scales: M,
    x: M,
    out: M,
    /// What the weights and `x` repeat.
    numbers: [Vec<f64>; 2],
}

impl<D: Driver> Cuda<D> {
    /// Tries again what `found` knows of products, or those of usual weights if it knows none,
    /// and of attention.
    ///
    /// # Errors
    /// As [`crate::Device::try_forms`].
    pub fn try_again(
        &mut self,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let known = found.trials().iter().filter_map(|trial| weight_of(&trial.operation));
        let mut weights: Vec<_> = known.collect();
        weights.sort_unstable();
        weights.dedup();
        if weights.is_empty() {
            weights = USUAL.to_vec();
        }
        for &(n, k, kind) in &weights {
            let forget = |rows: usize| found.forget(&Product { rows, n, k, kind }.name(self.dtype));
            all_rows().for_each(forget);
        }
        self.try_products(&weights, found, keep)?;
        self.try_attention_again(found, keep)?;
        self.try_prefixes_again(found, keep)?;
        self.try_rotation_again(found, keep)
    }

    /// Tries what is not known of products with weights of these outputs and inputs, and has
    /// each take its best form from then on.
    pub(super) fn try_products(
        &mut self,
        weights: &[Weight],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let large = weights.iter().filter(|(n, k, _)| ProductForm::is_tried(*n, *k));
        let products: Vec<Product> = large
            .flat_map(|&(n, k, kind)| all_rows().map(move |rows| Product { rows, n, k, kind }))
            .filter(|product| product.rows <= self.max_rows)
            .collect();
        let (mut tried, mut unknown) = (Vec::new(), Vec::new());
        for product in products {
            let forms = self.forms_of(product)?;
            // Where there is one form there is nothing to choose, but whether it is right.
            if forms.len() < 2 && product.rows != CHECKED_ROWS {
                continue;
            }
            let name = product.name(self.dtype);
            if forms.iter().any(|form| !found.knows(&name, &form.to_string())) {
                unknown.push(product);
            }
            tried.push((product, forms));
        }
        for (kind, _) in KINDS {
            let unknown: Vec<Product> =
                unknown.iter().filter(|product| product.kind == kind).copied().collect();
            let room = match self.room_for(kind, &unknown) {
                Err(KernelError::OutOfMemory { .. }) => None,
                other => other?,
            };
            let Some(mut room) = room else { continue };
            for product in unknown {
                if product.kind != WeightKind::Plain {
                    self.make_fp8_room(product.n, product.k)?;
                }
                self.try_product(product, &mut room, found, keep)?;
            }
            keep(found);
        }
        for (product, forms) in tried {
            let name = product.name(self.dtype);
            let best = found.best(&name);
            let form = forms.iter().find(|form| Some(&*form.to_string()) == best);
            match form {
                Some(&form) => {
                    let Product { rows, n, k, kind } = product;
                    self.product_forms.insert((rows, n, k, kind), form);
                }
                // There was no room to try any.
                None if found.trials().iter().all(|trial| trial.operation != name) => {}
                None => return Err(Findings::none_is_right(&name)),
            }
        }
        Ok(())
    }

    /// Those that this device can compute it by.
    fn forms_of(
        &mut self,
        Product { rows, n, k, kind }: Product,
    ) -> Result<Vec<ProductForm>, KernelError> {
        let sizes = (rows, n, k);
        let mut forms = Vec::new();
        for form in ProductForm::all() {
            let can = match form {
                ProductForm::Library => true,
                ProductForm::Fp8(scaling, rank) => {
                    self.has_fp8_proposed((scaling, rank), sizes, kind)?
                }
                ProductForm::Proposed(rank) => self.has_proposed(rank, sizes, kind)?,
                ProductForm::FewRows(_) | ProductForm::Skinny => {
                    self.has_own_kernel(form, false, sizes, kind)
                }
            };
            if can {
                forms.push(form);
            }
        }
        Ok(forms)
    }

    /// `None` where there is nothing to try, or too little memory.
    fn room_for(
        &self,
        kind: WeightKind,
        products: &[Product],
    ) -> Result<Option<Room<D::Memory>>, KernelError> {
        let most = |of: fn(&Product) -> usize| products.iter().map(of).max();
        let num_scales = most(|p| p.n * p.runs()).unwrap_or(0);
        let Some((k, outputs)) = most(|p| p.rows * p.k).zip(most(|p| p.rows * p.n)) else {
            return Ok(None);
        };
        let (free, _) = self.driver.memory_info()?;
        let weight_bytes = WEIGHT_BYTES.min(free / 4);
        if weight_bytes < FEWEST_WEIGHT_BYTES {
            return Ok(None);
        }
        let of_weights = match kind {
            WeightKind::Plain => encode(&pattern(1), self.dtype),
            _ => pattern(1).into_iter().map(fp8::narrow).collect(),
        };
        let of_x = encode(&pattern(2), self.dtype);
        let of_scales: Vec<f32> = (0..num_scales).map(trial_scale).collect();
        let what = "trials of products";
        let filled = |size: usize, numbers: &[u8]| {
            let mut memory = self.driver.allocate(size, what)?;
            let many = numbers.repeat(size.div_ceil(numbers.len()).min(64));
            for at in (0..size).step_by(many.len()) {
                self.driver.upload(&mut memory, at, &many[..many.len().min(size - at)])?;
            }
            Ok::<_, KernelError>(memory)
        };
        let wide = |numbers: Vec<f32>| numbers.into_iter().map(f64::from).collect();
        let numbers_of_weights = match kind {
            WeightKind::Plain => decode(&of_weights, self.dtype),
            _ => of_weights.iter().copied().map(fp8::widen).collect(),
        };
        let mut scales = self.driver.allocate(num_scales * size_of::<f32>(), what)?;
        self.driver.upload(&mut scales, 0, bytemuck::cast_slice(&of_scales))?;
        Ok(Some(Room {
            weight_bytes,
            weights: filled(weight_bytes, &of_weights)?,
            scales,
            x: filled(k * self.dtype.size(), &of_x)?,
            out: self.driver.allocate(outputs * size_of::<f32>(), what)?,
            numbers: [wide(numbers_of_weights), wide(decode(&of_x, self.dtype))],
        }))
    }

    fn try_product(
        &mut self,
        product: Product,
        room: &mut Room<D::Memory>,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let (operation, forms) = (product.name(self.dtype), self.forms_of(product)?);
        // As many outputs as there are weights for: times are in proportion.
        let most = room.weight_bytes / Product { n: 1, ..product }.weight_bytes(self.dtype);
        // Whole tiles of tensor cores, if there are any.
        let most = if most > 16 { most / 16 * 16 } else { most.max(1) };
        let product = Product { n: product.n.min(most), ..product };
        let exact = Expected::of(product, &room.numbers, false);
        let mut of_narrow_rows = None;
        for form in forms {
            found.try_form(&operation, &form.to_string(), keep, || {
                let expected = match form {
                    ProductForm::Fp8(..) => of_narrow_rows
                        .get_or_insert_with(|| Expected::of(product, &room.numbers, true)),
                    _ => &exact,
                };
                self.try_form(form, product, room, expected)
            })?;
        }
        Ok(())
    }

    fn try_form(
        &mut self,
        form: ProductForm,
        product: Product,
        room: &mut Room<D::Memory>,
        expected: &Expected,
    ) -> Result<Verdict, KernelError> {
        let Product { rows, n, k, kind } = product;
        let scales = Fp8Scales { address: self.driver.address(&room.scales), runs: product.runs() };
        let operands = |out_dtype| Operands {
            x: self.driver.address(&room.x),
            w: self.driver.address(&room.weights),
            scales: (kind != WeightKind::Plain).then_some(scales),
            bias: None,
            norm: None,
            out: self.driver.address(&room.out),
            out_dtype,
            rows,
            n,
            k,
        };
        let (narrow, wide) = (operands(self.dtype), operands(Dtype::F32));
        let mut outcomes = vec![(Outcome::Store, narrow), (Outcome::Add, narrow)];
        // What it leaves to another form is no test of it. Of many rows only a head's outputs,
        // which have no such forms, are wide.
        let leaves_it = matches!(form, ProductForm::Fp8(..) | ProductForm::Proposed(_));
        if rows <= CHECKED_ROWS && !leaves_it {
            outcomes.push((Outcome::Store, wide));
        }
        if n.is_multiple_of(2) && self.has_own_kernel(form, true, (rows, n, k), kind) {
            outcomes.push((Outcome::Gate(Activation::Silu), narrow));
        }
        for (outcome, operands) in outcomes {
            if let Err(how) = self.check_form(form, outcome, &operands, (room, expected))? {
                return Ok(Verdict::Wrong(format!("{outcome:?}: {how}")));
            }
        }
        let turns = (room.weight_bytes / product.weight_bytes(self.dtype)).max(1);
        self.time_form(form, &narrow, (turns, product.weight_bytes(self.dtype))).map(Verdict::Right)
    }

    fn by_form(
        &mut self,
        form: ProductForm,
        outcome: Outcome,
        operands: &Operands,
    ) -> Result<(), KernelError> {
        if self.few_rows(form, outcome, operands)? {
            return Ok(());
        }
        self.many_rows(form, outcome == Outcome::Add, operands)
    }

    /// What is wrong with a form's results, if anything is.
    fn check_form(
        &mut self,
        form: ProductForm,
        outcome: Outcome,
        operands: &Operands,
        (room, expected): (&mut Room<D::Memory>, &Expected),
    ) -> Result<Result<(), String>, KernelError> {
        let &Operands { out_dtype, rows, n, .. } = operands;
        let outputs = if matches!(outcome, Outcome::Gate(_)) { n / 2 } else { n };
        // Nothing is left of it where results are written; what is added to is 1.
        let old = if outcome == Outcome::Add { 1.0 } else { f32::NAN };
        let mut bytes = encode(&[old], out_dtype).repeat(rows * outputs);
        self.driver.upload(&mut room.out, 0, &bytes)?;
        self.by_form(form, outcome, operands)?;
        self.driver.download(&room.out, &mut bytes)?;
        let got = decode(&bytes, out_dtype);
        if let Some(at) = got.iter().position(|x| !x.is_finite()) {
            let (row, output) = (at / outputs, at % outputs);
            return Ok(Err(format!("output {output} of row {row} is {}", got[at])));
        }
        Ok(expected.check(outcome, &got, out_dtype))
    }

    /// Of one call, of which each has other weights.
    fn time_form(
        &mut self,
        form: ProductForm,
        operands: &Operands,
        (turns, of_weight): (usize, usize),
    ) -> Result<Duration, KernelError> {
        let mut call = 0;
        let mut time = |cuda: &mut Self, calls: u32| {
            cuda.driver.begin_step()?;
            for _ in 0..calls {
                let mut own = *operands;
                own.w.0 += (call % turns * of_weight) as u64;
                call += 1;
                cuda.by_form(form, Outcome::Store, &own)?;
            }
            Ok::<_, KernelError>(cuda.driver.finish()?.unwrap_or_default() / calls)
        };
        let first = time(self, 1)?;
        if first >= SLOW {
            return Ok(first);
        }
        let about = time(self, 3)?;
        let calls = REPETITION.as_nanos() / about.as_nanos().max(1);
        let calls = u32::try_from(calls).unwrap_or(u32::MAX).clamp(2, 64);
        let mut times = [time(self, calls)?, time(self, calls)?, time(self, calls)?];
        times.sort();
        Ok(times[1])
    }
}

/// What a product's sums are, in f64, of some of its outputs.
struct Expected {
    product: Product,
    /// Which outputs; of gated units the first half of all has them.
    outputs: Vec<usize>,
    /// Which rows.
    rows: Vec<usize>,
    /// `[rows, outputs]`
    sums: Vec<f64>,
    /// Of the outputs half of all further, what they gate.
    gated: Vec<f64>,
    /// Whether they are of rows in e4m3.
    is_narrow: bool,
}

impl Expected {
    /// Of rows as they are, or as they are in e4m3 with a scale each.
    fn of(product: Product, numbers: &[Vec<f64>; 2], is_narrow: bool) -> Self {
        let Product { rows, n, k, kind } = product;
        let half = (n / 2).max(1);
        // The first and the last, and some of those between.
        let spread = |all: usize, most: usize| -> Vec<usize> {
            if all <= most {
                return (0..all).collect();
            }
            (0..most).map(|i| i * (all - 1) / (most - 1)).collect()
        };
        let (outputs, compared) = (spread(half, COMPARED), spread(rows, COMPARED_ROWS));
        // So long that every row of any place is a part of it.
        let [w, x] = numbers.each_ref().map(|numbers| {
            let len = PERIOD + k;
            numbers.iter().copied().cycle().take(len).collect::<Vec<_>>()
        });
        let row = |index: usize| index * k % PERIOD..index * k % PERIOD + k;
        let rows_of_x: Vec<Vec<f64>> = compared
            .iter()
            .map(|&index| {
                let exact = &x[row(index)];
                if is_narrow { in_e4m3(exact) } else { exact.to_vec() }
            })
            .collect();
        let of_run = if kind == WeightKind::Fp8Runs { fp8::RUN } else { k };
        let scale = |at: usize| match kind {
            WeightKind::Plain => 1.0,
            _ => f64::from(trial_scale(at)),
        };
        let of = |first: usize| -> Vec<f64> {
            let outputs = &outputs;
            let pairs = (0..rows_of_x.len())
                .flat_map(|r| outputs.iter().map(move |output| (r, first + output)));
            let dot = |(r, output): (usize, usize)| -> f64 {
                let runs = rows_of_x[r].chunks(of_run).zip(w[row(output)].chunks(of_run));
                let of_run = |(run, (x, w)): (usize, (&[f64], &[f64]))| {
                    let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    sum * scale(output * product.runs() + run)
                };
                runs.enumerate().map(of_run).sum()
            };
            pairs.map(dot).collect()
        };
        let (sums, gated) = (of(0), of(n - half));
        Self { product, outputs, rows: compared, sums, gated, is_narrow }
    }

    /// What is wrong with a form's results, if anything is.
    fn check(&self, outcome: Outcome, got: &[f32], dtype: Dtype) -> Result<(), String> {
        let Product { n, k, .. } = self.product;
        let half = (n / 2).max(1);
        let is_gated = matches!(outcome, Outcome::Gate(_));
        let of_row = if is_gated { half } else { n };
        let epsilon = match dtype {
            Dtype::F32 => 0.0,
            Dtype::F16 => 2_f64.powi(-11),
            Dtype::Bf16 => 2_f64.powi(-8),
        };
        // A product of two elements is 1/4 on average. Libraries may round parts of a sum, which
        // are of order sqrt(k) / 3, to bf16, and tensor cores add e4m3's products in fewer bits.
        let sum_error = (k as f64).sqrt() * if self.is_narrow { 1e-2 } else { 4e-3 };
        let near = |row: usize, output: usize, want: f64| {
            let got = f64::from(got[row * of_row + output]);
            if (got - want).abs() <= want.abs() * epsilon * 1.5 + sum_error {
                return Ok(());
            }
            Err(format!("output {output} of row {row} is {got}, not {want}"))
        };
        for (r, &row) in self.rows.iter().enumerate() {
            for (i, &output) in self.outputs.iter().enumerate() {
                let at = r * self.outputs.len() + i;
                let (sum, gated) = (self.sums[at], self.gated[at]);
                match outcome {
                    Outcome::Gate(activation) => {
                        near(row, output, reference::gated(activation, &[sum], &[gated])[0])?;
                    }
                    // None is tried.
                    Outcome::Rope(_) => {}
                    Outcome::Store | Outcome::Add => {
                        let old = f64::from(u8::from(outcome == Outcome::Add));
                        near(row, output, old + sum)?;
                        near(row, n - half + output, old + gated)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A row as it is in e4m3 with a scale.
fn in_e4m3(x: &[f64]) -> Vec<f64> {
    let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let mut bits = vec![0; x.len()];
    let scale = fp8::quantize_row(&x, &mut bits);
    bits.into_iter().map(|bits| f64::from(fp8::widen(bits)) * f64::from(scale)).collect()
}
