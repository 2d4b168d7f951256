//! Gather, norm, gated activations, caps, RoPE with the cache's write, block copies.

use sconce_kernels::{
    Activation, StepPlan,
    cuda::{
        AddBias, CopyBlocks, DevicePointer, Driver, EmbeddingGather, EntryEdit, Gated, Launch,
        RmsNorm, RopeAndCache, SoftCap, TableEdits,
    },
    reference,
};

use super::element::{Element, assert_close, numbers};
use crate::Bench;

fn launch<'a>(file: &'a str, kernel: &'a str, grid: [u32; 2], threads: u32) -> Launch<'a> {
    Launch { file, kernel, grid, threads, shared_bytes: 0 }
}

pub(super) fn embedding_gather_copies_the_tokens_rows<D: Driver>(bench: &mut Bench<D>) {
    let (vocab, hidden) = (11_usize, 24_usize);
    let table: Vec<u16> = (0..vocab * hidden).map(|i| i as u16).collect();
    // Two rows have what slots sampled last.
    let given = [10_u32, StepPlan::LAST_SAMPLED, 3, 3, StepPlan::LAST_SAMPLED | 2];
    let (last_sampled, tokens) = ([5_u32, 7, 9, 2], [10_u32, 5, 3, 3, 9]);
    bench.clear();
    let params = EmbeddingGather {
        token_ids: bench.buffer(&given),
        table: bench.buffer(&table),
        out: bench.buffer(&vec![u16::MAX; tokens.len() * hidden]),
        last_sampled: bench.buffer(&last_sampled),
        pieces: (hidden * 2 / 16) as u32,
        scale: 1.0,
    };
    let grid = [tokens.len() as u32, 1];
    let copies = launch("embedding_gather", "embedding_gather", grid, 256);
    bench.launch(&copies, &params).expect("the kernel runs");
    let want: Vec<u16> = tokens
        .iter()
        .flat_map(|&token| table[token as usize * hidden..][..hidden].to_vec())
        .collect();
    assert_eq!(bench.read::<u16>(params.out), want);
}

/// By a factor that its type rounds, as it rounds what comes out.
pub(super) fn embedding_scaled_multiplies_the_tokens_rows<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        // More pieces than a block has threads.
        let (vocab, hidden, scale) = (5, 2056, 640_f32.sqrt());
        let table = numbers(1, vocab * hidden);
        let tokens = [4_u32, 0, 4];
        bench.clear();
        let params = EmbeddingGather {
            token_ids: bench.buffer(&tokens),
            table: bench.buffer(&element.encode(&table)),
            out: bench.buffer(&element.poison(tokens.len() * hidden)),
            last_sampled: DevicePointer::NULL,
            pieces: (hidden / 8) as u32,
            scale,
        };
        let kernel = format!("embedding_scaled_{}", element.name());
        let grid = [tokens.len() as u32, 1];
        bench
            .launch(&launch("embedding_gather", &kernel, grid, 256), &params)
            .expect("the kernel runs");
        let rounded_scale = element.rounded(&[scale])[0];
        let table = element.rounded(&table);
        let rows = tokens.iter().flat_map(|&token| &table[token as usize * hidden..][..hidden]);
        let want: Vec<f64> = rows.map(|x| x * rounded_scale).collect();
        let got = element.decode(&bench.read(params.out));
        assert_close(&kernel, &got, &want, |want| want.abs() * element.epsilon() * 1.01);
    }
}

pub(super) fn rms_norm_norms_each_row<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for (rows, hidden) in [(1, 8), (5, 576), (3, 4096), (3, 8192), (1, 16384)] {
            rms_norm_case(bench, element, (rows, hidden), None);
        }
    }
}

pub(super) fn rms_norm_add_adds_each_normed_row<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for (rows, hidden) in [(5, 640), (3, 4096), (3, 5376), (1, 16384)] {
            let residual = numbers(7, rows * hidden);
            rms_norm_case(bench, element, (rows, hidden), Some(&residual));
        }
    }
}

/// A norm, on top of a residual where there is one.
fn rms_norm_case<D: Driver>(
    bench: &mut Bench<D>,
    element: Element,
    (rows, hidden): (usize, usize),
    residual: Option<&[f32]>,
) {
    let x = numbers(1, rows * hidden);
    let weight = numbers(3, hidden);
    let out = residual.map_or(element.poison(rows * hidden), |x| element.encode(x));
    bench.clear();
    let params = RmsNorm {
        x: bench.buffer(&element.encode(&x)),
        weight: bench.buffer(&weight),
        out: bench.buffer(&out),
        hidden: hidden as u32,
        eps: 1e-5,
        rows: rows as u32,
        padding: 0,
    };
    let add = if residual.is_some() { "_add" } else { "" };
    let wide = if hidden > RmsNorm::NARROW { "_wide" } else { "" };
    let kernel = format!("rms_norm{add}{wide}_{}", element.name());
    // Some blocks have more rows than others.
    let grid = [rows.div_ceil(2) as u32, 1];
    bench.launch(&launch("rms_norm", &kernel, grid, 256), &params).expect("the kernel runs");
    let weight: Vec<f64> = weight.into_iter().map(f64::from).collect();
    let mut want: Vec<f64> = element
        .rounded(&x)
        .chunks_exact(hidden)
        .flat_map(|row| reference::rms_norm(row, &weight, 1e-5))
        .collect();
    if let Some(residual) = residual {
        want.iter_mut().zip(element.rounded(residual)).for_each(|(want, x)| *want += x);
    }
    let got = element.decode(&bench.read(params.out));
    assert_close(&kernel, &got, &want, |want| want.abs() * element.epsilon() * 1.01 + 1e-6);
}

/// By fewer threads than there are logits.
pub(super) fn soft_cap_bounds_every_logit<D: Driver>(bench: &mut Bench<D>) {
    let mut logits: Vec<f32> = numbers(8, 1001).iter().map(|x| x * 60.0).collect();
    logits.extend([0.0, 1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY, 1e-20, 1e-3]);
    bench.clear();
    let params = SoftCap { x: bench.buffer(&logits), elements: logits.len() as u32, cap: 30.0 };
    bench.launch(&launch("soft_cap", "soft_cap", [3, 1], 32), &params).expect("the kernel runs");
    let wide: Vec<f64> = logits.into_iter().map(f64::from).collect();
    let got: Vec<f64> = bench.read::<f32>(params.x).into_iter().map(f64::from).collect();
    assert_close("soft_cap", &got, &reference::soft_cap(&wide, 30.0), |want| want.abs() * 4e-7);
}

/// More edits than a block has threads; every other entry stays as it is.
pub(super) fn table_edits_change_their_entries<D: Driver>(bench: &mut Bench<D>) {
    let tables: Vec<u32> = (0..1000).collect();
    // 7 is prime to the length: no entry comes twice.
    let edits: Vec<EntryEdit> =
        (0..300).map(|i| EntryEdit { entry: i * 7 % 1000, block: 5000 + i }).collect();
    bench.clear();
    let params = TableEdits {
        edits: bench.buffer(&edits),
        tables: bench.buffer(&tables),
        num_edits: edits.len() as u32,
        padding: 0,
    };
    bench.launch(&TableEdits::launch(params.num_edits), &params).expect("the kernel runs");
    let mut want = tables;
    edits.iter().for_each(|edit| want[edit.entry as usize] = edit.block);
    assert_eq!(bench.read::<u32>(params.tables), want);
}

pub(super) fn gates_are_silu_or_gelu<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for (act, activation) in [("silu", Activation::Silu), ("gelu", Activation::GeluTanh)] {
            let (rows, intermediate) = (5, 40);
            let x: Vec<f32> = numbers(4, rows * 2 * intermediate).iter().map(|x| x * 9.0).collect();
            bench.clear();
            let params = Gated {
                x: bench.buffer(&element.encode(&x)),
                out: bench.buffer(&element.poison(rows * intermediate)),
                pieces: (intermediate / 8) as u32,
                rows: rows as u32,
            };
            let kernel = format!("{act}_mul_{}", element.name());
            // Fewer threads than pieces in all, so that some take two.
            bench.launch(&launch("gated", &kernel, [1, 1], 16), &params).expect("the kernel runs");
            let x = element.rounded(&x);
            let want: Vec<f64> = x
                .chunks_exact(2 * intermediate)
                .flat_map(|row| {
                    let (gate, up) = row.split_at(intermediate);
                    reference::gated(activation, gate, up)
                })
                .collect();
            let got = element.decode(&bench.read(params.out));
            assert_close(&kernel, &got, &want, |want| want.abs() * element.epsilon() * 1.01 + 1e-5);
        }
    }
}

/// Biases are added to every row, by fewer threads than there are pieces.
pub(super) fn add_bias_adds_to_every_row<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        let (rows, cols) = (5, 40);
        let (x, bias) = (numbers(4, rows * cols), numbers(5, cols));
        bench.clear();
        let params = AddBias {
            bias: bench.buffer(&bias),
            x: bench.buffer(&element.encode(&x)),
            pieces: (cols / 8) as u32,
            rows: rows as u32,
        };
        let kernel = format!("add_bias_{}", element.name());
        bench.launch(&launch("add_bias", &kernel, [1, 1], 16), &params).expect("the kernel runs");
        let want: Vec<f64> = element
            .rounded(&x)
            .chunks_exact(cols)
            .flat_map(|row| row.iter().zip(&bias).map(|(x, bias)| x + f64::from(*bias)))
            .collect();
        let got = element.decode(&bench.read(params.x));
        assert_close(&kernel, &got, &want, |want| want.abs() * element.epsilon() * 1.01 + 1e-6);
    }
}

pub(super) fn copy_blocks_moves_whole_blocks_of_every_layer<D: Driver>(bench: &mut Bench<D>) {
    let (layers, blocks, words) = (3, 5, 12);
    let from: Vec<u32> = (0..layers * blocks * words).collect();
    let pairs = [0_u32, 4, 3, 1];
    bench.clear();
    let params = CopyBlocks {
        pairs: bench.buffer(&pairs),
        from: bench.buffer(&from),
        to: bench.buffer(&vec![u32::MAX; from.len()]),
        from_layer_bytes: u64::from(blocks * words * 4),
        to_layer_bytes: u64::from(blocks * words * 4),
        block_bytes: words * 4,
        padding: 0,
    };
    bench
        .launch(&launch("blocks", "copy_blocks", [2, layers], 256), &params)
        .expect("the kernel runs");
    let to = bench.read::<u32>(params.to);
    for layer in 0..layers {
        for block in 0..blocks {
            let source = pairs.chunks_exact(2).find(|pair| pair[1] == block).map(|pair| pair[0]);
            for word in 0..words {
                let at = |block| ((layer * blocks + block) * words + word) as usize;
                let want = source.map_or(u32::MAX, |source| from[at(source)]);
                assert_eq!(to[at(block)], want, "layer {layer}, block {block}, word {word}");
            }
        }
    }
}

/// RoPE with and without norms into every cache, for every head_dim.
pub(super) fn rope_rotates_queries_and_writes_keys_and_values_to_their_slots<D: Driver>(
    bench: &mut Bench<D>,
) {
    for element in Element::ACTIVATIONS {
        for cache_element in [element, Element::E4m3] {
            for head_dim in [64, 80, 96, 128, 256] {
                for with_norm in [false, true] {
                    rope_case(bench, element, cache_element, head_dim, with_norm);
                }
            }
        }
    }
}

fn rope_case<D: Driver>(
    bench: &mut Bench<D>,
    element: Element,
    cache_element: Element,
    head_dim: usize,
    with_norm: bool,
) {
    let (num_heads, num_kv_heads, num_blocks) = (3, 2, 4);
    let positions = [0_u32, 17, 5];
    let slots = [3 * 16 + 15_u32, 16, 0];
    let heads = num_heads + 2 * num_kv_heads;
    let qkv = numbers(5, positions.len() * heads * head_dim);
    let half = head_dim / 2;
    let table: Vec<f32> = (0..18)
        .flat_map(|position| {
            let angle = move |i: usize| {
                f64::from(position) * 10_000_f64.powf(-2.0 * i as f64 / head_dim as f64)
            };
            let cos = (0..half).map(move |i| angle(i).cos() as f32);
            cos.chain((0..half).map(move |i| angle(i).sin() as f32)).collect::<Vec<_>>()
        })
        .collect();
    let (q_norm, k_norm) = (numbers(6, head_dim), numbers(7, head_dim));
    let (k_scale, v_scale) = if cache_element == Element::E4m3 { (0.01, 0.02) } else { (1.0, 1.0) };
    bench.clear();
    let cache_len = num_blocks * 2 * num_kv_heads * 16 * head_dim;
    let mut norm = |weights: &[f32]| {
        if with_norm { bench.buffer(weights) } else { DevicePointer::NULL }
    };
    let (q_weights, k_weights) = (norm(&q_norm), norm(&k_norm));
    let params = RopeAndCache {
        qkv: bench.buffer(&element.encode(&qkv)),
        rope: bench.buffer(&table),
        positions: bench.buffer(&positions),
        slot_mapping: bench.buffer(&slots),
        q_norm: q_weights,
        k_norm: k_weights,
        cache: bench.buffer(&cache_element.poison(cache_len)),
        num_heads: num_heads as u32,
        num_kv_heads: num_kv_heads as u32,
        head_dim: head_dim as u32,
        eps: 1e-6,
        k_scale,
        v_scale,
    };
    let suffix = if cache_element == element {
        element.name().to_owned()
    } else {
        format!("{}_{}", element.name(), cache_element.name())
    };
    let kernel = format!("rope_and_cache_{suffix}");
    let grid = RopeAndCache::grid(positions.len() as u32, heads as u32, head_dim as u32);
    bench
        .launch(&launch("rope_and_cache", &kernel, grid, RopeAndCache::THREADS), &params)
        .expect("the kernel runs");
    let got = element.decode(&bench.read(params.qkv));
    let cache = cache_element.decode(&bench.read(params.cache));
    let x = element.rounded(&qkv);
    let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
    let mut written = vec![false; cache_len];
    for (token, (&position, &slot)) in positions.iter().zip(&slots).enumerate() {
        let (cos, sin) = table[position as usize * head_dim..][..head_dim].split_at(half);
        for head in 0..heads {
            let mut row = x[(token * heads + head) * head_dim..][..head_dim].to_vec();
            let is_value = head >= num_heads + num_kv_heads;
            if !is_value {
                if with_norm {
                    let weights = if head < num_heads { &q_norm } else { &k_norm };
                    row = reference::rms_norm(&row, &wide(weights), 1e-6);
                }
                row = reference::rope(&row, &wide(cos), &wide(sin));
            }
            if head < num_heads {
                let got = &got[(token * heads + head) * head_dim..][..head_dim];
                assert_close(&kernel, got, &row, |want| {
                    want.abs() * element.epsilon() * 1.01 + 1e-5
                });
                continue;
            }
            let scale = f64::from(if is_value { v_scale } else { k_scale });
            let kv_head = (head - num_heads) % num_kv_heads;
            let (block, offset) = (slot as usize / 16, slot as usize % 16);
            let start = (((block * 2 + usize::from(is_value)) * num_kv_heads + kv_head) * 16
                + offset)
                * head_dim;
            written[start..start + head_dim].fill(true);
            let got: Vec<f64> = cache[start..start + head_dim].iter().map(|x| x * scale).collect();
            // A subnormal e4m3 has a fixed step.
            let step = if cache_element == Element::E4m3 { scale * 2_f64.powi(-10) } else { 0.0 };
            assert_close(&kernel, &got, &row, |want| {
                want.abs() * cache_element.epsilon() * 1.01 + step + 1e-5
            });
        }
    }
    for (i, (value, written)) in cache.iter().zip(written).enumerate() {
        assert_eq!(value.is_nan(), !written, "{kernel}: cache [{i}]");
    }
}
