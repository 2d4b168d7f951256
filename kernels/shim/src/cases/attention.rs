//! Paged attention on ragged batches.

use sconce_kernels::{
    AttentionParams, BLOCK_SIZE, Mask, StepPlan,
    cuda::{
        AttentionPlan, AttentionRoom, BulkAttention, DevicePointer, Driver, GroupTables, Launch,
        PagedAttention, PrefixAttention, PromptForm,
    },
    reference,
};

use super::element::{Element, numbers};
use crate::Bench;

const POOL: usize = 480;
/// Where the cases' block tables begin among others, and the entries of a slot.
const TABLES: GroupTables = GroupTables { group: 0, first: 3, blocks_per_seq: 320 };

/// A step: for each sequence its context's length and how many of its last tokens
/// ask; and what attention is to do.
#[derive(Clone)]
pub struct Case {
    /// The dtype of activations.
    pub element: Element,
    /// The dtype of the cache.
    pub cache_element: Element,
    /// Heads, scale, mask.
    pub params: AttentionParams,
    /// Each sequence's tokens of context, and how many of the last ask.
    pub sequences: Vec<(usize, usize)>,
    /// All tokens weigh the same, and the second chunk's values take the first's
    /// away and leave what is 4,096 times smaller: how they are added up shows.
    pub cancelling: bool,
    /// Sequences of one query and a longer context have so many first tokens in common,
    pub shared: usize,
    /// which are computed once.
    pub together: bool,
    /// What queries are multiplied with.
    pub magnitude: f32,
    /// How prompts are computed.
    pub form: PromptForm,
}

/// How work is shared out, which must change no bit.
pub type How = AttentionRoom;

/// A sequence's decode to one block.
#[must_use]
pub const fn packed() -> How {
    How { multiprocessors: 1, max_partials: 0, max_decodes: usize::MAX }
}

/// A block for each chunk.
#[must_use]
pub const fn spread() -> How {
    How { multiprocessors: usize::MAX, max_partials: usize::MAX, max_decodes: usize::MAX }
}

impl Case {
    /// Random numbers in these shapes: KV heads, Q heads of each, head_dim.
    #[must_use]
    pub fn new(
        element: Element,
        (num_kv_heads, group, head_dim): (usize, usize, usize),
        sequences: &[(usize, usize)],
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
        let sequences = sequences.to_vec();
        Self {
            element,
            cache_element: element,
            params,
            sequences,
            cancelling: false,
            shared: 0,
            together: false,
            magnitude: 1.0,
            form: PromptForm::Warps,
        }
    }

    fn scales(&self) -> (f32, f32) {
        if self.cache_element == Element::E4m3 { (0.004, 0.008) } else { (1.0, 1.0) }
    }

    /// K or V of a sequence: `[context_len, num_kv_heads, head_dim]`; sequences of
    /// equal length have equal ones.
    fn stored(&self, sequence: usize, half: u64) -> Vec<f32> {
        let (len, _) = self.sequences[sequence];
        let scale = [self.scales().0, self.scales().1][half as usize];
        let cols = self.params.num_kv_heads * self.params.head_dim;
        let numbers = |seed: u64, len: usize| numbers(100 + half + seed * 2, len * cols);
        let mut stored = numbers(len as u64, len);
        if self.shares(sequence) {
            stored[..self.shared * cols].copy_from_slice(&numbers(POOL as u64, self.shared));
        }
        stored.iter_mut().for_each(|x| *x /= scale);
        if self.cancelling && half == 1 {
            let chunk = 256 * cols;
            for i in chunk..stored.len() {
                stored[i] = if i < 2 * chunk { -stored[i - chunk] } else { stored[i] / 4096.0 };
            }
        }
        stored
    }

    /// Q of a sequence's whole context, `[context_len, num_heads, head_dim]`.
    fn queries(&self, sequence: usize) -> Vec<f32> {
        let (len, _) = self.sequences[sequence];
        let all = len * self.params.num_heads * self.params.head_dim;
        if self.cancelling {
            return vec![0.0; all];
        }
        numbers(99 + len as u64 * 2, all).iter().map(|x| x * self.magnitude).collect()
    }

    /// Whether a sequence has the common first tokens.
    fn shares(&self, sequence: usize) -> bool {
        let (len, queries) = self.sequences[sequence];
        self.shared > 0 && queries == 1 && len > self.shared
    }

    /// The blocks of each sequence.
    fn blocks(&self) -> Vec<Vec<u32>> {
        let of_shared = self.shared / BLOCK_SIZE;
        let mut used = of_shared;
        let of_sequence = (0..self.sequences.len()).map(|s| {
            let common = if self.shares(s) { of_shared } else { 0 };
            let first = used;
            used += self.sequences[s].0.div_ceil(BLOCK_SIZE) - common;
            // 7 is prime to the pool's size, so this is a permutation.
            (0..common).chain(first..used).map(|i| (i * 7 % POOL) as u32).collect()
        });
        let blocks = of_sequence.collect();
        assert!(used < POOL, "the pool is too small for the case");
        blocks
    }

    /// The first token that the first row of a sequence sees: blocks wholly before it may
    /// be others'.
    fn first_needed(&self, sequence: usize) -> usize {
        let (len, queries) = self.sequences[sequence];
        self.params.mask.first_seen(len - queries)
    }

    /// The step, and the block tables: of all slots, no block where none may be read.
    fn plan(&self, blocks: &[Vec<u32>]) -> (StepPlan, Vec<u32>) {
        let mut plan = StepPlan::new(1);
        let GroupTables { first, blocks_per_seq, .. } = TABLES;
        let mut tables = vec![u32::MAX; first + blocks.len() * blocks_per_seq];
        for (s, blocks) in blocks.iter().enumerate() {
            let (len, queries) = self.sequences[s];
            let slot = self.sequences.len() - 1 - s;
            plan.push(slot as u32, &vec![0; queries], len - queries, &[blocks]);
            let needed = self.first_needed(s) / BLOCK_SIZE..blocks.len();
            let table = &mut tables[first + slot * blocks_per_seq..][..blocks_per_seq];
            table[needed.clone()].copy_from_slice(&blocks[needed]);
        }
        if self.together {
            let sharers = (0..blocks.len()).filter(|&s| self.shares(s)).map(|s| s as u32);
            plan.share_prefix(0, self.shared, &Vec::from_iter(sharers));
        }
        (plan, tables)
    }

    /// Runs the kernel: `[tokens, num_heads * head_dim]` in the activations' dtype.
    ///
    /// # Errors
    /// Why it did not run, or tickets that it kept.
    pub fn run<D: Driver>(&self, bench: &mut Bench<D>, how: How) -> Result<Vec<u8>, String> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = self.params;
        let blocks = self.blocks();
        let (batch, tables) = self.plan(&blocks);
        let block_len = num_kv_heads * BLOCK_SIZE * head_dim;
        let size = self.cache_element.size();
        let mut cache = self.cache_element.poison(POOL * 2 * block_len);
        for (s, &(len, _)) in self.sequences.iter().enumerate() {
            for half in 0..2 {
                let rows = self.cache_element.encode(&self.stored(s, half));
                let first = self.first_needed(s) / BLOCK_SIZE * BLOCK_SIZE;
                for (i, row) in rows.chunks_exact(head_dim * size).enumerate() {
                    let (token, head) = (i / num_kv_heads, i % num_kv_heads);
                    if !(first..len).contains(&token) {
                        continue;
                    }
                    let block = blocks[s][token / BLOCK_SIZE] as usize * 2 + half as usize;
                    let at = (block * num_kv_heads + head) * BLOCK_SIZE + token % BLOCK_SIZE;
                    cache[at * head_dim * size..][..head_dim * size].copy_from_slice(row);
                }
            }
        }
        // Q, K and V end to end; K and V are not read here.
        let q_stride = (num_heads + 2 * num_kv_heads) * head_dim;
        let mut q = self.element.poison(batch.num_tokens() * q_stride);
        for s in 0..batch.num_seqs() {
            let own = self.element.encode(&self.queries(s));
            let bytes = num_heads * head_dim * self.element.size();
            let first = self.sequences[s].0 - batch.rows(s).len();
            for (row, from) in batch.rows(s).zip(own.chunks_exact(bytes).skip(first)) {
                q[row * q_stride * self.element.size()..][..bytes].copy_from_slice(from);
            }
        }
        let mut plan = AttentionPlan::default();
        plan.plan(&batch, &self.params, TABLES, how);
        let (k_scale, v_scale) = self.scales();
        bench.clear();
        let partials = AttentionPlan::partial_bytes(head_dim, plan.num_partials) / 4;
        let group = num_heads / num_kv_heads;
        let (scale, soft_cap) = AttentionPlan::score_factors(&self.params, k_scale);
        let mut params = PagedAttention {
            work: DevicePointer::NULL,
            q: bench.buffer(&q),
            cache: bench.buffer(&cache),
            out: bench.buffer(&self.element.poison(batch.num_tokens() * num_heads * head_dim)),
            block_tables: bench.buffer(&tables),
            partials: bench.buffer(&vec![f32::NAN; partials]),
            tickets: bench.buffer(&vec![0_u32; plan.num_tickets]),
            q_stride: q_stride as u32,
            num_kv_heads: num_kv_heads as u32,
            group: group as u32,
            window: match self.params.mask {
                Mask::None | Mask::Causal => 0,
                Mask::Sliding(window) => window as u32,
            },
            scale,
            soft_cap,
            v_scale,
            causal: u32::from(self.params.mask != Mask::None),
        };
        let mut dtypes = self.element.name().to_owned();
        if self.cache_element != self.element {
            dtypes = format!("{dtypes}_{}", self.cache_element.name());
        }
        let columns = AttentionPlan::decode_columns(group);
        let of_groups = AttentionPlan::groups_shared_bytes(head_dim);
        let threads_of_groups = AttentionPlan::GROUPS_THREADS;
        let of_warps =
            (AttentionPlan::PROMPT_THREADS, AttentionPlan::prompt_shared_bytes(head_dim, size));
        let (file, stem, threads, shared_bytes) = match self.form {
            PromptForm::Boxes => ("prefill_groups", "prefill_bulk", threads_of_groups, of_groups),
            PromptForm::Groups => {
                ("prefill_groups", "prefill_groups", threads_of_groups, of_groups)
            }
            PromptForm::Warps => ("prefill_attention", "prefill_attention", of_warps.0, of_warps.1),
        };
        let launches = [
            (file, format!("{stem}_{dtypes}_d{head_dim}"), &plan.prompts, (threads, shared_bytes)),
            (
                "prefix_attention",
                format!("prefix_attention_{dtypes}_d{head_dim}"),
                &plan.prefixes,
                of_warps,
            ),
            (
                "decode_attention",
                format!("decode_attention_{dtypes}_d{head_dim}_r{columns}"),
                &plan.decodes,
                (128, AttentionPlan::decode_shared_bytes(head_dim, size, columns)),
            ),
        ];
        for (file, kernel, work, (threads, shared_bytes)) in launches {
            if work.is_empty() {
                continue;
            }
            params.work = bench.buffer(work);
            let grid = [num_kv_heads as u32, work.len() as u32];
            let launch = Launch { file, kernel: &kernel, grid, threads, shared_bytes };
            let launched = if kernel.starts_with("prefill_bulk") {
                let rows = POOL * 2 * num_kv_heads * BLOCK_SIZE;
                let map = bench.driver_mut().tile_map(params.cache, rows, head_dim);
                let map = map.ok_or("the device maps no tensors")?;
                bench.launch(&launch, &BulkAttention { attention: params, padding: [0; 10], map })
            } else if file == "prefix_attention" {
                let attention = PagedAttention { causal: 0, ..params };
                let sharers = bench.buffer(&plan.sharers);
                bench.launch(&launch, &PrefixAttention { attention, sharers })
            } else {
                bench.launch(&launch, &params)
            };
            launched.map_err(|error| error.to_string())?;
        }
        let tickets = bench.read::<u32>(params.tickets);
        if tickets.iter().any(|&ticket| ticket != 0) {
            return Err("the tickets were not handed back".to_owned());
        }
        Ok(bench.read(params.out))
    }

    /// What the kernel should give.
    fn want(&self) -> Vec<f64> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = self.params;
        let (k_scale, v_scale) = self.scales();
        let mut out = Vec::new();
        for (s, &(len, queries)) in self.sequences.iter().enumerate() {
            let of_head = |half: u64, head: usize| -> Vec<Vec<f64>> {
                let scale = f64::from(if half == 0 { k_scale } else { v_scale });
                let all = self.cache_element.rounded(&self.stored(s, half));
                let rows = all.chunks_exact(head_dim).skip(head).step_by(num_kv_heads);
                rows.map(|row| row.iter().map(|x| x * scale).collect()).collect()
            };
            let q = self.element.rounded(&self.queries(s));
            let caches: Vec<_> =
                (0..num_kv_heads).map(|h| (of_head(0, h), of_head(1, h))).collect();
            for position in len - queries..len {
                for head in 0..num_heads {
                    let q = &q[(position * num_heads + head) * head_dim..][..head_dim];
                    let (k, v) = &caches[head / (num_heads / num_kv_heads)];
                    out.extend(reference::attention(&self.params, position, q, k, v));
                }
            }
        }
        out
    }

    /// Compares what the kernel gives with the reference.
    ///
    /// # Errors
    /// Where they differ, or why the kernel did not run.
    pub fn check<D: Driver>(&self, bench: &mut Bench<D>, how: How) -> Result<(), String> {
        self.compare(&self.run(bench, how)?)
    }

    /// Compares what a kernel gave with the reference.
    pub(super) fn compare(&self, got: &[u8]) -> Result<(), String> {
        let got = self.element.decode(got);
        // Probabilities are rounded once, and so is the result; values are below 1.
        let tolerance = self.element.epsilon() * 1.25;
        let want = self.want();
        let far = got.iter().zip(&want).position(|(got, want)| {
            let off = (got - want).abs();
            off.is_nan() || off > tolerance
        });
        match far {
            None => Ok(()),
            Some(i) => Err(format!("[{i}] is {}, not {}", got[i], want[i])),
        }
    }
}

/// One token, page borders, tile borders, chunk borders; decodes and prompts mixed.
const RAGGED: &[(usize, usize)] =
    &[(1, 1), (15, 1), (16, 1), (17, 17), (33, 3), (65, 1), (257, 1), (70, 24)];

const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

pub(super) fn every_dtype_and_head_dim_matches_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for element in Element::ACTIVATIONS {
        for cache_element in [element, Element::E4m3] {
            for head_dim in HEAD_DIMS {
                // Of up to 8 rows in a block, and of more.
                let few = Case::new(element, (2, 3, head_dim), RAGGED);
                let more = Case::new(element, (1, 9, head_dim), &[(33, 1), (257, 1)]);
                for case in [few, more] {
                    let case = Case { cache_element, ..case };
                    let what = format!("{element:?} over {cache_element:?}, {:?}", case.params);
                    case.check(bench, packed()).unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        }
    }
}

/// Contexts around the borders of pages and chunks, and long ones, whole and shared out.
pub(super) fn every_context_matches_the_reference<D: Driver>(bench: &mut Bench<D>) {
    let contexts = [1, 15, 16, 17, 255, 256, 257, 1000, 5000];
    for cache_element in [Element::Bf16, Element::E4m3] {
        let sequences = contexts.map(|context| (context, 1));
        let case = Case { cache_element, ..Case::new(Element::Bf16, (1, 4, 64), &sequences) };
        for how in [packed(), spread(), How { multiprocessors: 7, ..spread() }] {
            let checked = case.check(bench, how);
            checked.unwrap_or_else(|error| panic!("{cache_element:?}, {how:?}: {error}"));
        }
    }
}

/// Chunks of prompts that start and end anywhere: borders of pages, tiles, chunks and blocks.
pub(super) fn chunks_of_prompts_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for (group, sequences) in [
        (1, &[(17, 17), (63, 63), (64, 64), (65, 65), (129, 129)][..]),
        (4, &[(700, 20), (643, 33), (300, 300), (512, 64), (40, 37)]),
        (8, &[(257, 3), (256, 40)]),
    ] {
        let case = Case::new(Element::Bf16, (1, group, 64), sequences);
        let checked = case.check(bench, packed());
        checked.unwrap_or_else(|error| panic!("{group}, {sequences:?}: {error}"));
    }
}

pub(super) fn every_group_matches_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for group in 1..=16 {
        let case = Case::new(Element::F16, (1, group, 64), &[(19, 1), (37, 2), (300, 3), (21, 20)]);
        for how in [packed(), spread()] {
            case.check(bench, how).unwrap_or_else(|error| panic!("group {group}: {error}"));
        }
    }
}

pub(super) fn masks_and_caps_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for cache_element in [Element::F16, Element::E4m3] {
        for (head_dim, mask, soft_cap) in [
            (64, Mask::Sliding(1), None),
            (64, Mask::Sliding(5), Some(4.0)),
            (64, Mask::Sliding(16), None),
            (64, Mask::Sliding(70), Some(4.0)),
            (64, Mask::Sliding(256), Some(4.0)),
            (64, Mask::Sliding(300), None),
            (64, Mask::Causal, Some(4.0)),
            (64, Mask::None, None),
            (256, Mask::Sliding(70), None),
            (256, Mask::Sliding(256), Some(4.0)),
        ] {
            let sequences = [(9, 9), (530, 1), (600, 4), (300, 20), (100, 100)];
            let mut case =
                Case { cache_element, ..Case::new(Element::F16, (1, 2, head_dim), &sequences) };
            case.params.mask = mask;
            case.params.soft_cap = soft_cap;
            for how in [packed(), spread()] {
                case.check(bench, how)
                    .unwrap_or_else(|error| panic!("{head_dim}, {mask:?}, {soft_cap:?}: {error}"));
            }
        }
    }
}

/// An e4m3 cache is multiplied in f16: queries of bf16 that f16 does not hold are
/// brought to its range first.
pub(super) fn queries_beyond_f16_match_the_reference<D: Driver>(bench: &mut Bench<D>) {
    for magnitude in [1e-12_f32, 1e12] {
        let shape = (1, 4, 64);
        let mut case = Case::new(Element::Bf16, shape, &[(300, 1), (80, 40)]);
        case.cache_element = Element::E4m3;
        case.magnitude = magnitude;
        case.params.scale /= magnitude;
        case.check(bench, packed()).unwrap_or_else(|error| panic!("{magnitude}: {error}"));
    }
}

/// Bits depend neither on how work is shared out, nor on the order of threads, nor
/// on neighbours, nor on whether a row was computed as a decode or within a prompt.
pub(super) fn a_rows_bits_depend_on_its_own_context_only<D: Driver>(bench: &mut Bench<D>) {
    use Element::{Bf16, E4m3, F16};
    for (element, cache_element, group, head_dim) in [
        (Bf16, Bf16, 4, 64),
        (F16, E4m3, 2, 80),
        (F16, F16, 12, 96),
        (Bf16, E4m3, 8, 128),
        (Bf16, Bf16, 1, 256),
    ] {
        let what = format!("{element:?} over {cache_element:?}, {group} of {head_dim}");
        let case = |sequences: &[(usize, usize)]| Case {
            cache_element,
            ..Case::new(element, (1, group, head_dim), sequences)
        };
        bits_are_of_the_context(bench, &what, group * head_dim * 2, &case);
    }
}

/// A token's bits are the same whether its prompt came whole or in chunks, however large.
pub(super) fn a_prompts_bits_do_not_depend_on_its_cuts<D: Driver>(bench: &mut Bench<D>) {
    const LEN: usize = 330;
    for (head_dim, mask) in [(64, Mask::Causal), (64, Mask::Sliding(90)), (80, Mask::Causal)] {
        let mut run = |queries| {
            let mut case = Case::new(Element::Bf16, (1, 3, head_dim), &[(LEN, queries)]);
            case.params.mask = mask;
            case.run(bench, packed()).expect("the kernel runs")
        };
        let whole = run(LEN);
        for queries in [2, 37, 129, 300] {
            let chunk = run(queries);
            assert!(whole.ends_with(&chunk), "{head_dim}, {mask:?}: the last {queries}");
        }
    }
}

/// By groups of warps the numbers are those that warps have, wherever there are both.
pub(super) fn groups_of_warps_attend_as_warps_do<D: Driver>(bench: &mut Bench<D>) {
    if !bench.driver_mut().has_warp_groups() {
        return;
    }
    let mut compare = |case: Case| {
        let what = format!("{:?}, {:?}, {:?}", case.element, case.params, case.sequences);
        let by_warps = case.run(bench, packed()).expect("the kernel runs");
        case.compare(&by_warps).unwrap_or_else(|error| panic!("{what}: {error}"));
        for form in [PromptForm::Groups, PromptForm::Boxes] {
            let by_groups = Case { form, ..case.clone() }.run(bench, packed());
            assert!(by_groups.expect("the kernel runs") == by_warps, "{what}: {form}: other bits");
        }
    };
    // More than a chunk, a block's rows and the ring hold; borders of pages, tiles and blocks.
    let prompts: &[(usize, usize)] = &[(17, 17), (513, 33), (64, 40), (129, 129)];
    for element in Element::ACTIVATIONS {
        for (shape, num) in [((2, 4, 64), 4), ((1, 2, 128), 3), ((1, 3, 256), 2)] {
            compare(Case::new(element, shape, &prompts[..num]));
        }
    }
    for (head_dim, mask, soft_cap) in [
        (64, Mask::Sliding(5), Some(4.0)),
        (64, Mask::Sliding(300), None),
        (128, Mask::Causal, Some(4.0)),
        (64, Mask::None, None),
        (256, Mask::Sliding(70), None),
    ] {
        let mut case = Case::new(Element::Bf16, (1, 2, head_dim), &prompts[1..2]);
        case.params.mask = mask;
        case.params.soft_cap = soft_cap;
        compare(case);
    }
}

/// Makes a case of sequences, each with its context's length and its queries.
type MakeCase<'a> = &'a dyn Fn(&[(usize, usize)]) -> Case;

fn bits_are_of_the_context<D: Driver>(
    bench: &mut Bench<D>,
    what: &str,
    row: usize,
    case: MakeCase<'_>,
) {
    const LEN: usize = 600;
    let mut run = |case: &Case, how| case.run(bench, how).expect("the kernel runs");
    let alone = case(&[(LEN, 1)]);
    let want = run(&alone, packed());
    // In three blocks, and in two.
    for how in [spread(), How { multiprocessors: 2, ..spread() }] {
        assert_eq!(run(&alone, how), want, "{what}: shared out otherwise: {how:?}");
    }
    let mixed = case(&[(40, 30), (LEN, 1), (3, 3), (300, 1), (LEN, 1)]);
    for how in [packed(), spread()] {
        let rows = run(&mixed, how);
        assert_eq!(&rows[30 * row..][..row], &want[..], "{what}: beside others");
        assert_eq!(&rows[rows.len() - row..], &want[..], "{what}: the last of others");
    }
    // As the last of two and of forty rows.
    for queries in [2, 40] {
        let rows = run(&case(&[(LEN, queries)]), spread());
        assert_eq!(&rows[rows.len() - row..], &want[..], "{what}: as the last of {queries} rows");
    }
}

#[cfg(test)]
mod tests {
    use super::{super::element::assert_close, *};

    #[test]
    fn nothing_to_do_is_done() {
        let mut plan = AttentionPlan::default();
        let case = Case::new(Element::Bf16, (1, 1, 64), &[]);
        plan.plan(&StepPlan::new(1), &case.params, TABLES, packed());
        assert!(plan.prompts.is_empty() && plan.decodes.is_empty());
        assert!(plan.num_partials == 0 && plan.num_tickets == 0);
    }

    #[test]
    fn assert_close_can_fail() {
        let result = std::panic::catch_unwind(|| assert_close("x", &[f64::NAN], &[0.0], |_| 1.0));
        assert!(result.is_err(), "NaN is never close");
    }
}
