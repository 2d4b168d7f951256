//! Rotary embedding, the cache and attention, as a layer uses them.

use proptest::prelude::*;
use sconce_kernels::{
    AttentionParams, Backend, Dtype, ForwardBatch, KernelError, KvLayout,
    cpu::{Cpu, Isa},
    reference,
};

use crate::case::{assert_close, bits, buffer, cpu, every_isa, numbers, rounded, tensor, wide};

const LAYERS: usize = 2;
const LAYER: usize = 1;
const NORM_EPS: f32 = 1e-6;
const MAX_POSITIONS: usize = 320;

/// Sequences with their Q, K and V, and what attention is to do with them.
struct Case {
    params: AttentionParams,
    dtype: Dtype,
    /// For each sequence `[len, (num_heads + 2 * num_kv_heads) * head_dim]`.
    qkv: Vec<Vec<f32>>,
    /// Weights of Q and K, where heads are normed.
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    rope: Vec<f32>,
}

impl Case {
    fn new(
        dtype: Dtype,
        (num_kv_heads, group, head_dim): (usize, usize, usize),
        lens: &[usize],
    ) -> Self {
        let params = AttentionParams {
            num_heads: num_kv_heads * group,
            num_kv_heads,
            head_dim,
            // Scores of a few units, so that softmax prefers some tokens clearly.
            scale: 6.0 / (head_dim as f32).sqrt(),
            sliding_window: None,
            soft_cap: None,
        };
        let cols = (params.num_heads + 2 * num_kv_heads) * head_dim;
        let qkv = (100..).zip(lens).map(|(seed, len)| numbers(seed, len * cols)).collect();
        let table = |position: usize| {
            let angle = move |i: usize| {
                position as f64 * 10_000_f64.powf(-2.0 * i as f64 / head_dim as f64)
            };
            let cos = (0..head_dim / 2).map(move |i| angle(i).cos() as f32);
            cos.chain((0..head_dim / 2).map(move |i| angle(i).sin() as f32))
        };
        let rope = (0..MAX_POSITIONS).flat_map(table).collect();
        Self { params, dtype, qkv, qk_norm: None, rope }
    }

    fn cols(&self) -> usize {
        (self.params.num_heads + 2 * self.params.num_kv_heads) * self.params.head_dim
    }

    fn len(&self, sequence: usize) -> usize {
        self.qkv[sequence].len() / self.cols()
    }

    /// The blocks of a sequence: scattered over the pool, none shared.
    fn blocks(&self, sequence: usize) -> Vec<u32> {
        let before: usize = (0..sequence).map(|s| self.len(s).div_ceil(16)).sum();
        let own = self.len(sequence).div_ceil(16);
        // 7 is prime to the number of blocks, so this is a permutation.
        (before..before + own).map(|i| (i * 7 % self.num_blocks() + 1) as u32).collect()
    }

    fn num_blocks(&self) -> usize {
        let used: usize = (0..self.qkv.len()).map(|s| self.len(s).div_ceil(16)).sum();
        used + usize::from(used.is_multiple_of(7))
    }

    /// Runs the steps, each a list of `(sequence, tokens)` that go on where the
    /// sequence stopped, and returns what each sequence's rows gave.
    fn run(&self, cpu: &mut Cpu, steps: &[Vec<(usize, usize)>]) -> Vec<Vec<f32>> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = self.params;
        let layout = KvLayout {
            num_layers: LAYERS,
            num_blocks: self.num_blocks() + 1,
            num_kv_heads,
            head_dim,
            dtype: self.dtype.into(),
        };
        let mut cache = cpu.kv_cache(layout).expect("memory");
        cache.poison(f32::NAN);
        let mut results = vec![Vec::new(); self.qkv.len()];
        let mut computed = vec![0; self.qkv.len()];
        for step in steps {
            let mut batch = ForwardBatch::default();
            let mut qkv = Vec::new();
            for &(sequence, tokens) in step {
                let from = computed[sequence];
                batch.push(&vec![0; tokens], from, &self.blocks(sequence));
                qkv.extend_from_slice(
                    &self.qkv[sequence][from * self.cols()..(from + tokens) * self.cols()],
                );
                computed[sequence] += tokens;
            }
            let mut qkv = buffer(cpu, &qkv, self.cols());
            let mut out = cpu.buffer(batch.num_tokens(), num_heads * head_dim).expect("memory");
            let norm = self.qk_norm.as_ref().map(|(q, k)| (q, k, NORM_EPS));
            cpu.rope_and_cache(&batch, &self.params, &self.rope, norm, LAYER, &mut qkv, &mut cache)
                .expect("shapes fit");
            cpu.paged_attention(&batch, &self.params, LAYER, &qkv, &cache, &mut out)
                .expect("shapes fit");
            for (s, &(sequence, _)) in step.iter().enumerate() {
                batch.rows(s).for_each(|row| results[sequence].extend_from_slice(out.row(row)));
            }
        }
        results
    }

    /// All sequences whole, in one batch.
    fn at_once(&self) -> Vec<Vec<(usize, usize)>> {
        vec![(0..self.qkv.len()).map(|s| (s, self.len(s))).collect()]
    }

    /// All sequences together, `chunk` tokens a step.
    fn in_chunks(&self, chunk: usize) -> Vec<Vec<(usize, usize)>> {
        let longest = (0..self.qkv.len()).map(|s| self.len(s)).max().unwrap_or(0);
        let tokens = |s: usize, from: usize| chunk.min(self.len(s).saturating_sub(from));
        (0..longest)
            .step_by(chunk)
            .map(|from| {
                let all = (0..self.qkv.len()).map(|s| (s, tokens(s, from)));
                all.filter(|&(_, tokens)| tokens > 0).collect()
            })
            .collect()
    }

    /// Checks the steps' results against the reference.
    fn check(&self, cpu: &mut Cpu, steps: &[Vec<(usize, usize)>]) {
        let what = format!("{} {:?} {:?}", cpu.isa().name(), self.dtype, self.params);
        let got = self.run(cpu, steps);
        // bf16 keeps 8 bits: of Q, K and V, whose rotation may round the other
        // way here, and of the weights. |v| is at most 1.
        let tolerance = match self.dtype {
            Dtype::F32 => 2e-5,
            Dtype::F16 | Dtype::Bf16 => 1e-2,
        };
        for (sequence, got) in got.iter().enumerate() {
            let want = self.reference(sequence);
            assert_close(&format!("{what} sequence {sequence}"), got, &want, |_| tolerance);
        }
    }

    /// A head after norm and rotation, in the cache's dtype.
    fn turned(&self, head: &[f32], position: usize, weight: Option<&Vec<f32>>) -> Vec<f64> {
        let head_dim = self.params.head_dim;
        let table = wide(&self.rope[position * head_dim..][..head_dim]);
        let (cos, sin) = table.split_at(head_dim / 2);
        let mut head = wide(head);
        if let Some(weight) = weight {
            head = reference::rms_norm(&head, &wide(weight), f64::from(NORM_EPS));
        }
        let head: Vec<f32> = reference::rope(&head, cos, sin).iter().map(|&x| x as f32).collect();
        wide(&rounded(&head, self.dtype))
    }

    fn reference(&self, sequence: usize) -> Vec<f64> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = self.params;
        let rows = || self.qkv[sequence].chunks_exact(self.cols());
        let head = |row: &[f32], head: usize| row[head * head_dim..][..head_dim].to_vec();
        let (q_norm, k_norm) = self.qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
        let mut out = vec![Vec::new(); self.len(sequence)];
        for kv_head in 0..num_kv_heads {
            let keys: Vec<_> = rows()
                .enumerate()
                .map(|(position, row)| {
                    self.turned(&head(row, num_heads + kv_head), position, k_norm)
                })
                .collect();
            let values: Vec<_> = rows()
                .map(|row| {
                    wide(&rounded(&head(row, num_heads + num_kv_heads + kv_head), self.dtype))
                })
                .collect();
            let group = num_heads / num_kv_heads;
            for (position, row) in rows().enumerate() {
                for q_head in kv_head * group..(kv_head + 1) * group {
                    let q = self.turned(&head(row, q_head), position, q_norm);
                    let params = &self.params;
                    out[position]
                        .extend(reference::attention(params, position, &q, &keys, &values));
                }
            }
        }
        out.concat()
    }
}

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
/// Around the borders of blocks and of the softmax's chunks.
const LENS: [usize; 9] = [1, 2, 15, 16, 17, 33, 128, 129, 300];

#[test]
fn attention_is_its_formula_for_a_ragged_batch() {
    for mut cpu in every_isa() {
        for dtype in DTYPES {
            let case = Case::new(dtype, (2, 3, 64), &LENS);
            case.check(&mut cpu, &case.at_once());
            case.check(&mut cpu, &case.in_chunks(33));
        }
    }
}

#[test]
fn attention_is_its_formula_for_every_group_and_head_dim() {
    for mut cpu in every_isa() {
        for dtype in DTYPES {
            for group in 1..=16 {
                let case = Case::new(dtype, (1 + group % 2, group, 32), &[1, 40, 18]);
                case.check(&mut cpu, &case.in_chunks(17));
            }
            for head_dim in [16, 48, 80, 96, 128, 256] {
                let case = Case::new(dtype, (2, 2, head_dim), &[35, 1, 16]);
                case.check(&mut cpu, &case.in_chunks(16));
            }
        }
    }
}

#[test]
fn attention_is_its_formula_with_a_window_a_cap_and_normed_heads() {
    for mut cpu in every_isa() {
        for dtype in DTYPES {
            for window in [1, 16, 20, 100, 1_000] {
                let mut case = Case::new(dtype, (1, 2, 32), &[1, 37, 300]);
                case.params.sliding_window = Some(window);
                case.check(&mut cpu, &case.in_chunks(50));
            }
            let mut case = Case::new(dtype, (2, 2, 32), &[20, 150]);
            case.params.soft_cap = Some(2.5);
            case.check(&mut cpu, &case.at_once());
            let mut case = Case::new(dtype, (2, 2, 32), &[20, 150]);
            case.qk_norm = Some((numbers(50, 32), numbers(51, 32)));
            case.check(&mut cpu, &case.at_once());
        }
    }
}

#[test]
fn a_row_has_the_same_bits_however_its_prompt_is_cut_and_whoever_shares_the_batch() {
    for isa in Isa::available() {
        for dtype in DTYPES {
            for window in [None, Some(40)] {
                let mut case = Case::new(dtype, (2, 3, 48), &LENS);
                case.params.sliding_window = window;
                let at_once = case.run(&mut cpu(isa, 1), &case.at_once());
                let same = |threads: usize, steps: &[Vec<(usize, usize)>], how: &str| {
                    let got = case.run(&mut cpu(isa, threads), steps);
                    for (sequence, (got, want)) in got.iter().zip(&at_once).enumerate() {
                        let equal = bits(got) == bits(want);
                        assert!(equal, "{isa:?} {dtype:?} {window:?} {how}: sequence {sequence}");
                    }
                };
                same(2, &case.at_once(), "2 threads");
                for chunk in [1, 16, 17, 33] {
                    same(2, &case.in_chunks(chunk), &format!("chunks of {chunk}"));
                }
                let alone: Vec<_> = (0..LENS.len()).rev().map(|s| vec![(s, case.len(s))]).collect();
                same(3, &alone, "one by one");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn attention_is_its_formula_however_sequences_come_and_go(
        lens in prop::collection::vec(1_usize..90, 1..5),
        // Each turn, a sequence computes so many tokens; the same turn of
        // different sequences is one batch.
        turns in prop::collection::vec(prop::collection::vec(0_usize..40, 5), 1..5),
        (num_kv_heads, group, head_dim) in (1_usize..4, 1_usize..6, 1_usize..5),
        window in prop::option::of(1_usize..70),
        dtype in prop::sample::select(DTYPES.to_vec()),
    ) {
        let mut case = Case::new(dtype, (num_kv_heads, group, head_dim * 16), &lens);
        case.params.sliding_window = window;
        let mut left = lens.clone();
        let mut steps: Vec<Vec<(usize, usize)>> = Vec::new();
        for turn in turns.iter().chain([&vec![usize::MAX; 5]]) {
            let tokens = left.iter().zip(turn).map(|(&left, &wish)| left.min(wish));
            let step: Vec<_> = tokens.enumerate().filter(|&(_, tokens)| tokens > 0).collect();
            step.iter().for_each(|&(sequence, tokens)| left[sequence] -= tokens);
            steps.push(step);
        }
        steps.retain(|step| !step.is_empty());
        for mut cpu in every_isa() {
            case.check(&mut cpu, &steps);
        }
    }
}

#[test]
fn q_is_rotated_in_place_and_v_stays() {
    for mut cpu in every_isa() {
        let case = Case::new(Dtype::F32, (1, 2, 32), &[3]);
        let layout = KvLayout {
            num_layers: LAYERS,
            num_blocks: 2,
            num_kv_heads: 1,
            head_dim: 32,
            dtype: Dtype::F32.into(),
        };
        let mut cache = cpu.kv_cache(layout).expect("memory");
        let mut batch = ForwardBatch::default();
        batch.push(&[0; 3], 0, &[1]);
        let mut qkv = buffer(&cpu, &case.qkv[0], case.cols());
        cpu.rope_and_cache(&batch, &case.params, &case.rope, None, LAYER, &mut qkv, &mut cache)
            .expect("shapes fit");
        for (position, row) in case.qkv[0].chunks_exact(case.cols()).enumerate() {
            let got = qkv.row(position);
            for head in 0..2 {
                let want = case.turned(&row[head * 32..][..32], position, None);
                assert_close("Q", &got[head * 32..][..32], &want, |_| 1e-6);
            }
            assert_eq!(got[3 * 32..], row[3 * 32..], "V");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let mut cpu = cpu(Isa::detect(), 1);
    let case = Case::new(Dtype::F32, (1, 2, 32), &[3]);
    let layout = KvLayout {
        num_layers: LAYERS,
        num_blocks: 2,
        num_kv_heads: 1,
        head_dim: 32,
        dtype: Dtype::F32.into(),
    };
    let mut cache = cpu.kv_cache(layout).expect("memory");
    let mut qkv = buffer(&cpu, &case.qkv[0], case.cols());
    let mut out = cpu.buffer(3, 64).expect("memory");
    let mut turn = |from: usize, blocks: &[u32], layer: usize| {
        let mut batch = ForwardBatch::default();
        batch.push(&[0; 3], from, blocks);
        cpu.rope_and_cache(&batch, &case.params, &case.rope, None, layer, &mut qkv, &mut cache)
    };
    turn(0, &[0], 0).expect("shapes fit");
    assert!(turn(0, &[0], LAYERS).is_err(), "a layer that the cache has not");
    assert!(turn(0, &[2], 0).is_err(), "a block that the cache has not");
    let beyond = turn(MAX_POSITIONS - 2, &[0; MAX_POSITIONS / 16 + 1], 0);
    assert!(beyond.is_err_and(|e| e.to_string().contains("320")), "a position beyond the table");

    let mut batch = ForwardBatch::default();
    batch.push(&[0; 3], 0, &[2]);
    let refused = |result: Result<(), KernelError>| assert!(result.is_err());
    refused(cpu.paged_attention(&batch, &case.params, 0, &qkv, &cache, &mut out));
    batch.clear();
    batch.push(&[0; 3], 0, &[0]);
    let wrong = AttentionParams { num_heads: 3, ..case.params };
    refused(cpu.paged_attention(&batch, &wrong, 0, &qkv, &cache, &mut out));
    let bad = KvLayout { head_dim: 40, ..layout };
    assert!(cpu.kv_cache(bad).is_err(), "head_dim is a multiple of 16");
    // The table itself is checked as a whole: 31 numbers are no position of 32.
    let short = cpu.vector(&[tensor(&[0.0; 31], &[31])]).expect("packs");
    refused(cpu.rope_and_cache(&batch, &case.params, &short, None, 0, &mut qkv, &mut cache));
}
