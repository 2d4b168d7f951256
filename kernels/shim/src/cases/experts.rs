//! Routing, and the products of rows with the experts that they go to.

use sconce_kernels::{
    Activation, Routing,
    cuda::{AddExperts, DevicePointer, Driver, ExpertProduct, Launch, Route, SortByExpert},
    reference,
};

use super::{
    element::{Element, assert_close, numbers},
    fp8::Weight,
};
use crate::Bench;

/// A launch of one of these kernels.
fn launch<'a>(file: &'a str, kernel: &'a str, grid: [u32; 2], threads: u32) -> Launch<'a> {
    Launch { file, kernel, grid, threads, shared_bytes: 0 }
}

/// Where a step's routes are.
struct Routes {
    experts: DevicePointer,
    weights: DevicePointer,
    sources: DevicePointer,
    places: DevicePointer,
    starts: DevicePointer,
    choices: u32,
}

fn route<D: Driver>(bench: &mut Bench<D>, routing: Routing, scores: &[f32]) -> Routes {
    let Routing { num_experts, top_k, normalise } = routing;
    let rows = scores.len() / num_experts;
    let choices = vec![u32::MAX; rows * top_k];
    let routes = Routes {
        experts: bench.buffer(&choices),
        weights: bench.buffer(&choices),
        sources: bench.buffer(&choices),
        places: bench.buffer(&choices),
        starts: bench.buffer(&vec![u32::MAX; num_experts + 1]),
        choices: choices.len() as u32,
    };
    let params = Route {
        scores: bench.buffer(scores),
        experts: routes.experts,
        weights: routes.weights,
        rows: rows as u32,
        num_experts: num_experts as u32,
        top_k: top_k as u32,
        normalise: u32::from(normalise),
    };
    let grid = [params.rows.div_ceil(4), 1];
    bench.launch(&launch("route", "route", grid, 128), &params).expect("the kernel runs");
    let params = SortByExpert {
        experts: routes.experts,
        sources: routes.sources,
        places: routes.places,
        starts: routes.starts,
        choices: routes.choices,
        num_experts: num_experts as u32,
        top_k: top_k as u32,
        padding: 0,
    };
    let grid = [params.num_experts.div_ceil(8), 1];
    bench.launch(&launch("route", "sort_by_expert", grid, 256), &params).expect("the kernel runs");
    routes
}

pub(super) fn rows_go_to_their_likeliest_experts<D: Driver>(bench: &mut Bench<D>) {
    for (num_experts, top_k) in [(1, 1), (7, 3), (33, 33), (128, 8), (512, 10)] {
        for normalise in [false, true] {
            let (routing, rows) = (Routing { num_experts, top_k, normalise }, 6);
            let mut scores: Vec<f32> =
                numbers(1, rows * num_experts).iter().map(|x| x * 6.0).collect();
            // Of equal ones the first.
            scores[..num_experts].fill(0.5);
            bench.clear();
            let routes = route(bench, routing, &scores);
            let experts = bench.read::<u32>(routes.experts);
            let weights = bench.read::<f32>(routes.weights);
            let what = format!("{routing:?}");
            for (row, scores) in scores.chunks_exact(num_experts).enumerate() {
                let scores: Vec<f64> = scores.iter().copied().map(f64::from).collect();
                let (want, of_want): (Vec<usize>, Vec<f64>) =
                    reference::route(&scores, routing).into_iter().unzip();
                let of_row = row * top_k..(row + 1) * top_k;
                let got = experts[of_row.clone()].iter().map(|&expert| expert as usize);
                assert!(got.eq(want), "{what}: row {row}");
                let weights: Vec<f64> = weights[of_row].iter().copied().map(f64::from).collect();
                assert_close(&what, &weights, &of_want, |want| want * 1e-5);
            }
            // The choices in the order of experts, those of one in the order of rows.
            let mut order: Vec<usize> = (0..experts.len()).collect();
            order.sort_by_key(|&choice| experts[choice]);
            let sources: Vec<u32> = order.iter().map(|choice| (choice / top_k) as u32).collect();
            assert_eq!(bench.read::<u32>(routes.sources), sources, "{what}");
            let places = bench.read::<u32>(routes.places);
            assert!(order.iter().map(|&choice| places[choice]).eq(0..routes.choices), "{what}");
            let before = |expert| experts.iter().filter(|&&of| (of as usize) < expert).count();
            let starts: Vec<u32> = (0..=num_experts).map(|expert| before(expert) as u32).collect();
            assert_eq!(bench.read::<u32>(routes.starts), starts, "{what}");
        }
    }
}

/// Sizes that are no multiples of a block's.
const HIDDEN: usize = 80;
const INTERMEDIATE: usize = 48;
const ROUTING: Routing = Routing { num_experts: 5, top_k: 2, normalise: true };

/// Inputs of as many rows as a test has, most of which go to one expert and none to another.
struct Inputs {
    x: Vec<f32>,
    scores: Vec<f32>,
    residual: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
}

impl Inputs {
    fn new(rows: usize) -> Self {
        let Routing { num_experts, .. } = ROUTING;
        let mut scores = numbers(3, rows * num_experts);
        for row in scores.chunks_exact_mut(num_experts) {
            row[1] += 1.5;
            row[3] -= 9.0;
        }
        let of_experts = num_experts * HIDDEN * INTERMEDIATE;
        Self {
            x: numbers(2, rows * HIDDEN),
            scores,
            residual: numbers(4, rows * HIDDEN),
            gate_up: numbers(5, 2 * of_experts),
            down: numbers(6, of_experts),
        }
    }
}

/// What the experts' kernels make of the rows from one on, in bytes.
fn added<D: Driver>(
    bench: &mut Bench<D>,
    (element, weight, activation): (Element, Weight, &str),
    inputs: &Inputs,
    first: usize,
) -> Vec<u8> {
    let Routing { num_experts, top_k, .. } = ROUTING;
    let Inputs { x, scores, residual, gate_up, down } = inputs;
    let rows = x.len() / HIDDEN - first;
    bench.clear();
    let routes = route(bench, ROUTING, &scores[first * num_experts..]);
    let choices = rows * top_k;
    let mut stored = |w: &[f32], k| {
        let (bytes, scales) = weight.stored(element, w, k);
        let scales = if scales.is_empty() { DevicePointer::NULL } else { bench.buffer(&scales) };
        (bench.buffer(&bytes), scales)
    };
    let (w, scales) = stored(gate_up, HIDDEN);
    let (down, down_scales) = stored(down, INTERMEDIATE);
    let gated = ExpertProduct {
        x: bench.buffer(&element.encode(&x[first * HIDDEN..])),
        w,
        scales,
        sources: routes.sources,
        starts: routes.starts,
        out: bench.buffer(&element.poison(choices * INTERMEDIATE)),
        num_experts: num_experts as u32,
        n: 2 * INTERMEDIATE as u32,
        k: HIDDEN as u32,
        runs: weight.runs(HIDDEN) as u32,
    };
    let name = format!("experts_{activation}_{}", weight.names(element));
    let grid = ExpertProduct::grid(INTERMEDIATE as u32, true, routes.choices, gated.num_experts);
    bench.launch(&launch("experts", &name, grid, 128), &gated).expect("the kernel runs");
    let back = ExpertProduct {
        x: gated.out,
        w: down,
        scales: down_scales,
        sources: DevicePointer::NULL,
        out: bench.buffer(&element.poison(choices * HIDDEN)),
        n: HIDDEN as u32,
        k: INTERMEDIATE as u32,
        runs: weight.runs(INTERMEDIATE) as u32,
        ..gated
    };
    let name = format!("experts_{}", weight.names(element));
    let grid = ExpertProduct::grid(HIDDEN as u32, false, routes.choices, gated.num_experts);
    bench.launch(&launch("experts", &name, grid, 128), &back).expect("the kernel runs");
    let add = AddExperts {
        x: back.out,
        weights: routes.weights,
        places: routes.places,
        out: bench.buffer(&element.encode(&residual[first * HIDDEN..])),
        pieces: (HIDDEN / 8) as u32,
        rows: rows as u32,
        top_k: top_k as u32,
        padding: 0,
    };
    let name = format!("add_experts_{}", element.name());
    bench.launch(&launch("experts", &name, [1, 1], 32), &add).expect("the kernel runs");
    bench.read(add.out)
}

pub(super) fn experts_add_what_the_reference_says<D: Driver>(bench: &mut Bench<D>) {
    experts_add(
        bench,
        Weight::Plain,
        &[("silu", Activation::Silu), ("gelu", Activation::GeluTanh)],
    );
}

pub(super) fn experts_in_fp8_add_what_the_reference_says<D: Driver>(bench: &mut Bench<D>) {
    experts_add(bench, Weight::OfRows, &[("silu", Activation::Silu)]);
    experts_add(bench, Weight::OfRuns, &[("silu", Activation::Silu)]);
}

fn experts_add<D: Driver>(
    bench: &mut Bench<D>,
    weight: Weight,
    activations: &[(&str, Activation)],
) {
    for element in Element::ACTIVATIONS {
        for &(name, activation) in activations {
            for rows in [1, 40] {
                let inputs = Inputs::new(rows);
                let got = element.decode(&added(bench, (element, weight, name), &inputs, 0));
                let [x, residual] = [&inputs.x, &inputs.residual].map(|x| element.rounded(x));
                let gate_up = weight.meant(element, &inputs.gate_up, HIDDEN);
                let down = weight.meant(element, &inputs.down, INTERMEDIATE);
                let scores: Vec<f64> = inputs.scores.iter().copied().map(f64::from).collect();
                let mut want = Vec::new();
                for (row, x) in x.chunks_exact(HIDDEN).enumerate() {
                    let scores = &scores[row * ROUTING.num_experts..][..ROUTING.num_experts];
                    let chosen = reference::route(scores, ROUTING);
                    let weights = (&*gate_up, &*down);
                    want.extend(reference::experts(x, &chosen, weights, INTERMEDIATE, activation));
                }
                want.iter_mut().zip(residual).for_each(|(want, residual)| *want += residual);
                // Gated units, outputs and their sum are each rounded once, and weights in fp8
                // once they are scaled; outputs are of order 30, with scales of up to 1.5 more.
                let order = if weight == Weight::Plain { 60.0 } else { 200.0 };
                assert_close(name, &got, &want, |want| (want.abs() + order) * element.epsilon());
            }
        }
    }
}

pub(super) fn a_rows_bits_are_its_own_among_experts<D: Driver>(bench: &mut Bench<D>) {
    let inputs = Inputs::new(70);
    for element in Element::ACTIVATIONS {
        let plain = (element, Weight::Plain, "silu");
        let all = added(bench, plain, &inputs, 0);
        for first in [1, 31, 69] {
            let some = added(bench, plain, &inputs, first);
            assert_eq!(some, all[first * HIDDEN * 2..], "{element:?} from row {first}");
        }
    }
}
