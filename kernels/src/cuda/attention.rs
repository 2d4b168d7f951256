//! How attention is launched: of prompts, of decodes over prefixes that they share, and of decodes
//! over the rest of their contexts.

use std::fmt;

use super::{
    AttentionPlan, BulkAttention, Cuda, DevicePointer, Driver, Launch, PagedAttention,
    PrefixAttention, names, step::AttentionWork,
};
use crate::{CacheDtype, Dtype, KernelError};

/// A cache is refused when it is made if no kernel takes it.
pub(super) const CHECKED: &str = "the cache was checked when it was made";

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

    pub(super) const fn name(self) -> &'static str {
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

/// The attention of a layer.
pub(super) struct Attention {
    pub(super) dtypes: (Dtype, CacheDtype),
    pub(super) head_dim: usize,
    /// Rows of `head_dim` elements of the layer's whole cache.
    pub(super) cache_rows: usize,
    /// Without work.
    pub(super) params: PagedAttention,
}

impl Attention {
    /// With work that lies at an address, and the grid of so much.
    const fn of(&self, work: (DevicePointer, usize)) -> (PagedAttention, [u32; 2]) {
        let params = PagedAttention { work: work.0, ..self.params };
        (params, [params.num_kv_heads, work.1 as u32])
    }
}

/// How attention of prompts is launched by a form, if there is one for these dtypes.
fn prompts_launch(
    form: PromptForm,
    attention: &Attention,
    grid: [u32; 2],
) -> Option<Launch<'static>> {
    let Attention { dtypes, head_dim, .. } = *attention;
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
            threads: AttentionPlan::PROMPT_THREADS,
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

    /// Launches a layer's attention; prompts take a form that there is for it.
    pub(super) fn launch_attention(
        &mut self,
        form: PromptForm,
        attention: &Attention,
        work: &AttentionWork,
    ) -> Result<(), KernelError> {
        self.launch_prompts(form, attention, work.prompts)?;
        let Attention { dtypes, head_dim, .. } = *attention;
        let (params, grid) = attention.of(work.prefixes);
        let prefixes = Launch {
            file: "prefix_attention",
            kernel: names::prefix_attention(dtypes, head_dim).expect(CHECKED),
            grid,
            threads: AttentionPlan::PROMPT_THREADS,
            shared_bytes: AttentionPlan::prompt_shared_bytes(head_dim, dtypes.1.size()),
        };
        // All that share a prefix see all of it.
        let params = PagedAttention { causal: 0, window: 0, ..params };
        self.launch(&prefixes, &PrefixAttention { attention: params, sharers: work.sharers })?;
        let (params, grid) = attention.of(work.decodes);
        let columns = AttentionPlan::decode_columns(params.group as usize);
        let decodes = Launch {
            file: "decode_attention",
            kernel: names::decode_attention(dtypes, head_dim, columns).expect(CHECKED),
            grid,
            threads: 128,
            shared_bytes: AttentionPlan::decode_shared_bytes(head_dim, dtypes.1.size(), columns),
        };
        self.launch(&decodes, &params)
    }

    /// Launches attention of prompts; without boxes where the device maps no tensors.
    fn launch_prompts(
        &mut self,
        form: PromptForm,
        attention: &Attention,
        work: (DevicePointer, usize),
    ) -> Result<(), KernelError> {
        const THERE_IS_ONE: &str = "there is such a form";
        if work.1 == 0 {
            return Ok(());
        }
        let (params, grid) = attention.of(work);
        let Attention { cache_rows, head_dim, .. } = *attention;
        if form == PromptForm::Boxes
            && let Some(map) = self.driver.tile_map(params.cache, cache_rows, head_dim)
        {
            let launch = prompts_launch(form, attention, grid).expect(THERE_IS_ONE);
            let params = BulkAttention { attention: params, padding: [0; 10], map };
            return self.launch(&launch, &params);
        }
        let form = if form == PromptForm::Boxes { PromptForm::Groups } else { form };
        self.launch(&prompts_launch(form, attention, grid).expect(THERE_IS_ONE), &params)
    }
}
