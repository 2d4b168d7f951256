//! Products of few rows.

use sconce_kernels::{
    Activation,
    cuda::{DevicePointer, Driver, Gemv, GemvForm, Launch, RopeEnd, Skinny, SkinnyPlan},
    reference,
};

use super::{
    element::{Element, assert_close, numbers},
    fp8::Weight,
};
use crate::Bench;

/// A kernel and how it is launched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Gemv(GemvForm),
    /// Tiles side by side, and units of a panel.
    Skinny(usize, usize),
}

impl From<GemvForm> for Form {
    fn from(form: GemvForm) -> Self {
        Self::Gemv(form)
    }
}

/// Every form of `gemv.cu` that there is for so many rows, in blocks of two warps.
fn forms(element: Element, rows: usize) -> Vec<GemvForm> {
    let all: &[(u32, u32, u32)] = match (element, rows) {
        (Element::Bf16, 1) => &[(2, 4, 1), (1, 8, 1), (2, 4, 2), (1, 8, 2)],
        (Element::Bf16, 2) => &[(2, 4, 1), (1, 8, 1)],
        _ => &[(2, 4, 1)],
    };
    let form = |&(rows, ahead, blocks)| GemvForm { rows, ahead, threads: 64, blocks };
    all.iter().map(form).collect()
}

/// A product of some rows, and what it is told.
struct Case {
    element: Element,
    rows: usize,
    n: usize,
    k: usize,
    epilogue: u32,
    has_bias: bool,
    has_norm: bool,
    grid: u32,
    weight: Weight,
}

const EPS: f32 = 1e-5;

/// A product whose operands are on a device.
pub(super) struct Placed {
    pub(super) element: Element,
    pub(super) weight: Weight,
    /// Rows, outputs, inputs.
    pub(super) sizes: (usize, usize, usize),
    pub(super) grid: u32,
    pub(super) x: DevicePointer,
    pub(super) w: DevicePointer,
    pub(super) scales: DevicePointer,
    pub(super) bias: DevicePointer,
    pub(super) norm: DevicePointer,
    pub(super) out: DevicePointer,
    pub(super) epilogue: u32,
    pub(super) rope: RopeEnd,
}

impl Placed {
    pub(super) fn launch<D: Driver>(&self, bench: &mut Bench<D>, form: Form) {
        let &Self { element, weight, sizes: (rows, n, k), x, w, scales, bias, norm, out, .. } =
            self;
        let &Self { epilogue, rope, grid, .. } = self;
        let types = weight.names(element);
        let grid = [grid, 1];
        match form {
            Form::Gemv(form) => {
                let params = Gemv {
                    x,
                    w,
                    scales,
                    bias,
                    norm,
                    out,
                    n: n as u32,
                    k: k as u32,
                    epilogue,
                    runs: weight.runs(k) as u32,
                    eps: EPS,
                    padding: 0,
                    rope,
                };
                let GemvForm { rows: r, ahead, threads, blocks } = form;
                let end = if blocks == 2 { "_b2" } else { "" };
                let kernel = format!("gemv_{types}_m{rows}_r{r}_u{ahead}{end}");
                let shared_bytes = form.shared_bytes(rows, k, weight.element_bytes());
                let launch = Launch { file: "gemv", kernel: &kernel, grid, threads, shared_bytes };
                bench.launch(&launch, &params)
            }
            Form::Skinny(tiles, panel) => {
                let groups = rows.div_ceil(8);
                let params = Skinny {
                    x,
                    w,
                    bias,
                    norm,
                    out,
                    n: n as u32,
                    k: k as u32,
                    rows: rows as u32,
                    epilogue,
                    panel: panel as u32,
                    eps: EPS,
                    rope,
                };
                let kernel = format!("skinny_{types}_g{groups}_t{tiles}");
                let shared_bytes = SkinnyPlan::shared_bytes(groups, tiles, panel);
                let threads = SkinnyPlan::THREADS;
                let launch =
                    Launch { file: "skinny", kernel: &kernel, grid, threads, shared_bytes };
                bench.launch(&launch, &params)
            }
        }
        .expect("the kernel runs");
    }
}

impl Case {
    fn x(&self) -> Vec<f32> {
        numbers(1, self.rows * self.k)
    }

    fn w(&self) -> Vec<f32> {
        numbers(2, self.n * self.k)
    }

    fn bias(&self) -> Vec<f32> {
        numbers(3, self.n)
    }

    fn norm(&self) -> Vec<f32> {
        numbers(4, self.k)
    }

    fn is_gated(&self) -> bool {
        self.epilogue >= Gemv::SILU
    }

    fn outputs(&self) -> usize {
        if self.is_gated() { self.n / 2 } else { self.n }
    }

    /// What `out` holds before.
    fn old(&self) -> Vec<f32> {
        numbers(5, self.rows * self.outputs())
    }

    /// What the kernel leaves for the rows from one on, in bytes.
    fn run<D: Driver>(&self, bench: &mut Bench<D>, form: Form, first: usize) -> Vec<u8> {
        let &Self { element, n, k, epilogue, .. } = self;
        let rows = self.rows - first;
        let of_rows = first * self.outputs();
        let out = match epilogue {
            Gemv::STORE_F32 => vec![0xff; rows * n * 4],
            Gemv::ADD => element.encode(&self.old()[of_rows..]),
            _ => element.poison(rows * self.outputs()),
        };
        bench.clear();
        let mut given = |is: bool, numbers: Vec<f32>| {
            if is { bench.buffer(&numbers) } else { DevicePointer::NULL }
        };
        let (bias, norm) = (given(self.has_bias, self.bias()), given(self.has_norm, self.norm()));
        let (weight, scales) = self.weight.stored(element, &self.w(), k);
        let x = bench.buffer(&element.encode(&self.x()[first * k..]));
        let (w, out) = (bench.buffer(&weight), bench.buffer(&out));
        let scales = if scales.is_empty() { DevicePointer::NULL } else { bench.buffer(&scales) };
        let placed = Placed {
            element,
            weight: self.weight,
            sizes: (rows, n, k),
            grid: self.grid,
            x,
            w,
            scales,
            bias,
            norm,
            out,
            epilogue,
            rope: RopeEnd::default(),
        };
        placed.launch(bench, form);
        bench.read(out)
    }

    fn want(&self) -> Vec<f64> {
        let &Self { element, n, k, .. } = self;
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let (w, bias) = (self.weight.meant(element, &self.w(), k), wide(self.bias()));
        let (norm, old) = (wide(self.norm()), element.rounded(&self.old()));
        let mut want = Vec::new();
        for x in element.rounded(&self.x()).chunks_exact(k) {
            let x = if self.has_norm {
                let normed = reference::rms_norm(x, &norm, f64::from(EPS));
                let narrow: Vec<f32> = normed.into_iter().map(|x| x as f32).collect();
                element.rounded(&narrow)
            } else {
                x.to_vec()
            };
            let sums = reference::linear(&x, &w, self.has_bias.then_some(&bias));
            let (gate, up) = sums.split_at(n / 2);
            match self.epilogue {
                Gemv::SILU => want.extend(reference::gated(Activation::Silu, gate, up)),
                Gemv::GELU => want.extend(reference::gated(Activation::GeluTanh, gate, up)),
                _ => want.extend(sums),
            }
        }
        if self.epilogue == Gemv::ADD {
            want.iter_mut().zip(old).for_each(|(want, old)| *want += old);
        }
        want
    }

    fn check<D: Driver>(&self, bench: &mut Bench<D>, form: impl Into<Form>) {
        let form = form.into();
        let &Self { element, rows, n, k, epilogue, .. } = self;
        let bytes = self.run(bench, form, 0);
        let (got, epsilon) = if epilogue == Gemv::STORE_F32 {
            let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            (floats.into_iter().map(f64::from).collect(), 1e-6)
        } else {
            (element.decode(&bytes), element.epsilon())
        };
        let weight = self.weight;
        let what = format!(
            "{rows} rows, {n} x {k}, {element:?}, {weight:?}, {form:?}, epilogue {epilogue}"
        );
        // Some elements of a normed row may be the neighbours of the reference's.
        let normed = if self.has_norm { element.epsilon() * 8.0 } else { 0.0 };
        let sums = (k as f64) * 1e-7 + normed;
        assert_close(&what, &got, &self.want(), |want| want.abs() * epsilon * 1.01 + sums);
    }
}

/// Outputs and inputs that are no multiples of what a warp takes at a time, more tasks than
/// warps, more warps than tasks.
const SHAPES: [(usize, usize, u32); 4] = [(38, 8, 2), (6, 1032, 3), (22, 2056, 2), (4, 4096, 1)];

pub(super) fn products_of_few_rows_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for (index, (n, k, grid)) in SHAPES.into_iter().enumerate() {
            for rows in 1..=Gemv::MAX_ROWS {
                let epilogue = match (rows + index) % 3 {
                    0 => Gemv::STORE,
                    1 => Gemv::ADD,
                    _ => Gemv::STORE_F32,
                };
                let (has_bias, has_norm) = ((rows + index) % 2 == 0, false);
                let weight = Weight::Plain;
                let case = Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
                forms(element, rows).into_iter().for_each(|form| case.check(bench, form));
            }
        }
    }
}

pub(super) fn gated_products_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for (index, (n, k, grid)) in SHAPES.into_iter().enumerate() {
            for rows in [1, 1 + index] {
                let epilogue = if index % 2 == 0 { Gemv::SILU } else { Gemv::GELU };
                let (has_bias, has_norm) = (index > 1, index == 3);
                let weight = Weight::Plain;
                let case = Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
                let fit = forms(element, rows).into_iter().filter(|form| form.rows > 1);
                fit.for_each(|form| case.check(bench, form));
            }
        }
    }
}

pub(super) fn normed_products_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for rows in 1..=Gemv::MAX_ROWS {
            let (n, k, grid) = SHAPES[rows - 1];
            let (epilogue, has_bias, has_norm) = (Gemv::STORE, false, true);
            let weight = Weight::Plain;
            let case = Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
            case.check(bench, forms(element, rows)[0]);
        }
    }
}

/// Fewer units than warps and more, one panel and several, tiles that no task has, more tasks than
/// blocks and more blocks than tasks: outputs, inputs, grid, units of a panel.
const SKINNY_SHAPES: [(usize, usize, u32, usize); 4] =
    [(32, 64, 3, 1), (96, 192, 1, 3), (64, 1088, 2, 17), (160, 2112, 2, 16)];

pub(super) fn skinny_products_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    const EPILOGUES: [u32; 5] = [Gemv::STORE, Gemv::ADD, Gemv::STORE_F32, Gemv::SILU, Gemv::GELU];
    let mut index = 0;
    for element in Element::ACTIVATIONS {
        for (n, k, grid, panel) in SKINNY_SHAPES {
            for rows in [2, 7, 8, 9, 16] {
                let epilogue = EPILOGUES[index % EPILOGUES.len()];
                let tiles = if epilogue >= Gemv::SILU { 2 } else { 1 + index / 2 % 3 };
                let (has_bias, has_norm) = (index % 3 == 0, index % 4 == 0 && panel * 64 == k);
                let weight = Weight::Plain;
                let case = Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
                case.check(bench, Form::Skinny(tiles, panel));
                index += 1;
            }
            // So that every shape meets every outcome.
            index += 1;
        }
    }
}

/// Nor on the tiles, the panels or the grid.
pub(super) fn a_skinny_products_bits_do_not_depend_on_its_rows<D: Driver>(bench: &mut Bench<D>) {
    let (element, epilogue, has_bias, has_norm) = (Element::Bf16, Gemv::STORE_F32, true, false);
    let (rows, n, k, weight) = (11, 48, 2112, Weight::Plain);
    let case = |grid| Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
    let want = case(1).run(bench, Form::Skinny(1, 33), 0);
    for (first, tiles, panel) in [(0, 3, 33), (0, 2, 32), (2, 1, 16), (3, 2, 33), (9, 3, 16)] {
        let got = case(2).run(bench, Form::Skinny(tiles, panel), first);
        assert_eq!(got, want[first * n * 4..], "{tiles} tiles, panels of {panel}, from {first}");
    }
}

/// The one form of weights in e4m3, in blocks of two warps.
const OF_FP8: GemvForm = GemvForm { threads: 64, ..GemvForm::DEFAULT };

/// With a scale a row, and with one a run.
pub(super) fn products_of_few_rows_with_fp8_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    const EPILOGUES: [u32; 5] = [Gemv::STORE, Gemv::ADD, Gemv::STORE_F32, Gemv::SILU, Gemv::GELU];
    let mut index = 0;
    for element in Element::ACTIVATIONS {
        for (n, k, grid) in [(38, 16, 2), (6, 1040, 3), (22, 2064, 2), (4, 4096, 1)] {
            for rows in 1..=Gemv::MAX_ROWS {
                let weight = [Weight::OfRows, Weight::OfRuns][index % 2];
                let (has_bias, has_norm) = (index % 3 == 0, index % 4 == 0);
                let epilogue = EPILOGUES[index % EPILOGUES.len()];
                let case = Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
                case.check(bench, OF_FP8);
                index += 1;
            }
        }
    }
}

/// Nor on the grid.
pub(super) fn a_products_bits_with_fp8_do_not_depend_on_its_rows<D: Driver>(bench: &mut Bench<D>) {
    for weight in [Weight::OfRows, Weight::OfRuns] {
        let (epilogue, has_bias, has_norm) = (Gemv::STORE_F32, true, false);
        let (element, rows, n, k) = (Element::Bf16, 4, 10, 1040);
        let case = |grid| Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
        let want = case(1).run(bench, OF_FP8.into(), 0);
        for first in 1..4 {
            let got = case(3).run(bench, OF_FP8.into(), first);
            assert_eq!(got, want[first * 10 * 4..], "{weight:?} from row {first}");
        }
    }
}

/// Nor on the form, nor on the grid.
pub(super) fn a_products_bits_do_not_depend_on_its_rows<D: Driver>(bench: &mut Bench<D>) {
    let element = Element::Bf16;
    let (epilogue, has_bias, has_norm) = (Gemv::STORE_F32, true, true);
    let (rows, n, k, weight) = (4, 10, 1032, Weight::Plain);
    let case = |grid| Case { element, rows, n, k, epilogue, has_bias, has_norm, grid, weight };
    let want = case(1).run(bench, forms(element, 4)[0].into(), 0);
    for first in 0..4 {
        for form in forms(element, 4 - first) {
            let got = case(3).run(bench, form.into(), first);
            assert_eq!(got, want[first * 10 * 4..], "{form:?} from row {first}");
        }
    }
}
