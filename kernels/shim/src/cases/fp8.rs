//! Weights in e4m3, and what products with them need beside the products.

use candle_core::{DType, Tensor};
use sconce_kernels::{
    Activation, AttentionKind, AttentionParams, CacheDtype, Device as _, Dtype, Fp8Weight,
    KvLayout, Mask, Ops as _, StepLimits, StepPlan, WeightDtype,
    cuda::{
        Cuda, CudaMatrix, Driver, Fp8Scaling, GemvForm, Launch, ProductForm, QuantizeRows,
        ScaleSums, WidenWeight,
    },
    fp8, reference,
};

use super::{
    backend::tensor,
    element::{Element, assert_close, numbers},
};
use crate::Bench;

/// What a weight is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// As activations.
    Plain,
    /// In e4m3, with a scale a row.
    OfRows,
    /// In e4m3, with a scale for each 128 elements of a row.
    OfRuns,
}

impl Weight {
    /// Scales of a row of `k`.
    pub(super) fn runs(self, k: usize) -> usize {
        match self {
            Self::Plain => 0,
            Self::OfRows => 1,
            Self::OfRuns => k.div_ceil(fp8::RUN),
        }
    }

    /// Bytes of an element.
    pub(super) fn element_bytes(self) -> usize {
        if self == Self::Plain { 2 } else { 1 }
    }

    /// The types in a kernel's name.
    pub(super) fn names(self, element: Element) -> String {
        let end = if self == Self::Plain { "" } else { "_e4m3" };
        format!("{}{end}", element.name())
    }

    /// A weight's bytes and scales.
    pub(super) fn stored(self, element: Element, w: &[f32], k: usize) -> (Vec<u8>, Vec<f32>) {
        let scale = |x: &f32| 1.0 + x / 2.0;
        let scales = numbers(77, w.len() / k * self.runs(k)).iter().map(scale).collect();
        match self {
            Self::Plain => (element.encode(w), scales),
            _ => (w.iter().copied().map(fp8::narrow).collect(), scales),
        }
    }

    /// What these stand for.
    pub(super) fn meant(self, element: Element, w: &[f32], k: usize) -> Vec<f64> {
        let (bytes, scales) = self.stored(element, w, k);
        if self == Self::Plain {
            return element.decode(&bytes);
        }
        let runs = self.runs(k);
        let of_run = if runs == 1 { k } else { fp8::RUN };
        let numbers = Element::E4m3.decode(&bytes).into_iter().enumerate();
        numbers.map(|(i, x)| x * f64::from(scales[i / k * runs + i % k / of_run])).collect()
    }
}

fn launch(kernel: &str, grid: u32) -> Launch<'_> {
    Launch { file: "fp8", kernel, grid: [grid, 1], threads: 256, shared_bytes: 0 }
}

pub(super) fn rows_are_quantized_by_their_largest_number<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for k in [16, 4112] {
            let mut x = numbers(1, 4 * k);
            // A row of nothing, a row of large numbers, one that is not a number.
            x[k..2 * k].fill(0.0);
            x[2 * k..3 * k].iter_mut().for_each(|x| *x *= 900.0);
            x[3 * k + 5] = f32::NAN;
            bench.clear();
            let params = QuantizeRows {
                x: bench.buffer(&element.encode(&x)),
                out: bench.buffer(&Element::E4m3.poison(4 * k)),
                scales: bench.buffer(&[f32::NAN; 4]),
                pieces: (k / 8) as u32,
                rows: 4,
            };
            let kernel = format!("quantize_rows_{}", element.name());
            bench.launch(&launch(&kernel, 4), &params).expect("the kernel runs");
            let (got, scales) = (bench.read::<u8>(params.out), bench.read::<f32>(params.scales));
            let stored = element.rounded(&x);
            for (row, &scale) in scales[..3].iter().enumerate() {
                let of_row = row * k..(row + 1) * k;
                let exact: Vec<f32> = stored[of_row.clone()].iter().map(|&x| x as f32).collect();
                let mut want = vec![0; k];
                assert_eq!(fp8::quantize_row(&exact, &mut want), scale, "row {row}");
                assert_eq!(got[of_row], want, "{element:?}, row {row} of {k}");
            }
            assert!(scales[3].is_nan(), "{}", scales[3]);
        }
    }
}

pub(super) fn weights_in_e4m3_are_widened<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for (weight, k) in [(Weight::OfRows, 48), (Weight::OfRuns, 272)] {
            let w = numbers(2, 5 * k);
            let (bytes, scales) = weight.stored(element, &w, k);
            bench.clear();
            let params = WidenWeight {
                w: bench.buffer(&bytes),
                scales: bench.buffer(&scales),
                out: bench.buffer(&element.poison(5 * k)),
                pieces: (k / 16) as u32,
                rows: 5,
                runs: weight.runs(k) as u32,
                padding: 0,
            };
            let kernel = format!("widen_weight_{}", element.name());
            bench.launch(&launch(&kernel, 2), &params).expect("the kernel runs");
            let got = element.decode(&bench.read(params.out));
            let meant: Vec<f32> =
                weight.meant(element, &w, k).into_iter().map(|x| x as f32).collect();
            assert_eq!(got, element.rounded(&meant), "{element:?}, {weight:?}");
        }
    }
}

pub(super) fn sums_are_scaled_by_row_and_output<D: Driver>(bench: &mut Bench<D>) {
    const ROWS: usize = 5;
    const COLS: usize = 48;
    const N: usize = 80;
    const FIRST: usize = 16;
    let (sums, of_rows, of_outputs) = (numbers(1, ROWS * COLS), numbers(2, ROWS), numbers(3, N));
    let old = numbers(4, ROWS * N);
    for element in Element::ACTIVATIONS {
        for adds in [false, true] {
            bench.clear();
            let params = ScaleSums {
                sums: bench.buffer(&sums),
                row_scales: bench.buffer(&of_rows),
                col_scales: bench.buffer(&of_outputs),
                out: bench.buffer(&element.encode(&old)),
                rows: ROWS as u32,
                cols: COLS as u32,
                first: FIRST as u32,
                n: N as u32,
                adds: u32::from(adds),
                padding: 0,
            };
            let kernel = format!("scale_sums_{}", element.name());
            bench.launch(&launch(&kernel, 2), &params).expect("the kernel runs");
            let got = element.decode(&bench.read(params.out));
            let mut want = element.rounded(&old);
            for (i, sum) in sums.iter().enumerate() {
                let (row, column) = (i / COLS, FIRST + i % COLS);
                let to = &mut want[row * N + column];
                let scaled = f64::from(*sum) * f64::from(of_rows[row] * of_outputs[column]);
                *to = if adds { *to + scaled } else { scaled };
            }
            let epsilon = element.epsilon() * 1.01;
            assert_close("sums", &got, &want, |want| want.abs() * epsilon + 1e-6);
        }
    }
}

/// Outputs and inputs of products by the whole backend, and rows.
const N: usize = 96;
const K: usize = 272;
const ROWS: [usize; 3] = [2, 6, 40];
const LIMITS: StepLimits =
    StepLimits { max_num_batched_tokens: 40, max_num_seqs: 2, max_model_len: 40 };

/// A tensor's rows.
fn rows_of(tensor: &Tensor) -> Vec<Vec<f64>> {
    let tensor = tensor.to_dtype(DType::F64).expect("numbers");
    tensor.to_vec2().expect("a matrix")
}

/// A backend with rows of activations.
struct Rows<D: Driver> {
    cuda: Cuda<D>,
    x: <Cuda<D> as sconce_kernels::Device>::Buffer,
    numbers: Vec<Vec<f64>>,
}

impl<D: Driver> Rows<D> {
    fn new(driver: D, dtype: Dtype) -> Self {
        let mut cuda = Cuda::new(driver, dtype, LIMITS).expect("the backend");
        let params = AttentionParams {
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 64,
            scale: 1.0,
            mask: Mask::Causal,
            soft_cap: None,
        };
        let cache = if dtype == Dtype::F16 { CacheDtype::F16 } else { CacheDtype::Bf16 };
        let layout = KvLayout::uniform(1, 3, (1, 64), cache);
        let mut cache = cuda.kv_cache(&layout, &LIMITS).expect("room");
        let mut step = cuda.step(&LIMITS, &[AttentionKind { params, group: 0 }]).expect("room");
        let mut plan = StepPlan::new(1);
        plan.push(0, &(0..40).collect::<Vec<_>>(), 0, &[&[0, 1, 2]]);
        cuda.stage(&plan, &mut step, &mut cache).expect("it fits");
        let numbers = tensor(1, &[40, K]);
        let table = cuda.matrix(std::slice::from_ref(&numbers), dtype.into()).expect("room");
        let mut x = cuda.buffer(40, K).expect("room");
        cuda.embedding_gather(&step, &table, 1.0, &mut x).expect("rows of a table");
        Self { cuda, x, numbers: rows_of(&numbers) }
    }

    /// Stored, added to that, and gated, by a form, beside the reference.
    fn check(
        &mut self,
        w: &CudaMatrix<D::Memory>,
        weight: &Fp8Weight,
        (rows, form): (usize, ProductForm),
    ) {
        let Self { cuda, x, numbers } = self;
        cuda.use_product_form(Some(form));
        let bias = tensor(3, &[N]);
        let of_bias = cuda.vector(std::slice::from_ref(&bias)).expect("room");
        let bias = bias.to_dtype(DType::F64).and_then(|bias| bias.to_vec1::<f64>());
        let bias = bias.expect("numbers");
        let mut out = cuda.buffer(rows, N).expect("room");
        cuda.linear(rows, x, w, Some(&of_bias), &mut out).expect("a product");
        let stored = cuda.read(&out, rows).expect("it can be read");
        cuda.linear_add(rows, x, w, None, &mut out).expect("a product");
        let added = cuda.read(&out, rows).expect("it can be read");
        let mut gated = cuda.buffer(rows, N / 2).expect("room");
        let (silu, scratch) = (Activation::Silu, Some(&mut out));
        cuda.linear_gated(rows, x, w, None, silu, scratch, &mut gated).expect("a product");
        let gated = cuda.read(&gated, rows).expect("it can be read");
        let meant = rows_of(&weight.to_tensor(DType::F32).expect("numbers")).concat();
        let is_narrow = matches!(form, ProductForm::Fp8(..)) && weight.runs() == 1;
        for (row, x) in numbers.iter().take(rows).enumerate() {
            let x = if is_narrow { quantized(x) } else { x.clone() };
            let sums = reference::linear(&x, &meant, None);
            let what = format!("row {row} of {rows}, {form:?}, {} runs", weight.runs());
            let check = |got: &[f32], want: &[f64], error: f64| {
                let got: Vec<f64> = got.iter().copied().map(f64::from).collect();
                assert_close(&what, &got, want, |want| want.abs() / 64.0 + error);
            };
            // Numbers that are widened are rounded once they are scaled; of 272 products. Gates
            // and what they gate, of order 6, may be rounded too before they are multiplied.
            let (of_sum, of_gated) = (0.06, 0.3);
            let with_bias: Vec<f64> = sums.iter().zip(&bias).map(|(x, bias)| x + bias).collect();
            check(&stored[row * N..][..N], &with_bias, of_sum);
            let twice: Vec<f64> = sums.iter().zip(&with_bias).map(|(x, y)| x + y).collect();
            check(&added[row * N..][..N], &twice, of_sum);
            let (gates, ups) = sums.split_at(N / 2);
            let want = reference::gated(silu, gates, ups);
            check(&gated[row * N / 2..][..N / 2], &want, of_gated);
        }
    }
}

/// A row in e4m3 with a scale.
fn quantized(x: &[f64]) -> Vec<f64> {
    let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let mut bits = vec![0; x.len()];
    let scale = fp8::quantize_row(&x, &mut bits);
    bits.into_iter().map(|bits| f64::from(fp8::widen(bits) * scale)).collect()
}

/// Products with weights in fp8, of few rows and of more, by every form, are the reference's.
///
/// # Panics
/// If they are not.
pub fn products_with_fp8_by_every_form_match_the_reference<D: Driver>(device: impl Fn() -> D) {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let mut of_rows = Rows::new(device(), dtype);
        let numbers = tensor(2, &[N, K]);
        let by_row = Fp8Weight::quantize(&numbers).expect("numbers");
        let scales = (0..N * 3).map(|i| 0.0005 * (1 + i % 5) as f32).collect();
        let by_run = Fp8Weight { scales, ..by_row.clone() };
        let loaded = of_rows.cuda.matrix(&[numbers], WeightDtype::Fp8E4m3).expect("room");
        let stored = of_rows.cuda.fp8_matrix(std::slice::from_ref(&by_run)).expect("room");
        assert_eq!(of_rows.cuda.matrix_bytes(&loaded), N * K + 4 * N);
        assert_eq!(of_rows.cuda.matrix_bytes(&stored), N * K + 12 * N);
        for form in [
            ProductForm::FewRows(GemvForm::DEFAULT),
            ProductForm::Fp8(Fp8Scaling::Library, 0),
            ProductForm::Fp8(Fp8Scaling::Own, 0),
            ProductForm::Library,
        ] {
            for rows in ROWS {
                of_rows.check(&loaded, &by_row, (rows, form));
                of_rows.check(&stored, &by_run, (rows, form));
            }
        }
    }
}
