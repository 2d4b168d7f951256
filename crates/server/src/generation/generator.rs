//! What answers to conversations are made with, whatever wire they come over.

use std::sync::Arc;

use rand::RngExt as _;
use sconce_engine::EngineHandle;
use sconce_grammar::{GrammarConfig, Grammars};
use sconce_tenants::Tenants;
use sconce_text::{ReasoningFormat, TextModel, ToolFormat};

use super::answers::AnswerFormats;
use crate::state::IdSource;

/// An engine, its model's text, and what is kept between requests; clones share it. Handlers
/// have one in their state; programs call [`Generator::answer`] and [`Generator::embed`].
#[derive(Clone)]
pub struct Generator {
    pub(crate) engine: EngineHandle,
    pub(crate) text: Arc<TextModel>,
    pub(crate) answers: Arc<AnswerFormats>,
    pub(crate) grammars: Arc<Grammars>,
    /// Counts what was drawn for requests without a seed; ids are drawn apart,
    /// so that polling `/health` changes no request's tokens.
    seeds: Arc<IdSource>,
    pub(crate) ids: Arc<IdSource>,
    /// Who requests of the program itself come from.
    pub(crate) sole: Arc<Tenants>,
}

impl Generator {
    /// A generator over an engine. The form of the model's calls and that of its thoughts are
    /// found in its chat template where they are not given.
    #[must_use]
    pub fn new(
        engine: EngineHandle,
        text: Arc<TextModel>,
        tools: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
    ) -> Self {
        Self::with_seed(engine, text, tools, reasoning, None)
    }

    /// The same, with a seed of the sampling of requests that bring none.
    pub(crate) fn with_seed(
        engine: EngineHandle,
        text: Arc<TextModel>,
        tools: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
        seed: Option<u64>,
    ) -> Self {
        let vocab_size = engine.limits().vocab_size;
        let grammars = Grammars::new(Arc::clone(&text), vocab_size, GrammarConfig::default());
        let origin = seed.unwrap_or_else(|| rand::rng().random());
        Self {
            answers: Arc::new(AnswerFormats::new(&text, tools, reasoning)),
            grammars: Arc::new(grammars),
            engine,
            text,
            seeds: Arc::new(IdSource::new(origin)),
            ids: Arc::new(IdSource::new(rand::rng().random())),
            sole: Arc::new(Tenants::sole()),
        }
    }

    /// A number for a request that brings no seed.
    pub(crate) fn next_seed(&self) -> u64 {
        self.seeds.next()
    }
}
