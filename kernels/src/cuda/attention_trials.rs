//! Attention of prompts by each of its forms, on random numbers: which are right, and how fast.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{
    AttentionPlan, AttentionRoom, BulkAttention, Cuda, DevicePointer, Driver, GroupTables, Launch,
    PagedAttention,
    memory::{decode, encode},
    names,
    product_trials::{PERIOD, SLOW, pattern},
    word,
};
use crate::{
    AttentionParams, BLOCK_SIZE, CacheDtype, Dtype, Findings, KernelError, Mask, StepPlan, Verdict,
    reference,
};

/// What computes attention of prompts. No bit of it depends on the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// `prefill_groups.cu`, where a device has groups of warps that multiply and copies of boxes.
    Boxes,
    /// The same with copies by threads.
    Groups,
    /// `prefill_attention.cu`.
    Warps,
}

impl PromptForm {
    /// In the order in which they are preferred.
    pub const ALL: [Self; 3] = [Self::Boxes, Self::Groups, Self::Warps];

    const fn name(self) -> &'static str {
        match self {
            Self::Boxes => "groups of warps, bulk copies",
            Self::Groups => "groups of warps",
            Self::Warps => "warps",
        }
    }
}

impl fmt::Display for PromptForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Attention of prompts, as it is launched.
pub(super) struct Prompts {
    pub(super) dtypes: (Dtype, CacheDtype),
    pub(super) head_dim: usize,
    /// Rows of `head_dim` elements of the layer's whole cache.
    pub(super) cache_rows: usize,
    pub(super) grid: [u32; 2],
    pub(super) params: PagedAttention,
}

/// A prompt whose attention is tried: KV heads, of four Q heads each, tokens of context, and how
/// many of the last ask.
#[derive(Clone, Copy)]
struct Prompt {
    num_kv_heads: usize,
    context: usize,
    tokens: usize,
}

/// More than a chunk and a block's rows, ends of pages and tiles: what is compared with the
/// reference.
const SMALL: Prompt = Prompt { num_kv_heads: 1, context: 301, tokens: 40 };
/// What is timed.
const LARGE: Prompt = Prompt { num_kv_heads: 8, context: 2048, tokens: 2048 };
const GROUP: usize = 4;
/// Calls that are timed together.
const CALLS: u32 = 8;

/// What an attention's launch reads and writes, on a device.
struct Placed<M> {
    prompts: Prompts,
    out: M,
    out_bytes: usize,
    /// Keeps them where they are.
    _read: [M; 4],
}

impl Prompt {
    fn params(self, head_dim: usize) -> AttentionParams {
        AttentionParams {
            num_heads: self.num_kv_heads * GROUP,
            num_kv_heads: self.num_kv_heads,
            head_dim,
            // Scores of a few units, so that some tokens are clearly preferred.
            scale: 3.0 / (head_dim as f32).sqrt(),
            mask: Mask::Causal,
            soft_cap: None,
        }
    }

    /// Where in the cache a token's K or V of a head begins, in heads of elements.
    fn place(self, half: usize, head: usize, token: usize) -> usize {
        let block = token / BLOCK_SIZE * 2 + half;
        (block * self.num_kv_heads + head) * BLOCK_SIZE + token % BLOCK_SIZE
    }
}

fn operation(head_dim: usize, dtype: Dtype) -> String {
    format!("attention of prompts, heads of {head_dim}, {dtype:?}")
}

/// The head_dim in the name of an operation.
fn head_dim_of(operation: &str) -> Option<usize> {
    let rest = operation.strip_prefix("attention of prompts, heads of ")?;
    rest.split_once(',')?.0.parse().ok()
}

/// How attention of prompts is launched by a form, if there is one for these dtypes.
fn launch(form: PromptForm, prompts: &Prompts) -> Option<Launch<'static>> {
    let Prompts { dtypes, head_dim, grid, .. } = *prompts;
    Some(match form {
        PromptForm::Boxes | PromptForm::Groups => Launch {
            file: "prefill_groups",
            kernel: names::prefill_groups(dtypes, head_dim, form == PromptForm::Boxes)?,
            grid,
            threads: AttentionPlan::GROUPS_THREADS,
            shared_bytes: AttentionPlan::groups_shared_bytes(head_dim),
        },
        PromptForm::Warps => Launch {
            file: "prefill_attention",
            kernel: names::prefill_attention(dtypes, head_dim)?,
            grid,
            threads: 256,
            shared_bytes: AttentionPlan::prompt_shared_bytes(head_dim, dtypes.1.size()),
        },
    })
}

impl<D: Driver> Cuda<D> {
    /// Has attention of prompts take this form where it can; `None`: the best.
    pub fn use_prompt_form(&mut self, form: Option<PromptForm>) {
        self.prompt_form = form;
    }

    /// The form that attention of prompts takes: where the device and these dtypes have all, that
    /// which was asked for or found best. Boxes are not used before they were tried.
    pub(super) fn prompt_form(&self, dtypes: (Dtype, CacheDtype), head_dim: usize) -> PromptForm {
        if !self.driver.has_warp_groups()
            || names::prefill_groups(dtypes, head_dim, false).is_none()
        {
            return PromptForm::Warps;
        }
        let found = self.prompt_form.or_else(|| self.prompt_forms.get(&head_dim).copied());
        found.unwrap_or(PromptForm::Groups)
    }

    /// Launches attention of prompts by a form that there is for it; without boxes where the
    /// device maps no tensors.
    pub(super) fn launch_prompts(
        &mut self,
        form: PromptForm,
        prompts: &Prompts,
    ) -> Result<(), KernelError> {
        const THERE_IS_ONE: &str = "there is such a form";
        let Prompts { params, cache_rows, head_dim, .. } = *prompts;
        if form == PromptForm::Boxes
            && !prompts.grid.contains(&0)
            && let Some(map) = self.driver.tile_map(params.cache, cache_rows, head_dim)
        {
            let launch = launch(form, prompts).expect(THERE_IS_ONE);
            let params = BulkAttention { attention: params, padding: [0; 10], map };
            return self.launch(&launch, &params);
        }
        let form = if form == PromptForm::Boxes { PromptForm::Groups } else { form };
        self.launch(&launch(form, prompts).expect(THERE_IS_ONE), &params)
    }

    /// Tries what is not known of attention of prompts with heads of these sizes, each with the
    /// dtype of its cache, and has each take its best form from then on.
    pub(super) fn try_attention(
        &mut self,
        kinds: &[(usize, CacheDtype)],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        if !self.driver.has_warp_groups() {
            return Ok(());
        }
        let has_choice = |(head_dim, cache): &&(usize, CacheDtype)| {
            names::prefill_groups((self.dtype, *cache), *head_dim, false).is_some()
        };
        let mut head_dims: Vec<usize> =
            kinds.iter().filter(has_choice).map(|(head_dim, _)| *head_dim).collect();
        head_dims.sort_unstable();
        head_dims.dedup();
        for head_dim in head_dims {
            let operation = operation(head_dim, self.dtype);
            if PromptForm::ALL.iter().any(|form| !found.knows(&operation, form.name())) {
                for form in PromptForm::ALL {
                    let attempt = || self.try_prompts(form, head_dim);
                    found.try_form(&operation, form.name(), keep, attempt)?;
                }
                keep(found);
            }
            let best = found.best(&operation);
            let best = best.ok_or_else(|| Findings::none_is_right(&operation))?;
            if let Some(form) = PromptForm::ALL.into_iter().find(|form| form.name() == best) {
                self.prompt_forms.insert(head_dim, form);
            }
        }
        Ok(())
    }

    /// Tries again what `found` knows of it, or heads of 128 if it knows nothing.
    pub(super) fn try_attention_again(
        &mut self,
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        let known = found.trials().iter().filter_map(|trial| head_dim_of(&trial.operation));
        let mut kinds: Vec<_> = known.map(|head_dim| (head_dim, self.dtype.into())).collect();
        if kinds.is_empty() {
            kinds.push((128, self.dtype.into()));
        }
        kinds.iter().for_each(|(head_dim, _)| found.forget(&operation(*head_dim, self.dtype)));
        self.try_attention(&kinds, found, keep)
    }

    fn try_prompts(&mut self, form: PromptForm, head_dim: usize) -> Result<Verdict, KernelError> {
        let small = self.placed(SMALL, head_dim)?;
        let Prompts { params, cache_rows, .. } = small.prompts;
        if form == PromptForm::Boxes
            && self.driver.tile_map(params.cache, cache_rows, head_dim).is_none()
        {
            return Err(KernelError::Unsupported {
                what: "a map of a tensor".to_owned(),
                device: "this device",
                accepted: "tiles are copied by threads",
            });
        }
        // The first loads what there is to load.
        self.time(form, &small, 1)?;
        if let Err(how) = self.compare(&small, head_dim)? {
            return Ok(Verdict::Wrong(how));
        }
        let started = Instant::now();
        let about = self.time(form, &small, 1)?;
        // An emulated device may keep time of its own.
        if about >= SLOW || started.elapsed() >= SLOW {
            return Ok(Verdict::Right(about));
        }
        let timed = match self.placed(LARGE, head_dim) {
            Err(KernelError::OutOfMemory { .. }) => small,
            other => other?,
        };
        self.time(form, &timed, CALLS).map(Verdict::Right)
    }

    /// Of one call.
    fn time(
        &mut self,
        form: PromptForm,
        placed: &Placed<D::Memory>,
        calls: u32,
    ) -> Result<Duration, KernelError> {
        self.driver.begin_step()?;
        for _ in 0..calls {
            self.launch_prompts(form, &placed.prompts)?;
        }
        Ok(self.driver.finish()?.unwrap_or_default() / calls)
    }

    fn placed(&self, prompt: Prompt, head_dim: usize) -> Result<Placed<D::Memory>, KernelError> {
        let Prompt { num_kv_heads, context, tokens } = prompt;
        let params = prompt.params(head_dim);
        let blocks: Vec<u32> = (0..).take(context.div_ceil(BLOCK_SIZE)).collect();
        let mut step = StepPlan::new(1);
        step.push(0, &vec![0; tokens], context - tokens, &[&blocks]);
        let room = AttentionRoom { multiprocessors: 1, max_partials: 0, max_decodes: usize::MAX };
        let tables = GroupTables { first: 0, blocks_per_seq: blocks.len() };
        let mut plan = AttentionPlan::default();
        plan.plan(&step, &params, tables, room);
        let place = |bytes: &[u8]| {
            let mut memory = self.driver.allocate(bytes.len(), "trials of attention")?;
            self.driver.upload(&mut memory, 0, bytes)?;
            Ok::<_, KernelError>(memory)
        };
        let random = |seed, elements: usize| {
            let numbers = encode(&pattern(seed), self.dtype);
            let mut bytes = numbers.repeat(elements.div_ceil(PERIOD));
            bytes.truncate(elements * self.dtype.size());
            place(&bytes)
        };
        let num_heads = num_kv_heads * GROUP;
        let q = random(3, tokens * num_heads * head_dim)?;
        let cache_rows = blocks.len() * 2 * num_kv_heads * BLOCK_SIZE;
        let cache = random(4, cache_rows * head_dim)?;
        let table = place(bytemuck::cast_slice(&blocks))?;
        let work = place(bytemuck::cast_slice(&plan.prompts))?;
        // Nothing is left of it where results are written.
        let elements = tokens * num_heads * head_dim;
        let out = place(&encode(&[f32::NAN], self.dtype).repeat(elements))?;
        let (scale, soft_cap) = AttentionPlan::score_factors(&params, 1.0);
        let address = |memory: &D::Memory| self.driver.address(memory);
        let params = PagedAttention {
            work: address(&work),
            q: address(&q),
            cache: address(&cache),
            out: address(&out),
            block_tables: address(&table),
            partials: DevicePointer::NULL,
            tickets: DevicePointer::NULL,
            q_stride: word(num_heads * head_dim),
            num_kv_heads: word(num_kv_heads),
            group: word(GROUP),
            window: 0,
            scale,
            soft_cap,
            v_scale: 1.0,
            causal: 1,
        };
        Ok(Placed {
            prompts: Prompts {
                dtypes: (self.dtype, self.dtype.into()),
                head_dim,
                cache_rows,
                grid: [word(num_kv_heads), word(plan.prompts.len())],
                params,
            },
            out,
            out_bytes: elements * self.dtype.size(),
            _read: [q, cache, table, work],
        })
    }

    /// What is wrong with the results of the small prompt, if anything is.
    fn compare(
        &self,
        placed: &Placed<D::Memory>,
        head_dim: usize,
    ) -> Result<Result<(), String>, KernelError> {
        let mut bytes = vec![0; placed.out_bytes];
        self.driver.download(&placed.out, &mut bytes)?;
        let got = decode(&bytes, self.dtype);
        let params = SMALL.params(head_dim);
        let numbers = |seed| -> Vec<f64> {
            let rounded = decode(&encode(&pattern(seed), self.dtype), self.dtype);
            rounded.into_iter().map(f64::from).collect()
        };
        let (q, cache) = (numbers(3), numbers(4));
        let head_of = |numbers: &[f64], index: usize| -> Vec<f64> {
            (0..head_dim).map(|d| numbers[(index * head_dim + d) % PERIOD]).collect()
        };
        let of_cache = |half| -> Vec<Vec<f64>> {
            (0..SMALL.context).map(|token| head_of(&cache, SMALL.place(half, 0, token))).collect()
        };
        let (keys, values) = (of_cache(0), of_cache(1));
        // Weights are rounded once, and so is the result; values are below 1.
        let epsilon = if self.dtype == Dtype::F16 { 2_f64.powi(-11) } else { 2_f64.powi(-8) };
        for row in 0..SMALL.tokens * GROUP {
            let position = SMALL.context - SMALL.tokens + row / GROUP;
            let want = reference::attention(&params, position, &head_of(&q, row), &keys, &values);
            for (d, want) in want.into_iter().enumerate() {
                let got = f64::from(got[row * head_dim + d]);
                let off = (got - want).abs();
                if off.is_nan() || off > epsilon * 1.5 {
                    return Ok(Err(format!("dimension {d} of row {row} is {got}, not {want}")));
                }
            }
        }
        Ok(Ok(()))
    }
}
