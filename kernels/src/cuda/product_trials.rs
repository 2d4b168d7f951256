//! Products by each of their forms, on random numbers: which are right, and how fast.

use std::time::Duration;

use super::{
    Cuda, Driver, ProductForm,
    memory::{decode, encode},
    products::{Operands, Outcome},
};
use crate::{
    Activation, Dtype, Findings, KernelError, Trial, Verdict, ops::sampling::uniform, reference,
};

/// Few rows, which have forms to choose from, and one number that stands for all others.
const ROWS: [usize; 5] = [1, 2, 3, 4, 16];
/// Random numbers, over and over: a prime, so that no two rows of a weight are alike.
const PERIOD: usize = 65_521;
/// Of weights that take turns, so that none is found in a cache.
const WEIGHT_BYTES: usize = 256 << 20;
/// Below that nothing can be said of times.
const FEWEST_WEIGHT_BYTES: usize = 1 << 20;
/// Outputs of a row that are compared with the reference; all must be finite.
const COMPARED: usize = 128;
/// What is timed at a time lasts about so long.
const REPETITION: Duration = Duration::from_micros(500);

/// A product that is tried.
#[derive(Clone, Copy, Debug)]
struct Product {
    rows: usize,
    n: usize,
    k: usize,
}

/// Weights of a Llama of 8 B, for a device of which nothing is known.
const USUAL: [(usize, usize); 5] =
    [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)];

impl Product {
    fn name(self, dtype: Dtype) -> String {
        let Self { rows, n, k } = self;
        format!("product of {rows} rows, {n} x {k}, {dtype:?}")
    }
}

/// The outputs and inputs that a product's name has.
fn weight_of(operation: &str) -> Option<(usize, usize)> {
    let mut parts = operation.strip_prefix("product of ")?.split(", ").skip(1);
    let (n, k) = parts.next()?.split_once(" x ")?;
    n.parse().ok().zip(k.parse().ok())
}

/// What trials compute with. A weight of any shape is a part of one memory.
struct Room<M> {
    weight_bytes: usize,
    weights: M,
    x: M,
    out: M,
    /// What the weights and `x` repeat.
    numbers: [Vec<f64>; 2],
}

impl<D: Driver> Cuda<D> {
    /// Tries again what `found` knows of products, or those of usual weights if it knows none.
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
        for &(n, k) in &weights {
            ROWS.iter().for_each(|&rows| found.forget(&Product { rows, n, k }.name(self.dtype)));
        }
        self.try_products(&weights, found, keep)
    }

    /// Tries what is not known of products with weights of these outputs and inputs, and has
    /// each take its best form from then on.
    pub(super) fn try_products(
        &mut self,
        weights: &[(usize, usize)],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let large = weights.iter().filter(|(n, k)| n * k >= ProductForm::LARGE);
        let products: Vec<Product> =
            large.flat_map(|&(n, k)| ROWS.map(|rows| Product { rows, n, k })).collect();
        let unknown = |product: &&Product| {
            let name = product.name(self.dtype);
            self.forms_of(**product).iter().any(|form| !found.knows(&name, &form.to_string()))
        };
        let unknown: Vec<Product> = products.iter().filter(unknown).copied().collect();
        let room = match self.room_for(&unknown) {
            Err(KernelError::OutOfMemory { .. }) => None,
            other => other?,
        };
        if let Some(mut room) = room {
            for product in unknown {
                self.try_product(product, &mut room, found, keep)?;
            }
            keep(found);
        }
        for product in products {
            let name = product.name(self.dtype);
            let forms = self.forms_of(product);
            let best = found.best(&name);
            let form = forms.iter().find(|form| Some(&*form.to_string()) == best);
            match form {
                Some(&form) => {
                    let Product { rows, n, k } = product;
                    self.product_forms.insert((rows, n, k), form);
                }
                // There was no room to try any.
                None if found.trials().iter().all(|trial| trial.operation != name) => {}
                None => {
                    return Err(KernelError::Device {
                        op: name,
                        reason: "no form of it gives right results".to_owned(),
                        sticky: false,
                    });
                }
            }
        }
        Ok(())
    }

    /// Those that this device can compute it by.
    fn forms_of(&self, Product { rows, n, k }: Product) -> Vec<ProductForm> {
        let can = |form: &ProductForm| {
            let launch = self.few_rows_launch(*form, false, (rows, n, k));
            *form == ProductForm::Library || launch.is_some()
        };
        ProductForm::ALL.into_iter().filter(can).collect()
    }

    /// `None` where there is nothing to try, or too little memory.
    fn room_for(&self, products: &[Product]) -> Result<Option<Room<D::Memory>>, KernelError> {
        let most = |of: fn(&Product) -> usize| products.iter().map(of).max();
        let Some((k, outputs)) = most(|p| p.rows * p.k).zip(most(|p| p.rows * p.n)) else {
            return Ok(None);
        };
        let (free, _) = self.driver.memory_info()?;
        let weight_bytes = WEIGHT_BYTES.min(free / 4);
        if weight_bytes < FEWEST_WEIGHT_BYTES {
            return Ok(None);
        }
        let [of_weights, of_x] = [1, 2].map(|seed| {
            let number = |i: u32| (uniform(seed, i) * 2.0 - 1.0) as f32;
            encode(&(0..).take(PERIOD).map(number).collect::<Vec<_>>(), self.dtype)
        });
        let what = "trials of products";
        let filled = |size: usize, numbers: &[u8]| {
            let mut memory = self.driver.allocate(size, what)?;
            let many = numbers.repeat(size.div_ceil(numbers.len()).min(64));
            for at in (0..size).step_by(many.len()) {
                self.driver.upload(&mut memory, at, &many[..many.len().min(size - at)])?;
            }
            Ok::<_, KernelError>(memory)
        };
        let wide = |bytes: &[u8]| decode(bytes, self.dtype).into_iter().map(f64::from).collect();
        Ok(Some(Room {
            weight_bytes,
            weights: filled(weight_bytes, &of_weights)?,
            x: filled(k * self.dtype.size(), &of_x)?,
            out: self.driver.allocate(outputs * size_of::<f32>(), what)?,
            numbers: [wide(&of_weights), wide(&of_x)],
        }))
    }

    fn try_product(
        &mut self,
        product: Product,
        room: &mut Room<D::Memory>,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let operation = product.name(self.dtype);
        // As many outputs as there are weights for: times are in proportion.
        let most = room.weight_bytes / (product.k * self.dtype.size());
        let product = Product { n: product.n.min(most.max(1)), ..product };
        let expected = Expected::of(product, &room.numbers);
        for form in self.forms_of(product) {
            if found.knows(&operation, &form.to_string()) {
                continue;
            }
            let mut put = |verdict| {
                found.put(Trial { operation: operation.clone(), form: form.to_string(), verdict });
            };
            put(Verdict::Failed("the process ended in the trial".to_owned()));
            keep(found);
            let verdict = match self.try_form(form, product, room, &expected) {
                Ok(verdict) => verdict,
                // Nothing more can be tried, and what is kept names the form.
                Err(lost @ KernelError::Device { sticky: true, .. }) => return Err(lost),
                Err(error) => Verdict::Failed(error.to_string()),
            };
            found.put(Trial { operation: operation.clone(), form: form.to_string(), verdict });
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
        let Product { rows, n, k } = product;
        let operands = |out_dtype| Operands {
            x: self.driver.address(&room.x),
            w: self.driver.address(&room.weights),
            bias: None,
            out: self.driver.address(&room.out),
            out_dtype,
            rows,
            n,
            k,
        };
        let (narrow, wide) = (operands(self.dtype), operands(Dtype::F32));
        let mut outcomes =
            vec![(Outcome::Store, narrow), (Outcome::Store, wide), (Outcome::Add, narrow)];
        if self.few_rows_launch(form, true, (rows, n, k)).is_some() && n.is_multiple_of(2) {
            outcomes.push((Outcome::Gate(Activation::Silu), narrow));
        }
        for (outcome, operands) in outcomes {
            if let Err(how) = self.check_form(form, outcome, &operands, (room, expected))? {
                return Ok(Verdict::Wrong(format!("{outcome:?}: {how}")));
            }
        }
        self.time_form(form, &narrow, room.weight_bytes).map(Verdict::Right)
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
        self.by_library(outcome == Outcome::Add, operands)
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
        let mut bytes = encode(&vec![old; rows * outputs], out_dtype);
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
        weight_bytes: usize,
    ) -> Result<Duration, KernelError> {
        let of_weight = operands.n * operands.k * self.dtype.size();
        let turns = (weight_bytes / of_weight).max(1);
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
    /// `[rows, outputs]`
    sums: Vec<f64>,
    /// Of the outputs half of all further, what they gate.
    gated: Vec<f64>,
}

impl Expected {
    fn of(product: Product, numbers: &[Vec<f64>; 2]) -> Self {
        let Product { rows, n, k } = product;
        let half = (n / 2).max(1);
        // The first and the last, and some of those between.
        let outputs: Vec<usize> = if half <= COMPARED {
            (0..half).collect()
        } else {
            (0..COMPARED).map(|i| i * (half - 1) / (COMPARED - 1)).collect()
        };
        // So long that every row of any place is a part of it.
        let [w, x] = numbers.each_ref().map(|numbers| {
            let len = PERIOD + k;
            numbers.iter().copied().cycle().take(len).collect::<Vec<_>>()
        });
        let row = |index: usize| index * k % PERIOD..index * k % PERIOD + k;
        let of = |first: usize| -> Vec<f64> {
            let outputs = &outputs;
            let pairs =
                (0..rows).flat_map(|r| outputs.iter().map(move |output| (r, first + output)));
            let dot = |(r, output)| -> f64 {
                x[row(r)].iter().zip(&w[row(output)]).map(|(x, w)| x * w).sum()
            };
            pairs.map(dot).collect()
        };
        let (sums, gated) = (of(0), of(n - half));
        Self { product, outputs, sums, gated }
    }

    /// What is wrong with a form's results, if anything is.
    fn check(&self, outcome: Outcome, got: &[f32], dtype: Dtype) -> Result<(), String> {
        let Product { rows, n, k } = self.product;
        let half = (n / 2).max(1);
        let is_gated = matches!(outcome, Outcome::Gate(_));
        let of_row = if is_gated { half } else { n };
        let epsilon = match dtype {
            Dtype::F32 => 0.0,
            Dtype::F16 => 2_f64.powi(-11),
            Dtype::Bf16 => 2_f64.powi(-8),
        };
        // A product of two elements is 1/4 on average. Libraries may round parts of a sum, which
        // are of order sqrt(k) / 3, to bf16.
        let sum_error = (k as f64).sqrt() * 4e-3;
        let near = |row: usize, output: usize, want: f64| {
            let got = f64::from(got[row * of_row + output]);
            if (got - want).abs() <= want.abs() * epsilon * 1.5 + sum_error {
                return Ok(());
            }
            Err(format!("output {output} of row {row} is {got}, not {want}"))
        };
        for row in 0..rows {
            for (i, &output) in self.outputs.iter().enumerate() {
                let at = row * self.outputs.len() + i;
                let (sum, gated) = (self.sums[at], self.gated[at]);
                match outcome {
                    Outcome::Gate(activation) => {
                        near(row, output, reference::gated(activation, &[sum], &[gated])[0])?;
                    }
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
