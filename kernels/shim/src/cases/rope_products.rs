//! Q, K and V that are rotated in the launch of their product, beside two launches for it, each of
//! which is held against its reference elsewhere.

use sconce_kernels::cuda::{DevicePointer, Driver, Gemv, GemvForm, Launch, RopeAndCache, RopeEnd};

use super::{
    element::{Element, numbers},
    fp8::Weight,
    products::{Form, Placed},
};
use crate::Bench;

/// A product, and what it is computed by.
#[derive(Clone, Copy, Debug)]
struct Case {
    element: Element,
    cache_element: Element,
    weight: Weight,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    k: usize,
    rows: usize,
    has_bias: bool,
    has_norm: bool,
    /// By `skinny.cu`.
    is_skinny: bool,
}

const NUM_BLOCKS: usize = 3;
const MAX_POSITIONS: usize = 40;
const NOWHERE: u32 = u32::MAX;

impl Case {
    fn heads(&self) -> usize {
        self.num_heads + 2 * self.num_kv_heads
    }

    fn cache_len(&self) -> usize {
        NUM_BLOCKS * 2 * self.num_kv_heads * 16 * self.head_dim
    }

    /// What is left of Q, of each row, and of the cache.
    fn run<D: Driver>(&self, bench: &mut Bench<D>, in_one: bool) -> (Vec<u8>, Vec<u8>) {
        let &Self { element, cache_element, weight, head_dim, k, rows, .. } = self;
        let n = self.heads() * head_dim;
        bench.clear();
        let mut given = |is: bool, numbers: Vec<f32>| {
            if is { bench.buffer(&numbers) } else { DevicePointer::NULL }
        };
        let (bias, norm) =
            (given(self.has_bias, numbers(3, n)), given(self.has_norm, numbers(4, k)));
        let (bits, scales) = weight.stored(element, &numbers(2, n * k), k);
        let (w, x) = (bench.buffer(&bits), bench.buffer(&element.encode(&numbers(1, rows * k))));
        let scales = if scales.is_empty() { DevicePointer::NULL } else { bench.buffer(&scales) };
        let out = bench.buffer(&element.poison(rows * n));
        let positions: Vec<u32> = (0..rows).map(|row| (row * 7 % MAX_POSITIONS) as u32).collect();
        // No two the same; the third row is a padded one.
        let slot =
            |row: usize| if row == 2 { NOWHERE } else { (row * 5 % (NUM_BLOCKS * 16)) as u32 };
        let slots: Vec<u32> = (0..rows).map(slot).collect();
        let (k_scale, v_scale) =
            if cache_element == Element::E4m3 { (0.01, 0.02) } else { (1.0, 1.0) };
        let end = RopeEnd {
            table: bench.buffer(&numbers(5, MAX_POSITIONS * head_dim)),
            positions: bench.buffer(&positions),
            slot_mapping: bench.buffer(&slots),
            cache: bench.buffer(&cache_element.poison(self.cache_len())),
            num_heads: self.num_heads as u32,
            num_kv_heads: self.num_kv_heads as u32,
            head_dim: head_dim as u32,
            is_e4m3: u32::from(cache_element == Element::E4m3),
            k_scale,
            v_scale,
        };
        let (epilogue, rope) =
            if in_one { (Gemv::ROPE, end) } else { (Gemv::STORE, RopeEnd::default()) };
        let placed = Placed {
            element,
            weight,
            sizes: (rows, n, k),
            grid: 2,
            x,
            w,
            scales,
            bias,
            norm,
            out,
            epilogue,
            rope,
        };
        let form = if self.is_skinny {
            Form::Skinny(2, k / 64)
        } else {
            Form::Gemv(GemvForm { threads: 64, ..GemvForm::DEFAULT })
        };
        placed.launch(bench, form);
        if !in_one {
            let params = RopeAndCache {
                qkv: out,
                rope: end.table,
                positions: end.positions,
                slot_mapping: end.slot_mapping,
                q_norm: DevicePointer::NULL,
                k_norm: DevicePointer::NULL,
                cache: end.cache,
                num_heads: end.num_heads,
                num_kv_heads: end.num_kv_heads,
                head_dim: end.head_dim,
                eps: 0.0,
                k_scale,
                v_scale,
            };
            let mut kernel = format!("rope_and_cache_{}", element.name());
            if cache_element != element {
                kernel = format!("{kernel}_{}", cache_element.name());
            }
            let grid = RopeAndCache::grid(rows as u32, self.heads() as u32, head_dim as u32);
            let (file, threads) = ("rope_and_cache", RopeAndCache::THREADS);
            let launch = Launch { file, kernel: &kernel, grid, threads, shared_bytes: 0 };
            bench.launch(&launch, &params).expect("the rotation runs");
        }
        let all: Vec<u8> = bench.read(out);
        let of_row = self.heads() * head_dim * element.size();
        let of_queries = self.num_heads * head_dim * element.size();
        let queries =
            all.chunks_exact(of_row).flat_map(|row| &row[..of_queries]).copied().collect();
        (queries, bench.read(end.cache))
    }
}

/// Heads of every size, of every cache, by products of one to sixteen rows.
pub(super) fn products_that_rotate_give_what_two_launches_do<D: Driver>(bench: &mut Bench<D>) {
    let mut index = 0;
    for element in Element::ACTIVATIONS {
        for head_dim in [64, 80, 96, 128, 256] {
            for rows in [1, 2, 3, 4, 8, 16] {
                let is_skinny = rows > Gemv::MAX_ROWS || index % 3 == 2 && rows > 1;
                let weights = [Weight::Plain, Weight::OfRows, Weight::OfRuns];
                let case = Case {
                    element,
                    cache_element: if index % 2 == 0 { element } else { Element::E4m3 },
                    weight: if is_skinny { Weight::Plain } else { weights[index / 2 % 3] },
                    num_heads: 1 + index % 3,
                    num_kv_heads: 1 + index % 2,
                    head_dim,
                    k: [64, 192, 320][index % 3],
                    rows,
                    has_bias: index % 4 < 2,
                    has_norm: index % 5 < 3,
                    is_skinny,
                };
                index += 1;
                // A tile is of one half of a head; four rows in e4m3 have no such launch.
                let is_narrow = case.weight != Weight::Plain;
                if (is_skinny && head_dim == 80) || (is_narrow && rows == Gemv::MAX_ROWS) {
                    continue;
                }
                let (in_one, in_two) = (case.run(bench, true), case.run(bench, false));
                assert!(in_one.0 == in_two.0, "{case:?}: other queries");
                assert!(in_one.1 == in_two.1, "{case:?}: other keys or values");
                let poison = case.cache_element.poison(case.cache_len());
                assert!(in_one.1 != poison, "{case:?}: nothing was written");
            }
        }
    }
}
