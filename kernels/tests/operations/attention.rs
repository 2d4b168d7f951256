//! Rotary embedding, the cache and attention, as a layer uses them.

use proptest::prelude::*;
use sconce_kernels::{
    AttentionKind, AttentionParams, BLOCK_SIZE, CacheDtype, Device as _, Dtype, KernelError,
    KvLayer, KvLayout, Mask, Ops as _, StepLimits, StepPlan,
    cpu::{Cpu, CpuKvCache, CpuStep, Isa},
    reference,
};

use crate::case::{assert_close, bits, buffer, cpu, every_isa, numbers, rounded, tensor, wide};

/// The layer under test is of the second group, in the region of the first group's first.
const LAYER: usize = 2;
const GROUP: usize = 1;
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
            mask: Mask::Causal,
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

    fn limits(&self) -> StepLimits {
        StepLimits {
            max_num_batched_tokens: (0..self.qkv.len()).map(|s| self.len(s)).sum(),
            max_num_seqs: self.qkv.len(),
            max_model_len: MAX_POSITIONS,
        }
    }

    /// A step and a cache for it, nothing of which may be read yet.
    fn start(&self, cpu: &mut Cpu) -> (CpuStep, CpuKvCache) {
        let layout = layout(&self.params, self.num_blocks() + 1, self.dtype.into());
        let mut cache = cpu.kv_cache(&layout, &self.limits()).expect("memory");
        cache.poison(f32::NAN);
        let kind = AttentionKind { params: self.params, group: GROUP };
        (cpu.step(&self.limits(), &[kind]).expect("memory"), cache)
    }

    /// Runs the steps, each a list of `(sequence, tokens)` that go on where the
    /// sequence stopped, and returns what each sequence's rows gave. What a window has
    /// left is another's by the next step.
    fn run(&self, cpu: &mut Cpu, steps: &[Vec<(usize, usize)>]) -> Vec<Vec<f32>> {
        let AttentionParams { num_heads, head_dim, .. } = self.params;
        let (mut step, mut cache) = self.start(cpu);
        let mut results = vec![Vec::new(); self.qkv.len()];
        let mut computed = vec![0_usize; self.qkv.len()];
        let mut plan = StepPlan::new(2);
        for sequences in steps {
            plan.clear();
            let mut qkv = Vec::new();
            for &(sequence, tokens) in sequences {
                let from = computed[sequence];
                let blocks = self.blocks(sequence);
                let slot = (self.qkv.len() - 1 - sequence) as u32;
                // The table grows with the sequence; the first group's is another.
                let known = from.div_ceil(BLOCK_SIZE);
                let covered = (from + tokens).div_ceil(BLOCK_SIZE);
                plan.edit_table(GROUP as u32, slot, known, &blocks[known..covered]);
                plan.push(slot, &vec![0; tokens], from, &[&vec![0; covered], &blocks]);
                for &block in &blocks[..self.params.mask.first_seen(from) / BLOCK_SIZE] {
                    cache.poison_block(block as usize, f32::NAN);
                }
                qkv.extend_from_slice(
                    &self.qkv[sequence][from * self.cols()..(from + tokens) * self.cols()],
                );
                computed[sequence] += tokens;
            }
            cpu.stage(&plan, &mut step, &mut cache).expect("the plan fits");
            let mut qkv = buffer(cpu, &qkv, self.cols());
            let mut out = cpu.buffer(plan.num_tokens(), num_heads * head_dim).expect("memory");
            let norm = self.qk_norm.as_ref().map(|(q, k)| (q, k, NORM_EPS));
            cpu.rope_and_cache(&step, &self.params, &self.rope, norm, LAYER, &mut qkv, &mut cache)
                .expect("shapes fit");
            cpu.paged_attention(&step, &self.params, LAYER, &qkv, &cache, &mut out)
                .expect("shapes fit");
            for (s, &(sequence, _)) in sequences.iter().enumerate() {
                plan.rows(s).for_each(|row| results[sequence].extend_from_slice(out.row(row)));
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
    fn rotated(&self, head: &[f32], position: usize, weight: Option<&Vec<f32>>) -> Vec<f64> {
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
                    self.rotated(&head(row, num_heads + kv_head), position, k_norm)
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
                    let q = self.rotated(&head(row, q_head), position, q_norm);
                    let params = &self.params;
                    out[position]
                        .extend(reference::attention(params, position, &q, &keys, &values));
                }
            }
        }
        out.concat()
    }
}

/// Three layers in two groups.
fn layout(params: &AttentionParams, num_blocks: usize, dtype: CacheDtype) -> KvLayout {
    let AttentionParams { num_kv_heads, head_dim, .. } = *params;
    let layers = [(0, 0), (0, 1), (GROUP, 0)];
    let layer = |(group, region)| KvLayer { group, region, num_kv_heads, head_dim };
    KvLayout { num_blocks, num_groups: 2, layers: layers.map(layer).to_vec(), dtype }
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
fn attention_is_its_formula_with_any_mask_a_cap_and_normed_heads() {
    for mut cpu in every_isa() {
        for dtype in DTYPES {
            for window in [1, 16, 20, 100, 1_000] {
                let mut case = Case::new(dtype, (1, 2, 32), &[1, 37, 300]);
                case.params.mask = Mask::Sliding(window);
                case.check(&mut cpu, &case.in_chunks(50));
            }
            let mut case = Case::new(dtype, (2, 2, 32), &LENS);
            case.params.mask = Mask::None;
            case.check(&mut cpu, &case.at_once());
            // As Gemma's: heads of 256, some layers with a window.
            for (head_dim, mask) in
                [(32, Mask::Causal), (256, Mask::Causal), (256, Mask::Sliding(40))]
            {
                let mut case = Case::new(dtype, (1, 4, head_dim), &[20, 150]);
                case.params.mask = mask;
                case.params.soft_cap = Some(2.5);
                case.check(&mut cpu, &case.in_chunks(70));
            }
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
            for mask in [Mask::Causal, Mask::Sliding(40)] {
                let mut case = Case::new(dtype, (2, 3, 48), &LENS);
                case.params.mask = mask;
                let at_once = case.run(&mut cpu(isa, 1), &case.at_once());
                let same = |threads: usize, steps: &[Vec<(usize, usize)>], how: &str| {
                    let got = case.run(&mut cpu(isa, threads), steps);
                    for (sequence, (got, want)) in got.iter().zip(&at_once).enumerate() {
                        let equal = bits(got) == bits(want);
                        assert!(equal, "{isa:?} {dtype:?} {mask:?} {how}: sequence {sequence}");
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
        case.params.mask = window.map_or(Mask::Causal, Mask::Sliding);
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
        let (mut step, mut cache) = case.start(&mut cpu);
        let mut plan = StepPlan::new(2);
        plan.push(0, &[0; 3], 0, &[&[0], &[1]]);
        cpu.stage(&plan, &mut step, &mut cache).expect("the plan fits");
        let mut qkv = buffer(&cpu, &case.qkv[0], case.cols());
        cpu.rope_and_cache(&step, &case.params, &case.rope, None, LAYER, &mut qkv, &mut cache)
            .expect("shapes fit");
        for (position, row) in case.qkv[0].chunks_exact(case.cols()).enumerate() {
            let got = qkv.row(position);
            for head in 0..2 {
                let want = case.rotated(&row[head * 32..][..32], position, None);
                assert_close("Q", &got[head * 32..][..32], &want, |_| 1e-6);
            }
            assert_eq!(got[3 * 32..], row[3 * 32..], "V");
        }
    }
}

/// A slot keeps its table from step to step, until another sequence takes it.
#[test]
fn a_slots_next_sequence_overwrites_its_table_from_the_first_entry() {
    let mut cpu = cpu(Isa::detect(), 2);
    let case = Case::new(Dtype::F32, (1, 2, 32), &[40, 20]);
    let want = case.run(&mut cpu, &case.at_once());
    let (mut step, mut cache) = case.start(&mut cpu);
    let mut plan = StepPlan::new(2);
    let mut out = cpu.buffer(40, 64).expect("memory");
    for (sequence, want) in want.iter().enumerate() {
        let blocks = case.blocks(sequence);
        for (first, end) in [(0, 10), (10, case.len(sequence))] {
            plan.clear();
            let known = usize::div_ceil(first, BLOCK_SIZE);
            plan.edit_table(GROUP as u32, 1, known, &blocks[known..end.div_ceil(BLOCK_SIZE)]);
            plan.push(1, &vec![0; end - first], first, &[&[0; 3][..], &blocks[..]]);
            cpu.stage(&plan, &mut step, &mut cache).expect("the plan fits");
            let rows = first * case.cols()..end * case.cols();
            let mut qkv = buffer(&cpu, &case.qkv[sequence][rows], case.cols());
            cpu.rope_and_cache(&step, &case.params, &case.rope, None, LAYER, &mut qkv, &mut cache)
                .expect("shapes fit");
            cpu.paged_attention(&step, &case.params, LAYER, &qkv, &cache, &mut out)
                .expect("shapes fit");
            let got = bits(out.rows(end - first));
            assert_eq!(got, bits(&want[first * 64..end * 64]), "sequence {sequence} from {first}");
        }
        // The next one has no use for what lies in these.
        blocks.iter().for_each(|&block| cache.poison_block(block as usize, f32::NAN));
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let mut cpu = cpu(Isa::detect(), 1);
    let case = Case::new(Dtype::F32, (1, 2, 32), &[3]);
    let (mut step, mut cache) = case.start(&mut cpu);
    let mut qkv = buffer(&cpu, &case.qkv[0], case.cols());
    let mut out = cpu.buffer(3, 64).expect("memory");
    let mut plan = StepPlan::new(2);
    plan.push(0, &[0; 3], 0, &[&[0], &[0]]);
    cpu.stage(&plan, &mut step, &mut cache).expect("the plan fits");
    let params = &case.params;
    let refused = |result: Result<(), KernelError>, word: &str| {
        let error = result.expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(
        cpu.rope_and_cache(&step, params, &case.rope, None, 3, &mut qkv, &mut cache),
        "with layer 3",
    );
    let wrong = AttentionParams { num_kv_heads: 2, ..case.params };
    refused(cpu.paged_attention(&step, &wrong, LAYER, &qkv, &cache, &mut out), "must be");
    // A group that the step has no plan for.
    refused(cpu.paged_attention(&step, params, 0, &qkv, &cache, &mut out), "way to attend");
    cpu.paged_attention(&step, params, LAYER, &qkv, &cache, &mut out).expect("shapes fit");
    // The table itself is checked as a whole: 31 numbers are no position of 32.
    let short = cpu.vector(&[tensor(&[0.0; 31], &[31])]).expect("packs");
    refused(
        cpu.rope_and_cache(&step, params, &short, None, LAYER, &mut qkv, &mut cache),
        "a position is 2",
    );
    let bad = KvLayout::uniform(1, 1, (1, 40), CacheDtype::F32);
    assert!(cpu.kv_cache(&bad, &case.limits()).is_err(), "head_dim is a multiple of 16");
}

/// What a plan may say wrong, each refused by name, and no table is changed.
#[test]
fn plans_that_do_not_fit_are_refused() {
    let mut cpu = cpu(Isa::detect(), 1);
    let case = Case::new(Dtype::F32, (1, 2, 32), &[3, 4]);
    let (mut step, mut cache) = case.start(&mut cpu);
    let mut staged = |change: &dyn Fn(&mut StepPlan)| {
        let mut plan = StepPlan::new(2);
        plan.edit_table(GROUP as u32, 0, 0, &[1]);
        plan.push(0, &[0; 3], 0, &[&[0], &[1]]);
        plan.logit_rows.push(2);
        change(&mut plan);
        cpu.stage(&plan, &mut step, &mut cache).map_err(|error| error.to_string())
    };
    staged(&|_| {}).expect("it fits");
    type Change<'a> = &'a dyn Fn(&mut StepPlan);
    let changes: [(&str, Change<'_>); 12] = [
        ("rows is 8", &|plan| plan.push(1, &[0; 5], 0, &[&[0], &[0]])),
        ("sequences is 3", &|plan| {
            (1..3).for_each(|slot| plan.push(slot, &[0], 0, &[&[0], &[0]]));
        }),
        ("sequence's slot is 2", &|plan| plan.slots[0] = 2),
        ("last position is 320", &|plan| {
            plan.push(1, &[0], MAX_POSITIONS, &[&[0; 21], &[0; 21]]);
        }),
        ("place in the cache is 64", &|plan| plan.kv_slots[GROUP][1] = 64),
        ("edit's group is 2", &|plan| plan.edit_table(2, 0, 0, &[0])),
        ("edit's slot is 2", &|plan| plan.edit_table(0, 2, 0, &[0])),
        ("edit's entry is 20", &|plan| plan.edit_table(0, 0, 20, &[0])),
        ("edit's block is 4", &|plan| plan.edit_table(0, 0, 0, &[4])),
        ("gets logits is 3", &|plan| plan.logit_rows.push(3)),
        ("lists", &|plan| plan.token_ids.push(0)),
        ("positions", &|plan| plan.positions[0] = 1),
    ];
    for (word, change) in changes {
        let error = staged(change).expect_err(word);
        assert!(error.contains(word), "{error}, not {word}");
    }
}
