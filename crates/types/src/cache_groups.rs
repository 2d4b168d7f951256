//! Which part of a sequence's context its cache layers keep.

use crate::BLOCK_SIZE;

/// Cache groups at most.
pub const MAX_CACHE_GROUPS: usize = 8;

/// The part of a context that a group of cache layers keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Span {
    /// All of it.
    #[default]
    All,
    /// A token attends to so many last ones, itself included; at least 1.
    Window(u32),
}

impl Span {
    /// The first position that the token at `position`, or any later one, attends to.
    #[must_use]
    pub const fn first_needed(self, position: usize) -> usize {
        match self {
            Self::All => 0,
            Self::Window(window) => (position + 1).saturating_sub(window as usize),
        }
    }
}

/// The cache layers of a model in groups: a sequence has a block table for each, and all
/// take their blocks from one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheGroups {
    spans: [Span; MAX_CACHE_GROUPS],
    len: u32,
    has_windows: bool,
}

impl Default for CacheGroups {
    fn default() -> Self {
        Self::ONE
    }
}

impl CacheGroups {
    /// One group of layers that keep everything.
    pub const ONE: Self = Self { spans: [Span::All; MAX_CACHE_GROUPS], len: 1, has_windows: false };

    /// Groups of these spans.
    ///
    /// # Panics
    /// If there is none, or more than [`MAX_CACHE_GROUPS`], or an empty window.
    #[must_use]
    pub fn new(given: &[Span]) -> Self {
        assert!((1..=MAX_CACHE_GROUPS).contains(&given.len()), "from 1 to 8 cache groups");
        assert!(!given.contains(&Span::Window(0)), "a window holds the token itself");
        let mut spans = [Span::All; MAX_CACHE_GROUPS];
        spans[..given.len()].copy_from_slice(given);
        let has_windows = given.iter().any(|span| *span != Span::All);
        Self { spans, len: given.len() as u32, has_windows }
    }

    /// The groups' spans.
    #[must_use]
    #[inline]
    pub fn spans(&self) -> &[Span] {
        &self.spans[..self.len as usize]
    }

    /// Groups.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// There is at least one group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether a group keeps only a window.
    #[must_use]
    #[inline]
    pub fn has_windows(&self) -> bool {
        self.has_windows
    }

    /// The most blocks that a sequence holds on its way to `num_tokens`, in steps of at
    /// most `max_step_tokens` of which `depth` are in flight.
    #[must_use]
    pub fn peak_blocks(&self, num_tokens: usize, max_step_tokens: usize, depth: usize) -> usize {
        let all = num_tokens.div_ceil(BLOCK_SIZE);
        let spans = self.spans().iter();
        spans.map(|span| span.peak_blocks(all, max_step_tokens.saturating_mul(depth))).sum()
    }
}

impl CacheGroups {
    /// The longest context of one sequence that so many blocks hold.
    #[must_use]
    pub fn tokens_in(&self, num_blocks: usize, max_step_tokens: usize, depth: usize) -> usize {
        let fits = |blocks: usize| {
            self.peak_blocks(blocks * BLOCK_SIZE, max_step_tokens, depth) <= num_blocks
        };
        // More blocks of context never take fewer.
        let (mut least, mut beyond) = (0, num_blocks + 1);
        while least + 1 < beyond {
            let middle = least.midpoint(beyond);
            if fits(middle) { least = middle } else { beyond = middle }
        }
        least * BLOCK_SIZE
    }
}

impl Span {
    /// The most of `all` blocks that are held at once while `in_flight` tokens are computed.
    #[must_use]
    pub fn peak_blocks(self, all: usize, in_flight: usize) -> usize {
        match self {
            Self::All => all,
            // So many tokens may begin and end inside a block.
            Self::Window(window) => {
                let tokens = (window as usize - 1).saturating_add(in_flight);
                all.min(tokens.div_ceil(BLOCK_SIZE).saturating_add(1))
            }
        }
    }
}
