//! The form that a request asks of its answers, and the requests that wait for its grammar.

use std::{sync::Arc, time::Duration};

use sconce_engine::{ReadySignal, TokenConstraint};
use sconce_grammar::{Grammar, Source};
use sconce_types::TenantId;
use serde_json::Value;

use super::{
    choice::{Choice, Start},
    formed::{Before, Formed},
    generator::Generator,
    settings::Settings,
    thought_budget::BoundedThoughts,
    token_limits::TokenLimits,
};
use crate::{error::ApiError, intake::Turn, state::AppState};

/// How long a request waits for its grammar.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What answers must be, and the field that says so.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    source: Source,
    field: &'static str,
    /// Whether it bounds all of an answer's text, not only its calls.
    is_form: bool,
    /// The grammar, where it is kept from before.
    kept: Option<Grammar>,
}

impl Structure {
    pub(crate) fn new(source: Source, field: &'static str) -> Self {
        Self { source, field, is_form: true, kept: None }
    }

    /// Of answers that are calls, or end with some.
    pub(crate) fn of_calls(grammar: String) -> Self {
        let source = Source::Own(grammar);
        Self { source, field: "tools", is_form: false, kept: None }
    }

    /// Of answers that are calls, or have this form.
    pub(crate) fn or_calls(&self, grammar: String) -> Self {
        Self { source: Source::Own(grammar), field: self.field, is_form: true, kept: None }
    }

    /// The body of a rule for the form with its schema, where it is JSON.
    ///
    /// # Errors
    /// The schema is not what it may be.
    pub(crate) fn json_rule(&self) -> Result<Option<(String, Value)>, ApiError> {
        let rule = self.source.json_rule();
        rule.map_err(|error| ApiError::of_grammar(self.field, &error))
    }

    pub(crate) fn is_form(&self) -> bool {
        self.is_form
    }

    /// The field that asks for it.
    pub(crate) fn field(&self) -> &'static str {
        self.field
    }

    /// Refuses what cannot be used beside it, and looks for the grammar.
    ///
    /// # Errors
    /// `ignore_eos`, since an answer that is whole must end, `min_tokens`, since one may be
    /// whole before, and a source that is too long or known to be wrong.
    pub(crate) fn check(
        &mut self,
        generator: &Generator,
        tenant: TenantId,
        ignore_eos: bool,
        min_tokens: u32,
    ) -> Result<(), ApiError> {
        let field = self.field;
        let refuse = |name, why| {
            Err(ApiError::invalid(Some(name), format!("{name} cannot be used with {field}: {why}")))
        };
        if ignore_eos {
            return refuse("ignore_eos", "an answer that is whole must end");
        }
        if min_tokens > 0 {
            return refuse("min_tokens", "an answer may be whole before");
        }
        let kept = generator.grammars.kept(tenant, &self.source);
        self.kept = kept.map_err(|error| ApiError::of_grammar(field, &error))?;
        Ok(())
    }
}

/// Compiles the grammar of a request, on this thread; `None` where it asks for no form.
///
/// # Errors
/// The grammar is refused.
pub(crate) fn compiled(
    generator: &Generator,
    settings: &Settings,
) -> Result<Option<Grammar>, ApiError> {
    let Some(Structure { source, field, kept, .. }) = &settings.structure else { return Ok(None) };
    let compile = || generator.grammars.compile(settings.caller.id, source);
    let grammar = kept.clone().map_or_else(compile, Ok);
    grammar.map(Some).map_err(|error| ApiError::of_grammar(field, &error))
}

/// Makes choices ready that wait for their grammar, if they do: it is compiled in the tenant's
/// turn; one that is kept from before waits for no compilation of others.
///
/// # Errors
/// The grammar is refused, or is not there in time.
pub(crate) async fn make_ready(
    state: &AppState,
    settings: &Settings,
    choices: &mut [Choice],
) -> Result<(), ApiError> {
    let Some(structure) = settings.structure.clone() else { return Ok(()) };
    let Structure { source, field, kept, .. } = structure;
    let waiting: Vec<_> = choices.iter_mut().filter_map(|choice| choice.waiting.take()).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let (grammars, tenant) = (Arc::clone(&state.generator.grammars), settings.caller.id);
    let (turn, is_kept) = (Turn::of(&settings.caller, 0), kept.is_some());
    let make = move || {
        let grammar = kept.map_or_else(|| grammars.compile(tenant, &source), Ok)?;
        waiting.into_iter().for_each(|waiting| waiting.make_ready(&grammar));
        Ok(())
    };
    let made = async {
        if is_kept {
            let none = state.intake.reservation(tenant);
            state.intake.run(turn, none, make).await
        } else {
            state.intake.compile(turn, make).await
        }
    };
    let made = tokio::time::timeout(PATIENCE, made).await;
    let made = made.map_err(|_| ApiError::late_grammar(PATIENCE))?;
    made?.map_err(|error| ApiError::of_grammar(field, &error))
}

/// A choice's request that waits for its grammar. Dropping it ends the request.
pub(crate) struct Waiting {
    signal: ReadySignal,
    before: Before,
    bounded: Option<BoundedThoughts>,
    token_limits: Option<TokenLimits>,
}

impl Waiting {
    pub(crate) fn new(signal: ReadySignal, start: &Start, settings: &Settings) -> Self {
        let before = Before::of(start, &settings.params.eos_token_ids);
        let bounded = BoundedThoughts::of(settings, start);
        Self { signal, before, bounded, token_limits: settings.token_limits.clone() }
    }

    /// The request generates by this grammar.
    pub(crate) fn make_ready(self, grammar: &Grammar) {
        let Self { signal, before, bounded, token_limits } = self;
        let constrained: Box<dyn TokenConstraint> = Box::new(Formed::new(grammar.clone(), before));
        let constrained = match bounded {
            Some(bounded) => bounded.around(constrained),
            None => constrained,
        };
        signal.ready(Some(match token_limits {
            Some(limits) => limits.around(Some(constrained)),
            None => constrained,
        }));
    }
}
