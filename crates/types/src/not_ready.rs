//! What a request may wait for before it can be scheduled.

/// Why a request is not ready to be scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotReady {
    /// Its grammar is being compiled.
    Grammar,
    /// Its adapter is being loaded.
    Adapter,
    /// Its images or sounds are being encoded.
    Encoder,
    /// Its keys and values are on their way from elsewhere.
    Kv,
}

impl NotReady {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Grammar, Self::Adapter, Self::Encoder, Self::Kv];

    /// Its name in metrics and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grammar => "grammar",
            Self::Adapter => "adapter",
            Self::Encoder => "encoder",
            Self::Kv => "kv",
        }
    }
}
