//! What attention computes, apart from its operands.

/// Which positions of its sequence a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mask {
    /// All of the sequence's context as the step leaves it, later rows of the same step
    /// included; for encoders, whose prompts are computed in one step.
    None,
    /// All positions up to its own.
    #[default]
    Causal,
    /// This many last positions up to its own, its own included; at least 1.
    Sliding(usize),
}

impl Mask {
    /// The first position that a query at `position` sees.
    #[must_use]
    pub const fn first_seen(self, position: usize) -> usize {
        match self {
            Self::None | Self::Causal => 0,
            Self::Sliding(window) => (position + 1).saturating_sub(window),
        }
    }

    /// The position after the last one that a query at `position` sees, in a context of
    /// `context_len` tokens.
    #[must_use]
    pub const fn seen_end(self, position: usize, context_len: usize) -> usize {
        match self {
            Self::None => context_len,
            Self::Causal | Self::Sliding(_) => position + 1,
        }
    }
}

/// What attention computes beside its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Heads of Q; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor on `q · k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Which positions a query sees.
    pub mask: Mask,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// A way in which some of a model's layers attend: each has a plan of its own in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionKind {
    /// What these layers compute.
    pub params: AttentionParams,
    /// The cache group that they are in, and so the block tables that they read.
    pub group: usize,
}
