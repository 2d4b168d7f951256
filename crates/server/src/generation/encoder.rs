//! Texts and their embeddings: what all that serves an encoder shares.

use std::{collections::VecDeque, sync::Arc};

use sconce_engine::{EngineRequest, Overload, RequestEvent, RequestStream, SubmitError};
use sconce_types::{EmbeddingInfo, SamplingParams, TokenId};

use super::{generator::Generator, inputs::Inputs};
use crate::{caller::TenantAuth, error::ApiError, traces::SequenceTrace};

/// Texts of one request: OpenAI's limit.
pub(crate) const MAX_INPUTS: usize = 2048;
/// Texts of one request that the engine has at a time: some steps' worth of short ones, and
/// few enough that other requests find places.
const WINDOW: usize = 128;

/// How many tokens of a text count.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    most: usize,
    /// Whether a longer text is cut, not refused.
    truncates: bool,
    special: bool,
}

impl Cut {
    /// What `truncate_prompt_tokens` and `add_special_tokens` say.
    ///
    /// # Errors
    /// More tokens than the model takes, or none.
    pub(crate) fn new(
        info: &EmbeddingInfo,
        truncate_prompt_tokens: Option<i64>,
        add_special_tokens: Option<bool>,
    ) -> Result<Self, ApiError> {
        let special = add_special_tokens.unwrap_or(true);
        let (most, truncates) = match truncate_prompt_tokens {
            None => (info.max_tokens, false),
            Some(-1) => (info.max_tokens, true),
            Some(asked) => {
                let fits =
                    usize::try_from(asked).ok().filter(|n| (1..=info.max_tokens).contains(n));
                let Some(most) = fits else {
                    let message = format!(
                        "truncate_prompt_tokens is {asked}, but must be from 1 to {}, or -1 for \
                         that",
                        info.max_tokens
                    );
                    return Err(ApiError::invalid(Some("truncate_prompt_tokens"), message));
                };
                (most, true)
            }
        };
        Ok(Self { most, truncates, special })
    }
}

/// The tokens of a field's texts.
///
/// # Errors
/// No text, too many of them, or one that is too long.
pub(crate) fn encode(
    generator: &Generator,
    inputs: Inputs,
    cut: Cut,
    field: &str,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    match inputs.len() {
        _ if is_empty(&inputs) => {
            let message = format!("{field} is an empty list, but must have at least one text");
            return Err(ApiError::invalid(Some(field), message + " or token"));
        }
        0..=MAX_INPUTS => {}
        count => {
            let message =
                format!("{field} has {count} entries, but at most {MAX_INPUTS} are taken");
            return Err(ApiError::invalid(Some(field), message));
        }
    }
    let text = &generator.text;
    let Cut { most, truncates, special } = cut;
    let of_text = |input: &String| {
        let tokens = if truncates {
            text.encode_truncated(input, special, most)
        } else {
            text.encode_within(input, special, most)
        };
        tokens.map_err(|error| ApiError::from(error).within(field))
    };
    let of_tokens = |mut tokens: Vec<TokenId>| {
        if truncates {
            tokens.truncate(most);
        }
        if tokens.len() > most {
            let what = format!("but an input has {}; shorten it", tokens.len());
            return Err(ApiError::too_long(Some(field), most, what));
        }
        Ok(tokens)
    };
    let inputs = match inputs {
        Inputs::Text(text) => vec![of_text(&text)?],
        Inputs::Texts(texts) => texts.iter().map(of_text).collect::<Result<_, _>>()?,
        Inputs::Tokens(tokens) => vec![of_tokens(tokens)?],
        Inputs::TokenLists(lists) => {
            lists.into_iter().map(of_tokens).collect::<Result<Vec<_>, _>>()?
        }
    };
    for tokens in &inputs {
        // Before any of them is computed.
        let checked = generator.engine.limits().check(tokens, 1);
        checked.map_err(|error| ApiError::from(error).renamed("prompt", field))?;
    }
    Ok(inputs)
}

/// Whether there is nothing: no token is no text.
fn is_empty(inputs: &Inputs) -> bool {
    match inputs {
        Inputs::Tokens(tokens) => tokens.is_empty(),
        others => others.len() == 0,
    }
}

/// Refuses what its tenant could use in no minute: it would be refused half done.
fn check_minute(caller: &TenantAuth, inputs: &[Vec<TokenId>], field: &str) -> Result<(), ApiError> {
    let limit = caller.entry().and_then(|entry| entry.tenant.tokens_per_minute);
    // Each text reserves the token that nobody reads.
    let tokens = inputs.iter().map(|tokens| tokens.len() + 1).sum::<usize>() as u64;
    match limit.filter(|&limit| tokens > limit) {
        None => Ok(()),
        Some(limit) => {
            let message = format!(
                "{field} has {tokens} tokens, but this tenant's limit is {limit} a minute, so \
                 that it could never be taken; send fewer texts at a time"
            );
            Err(ApiError::invalid(Some(field), message))
        }
    }
}

/// Fewer numbers than the model makes, where its first ones are an embedding too.
///
/// # Errors
/// The model's embeddings cannot be cut to so many.
pub(crate) fn check_dimensions(info: &EmbeddingInfo, asked: usize) -> Result<usize, ApiError> {
    let most = info.dimensions;
    let accepted = match &info.matryoshka {
        _ if asked == most => return Ok(asked),
        None => format!("{most}: this model's embeddings cannot be cut"),
        Some(any) if any.is_empty() => {
            if (1..=most).contains(&asked) {
                return Ok(asked);
            }
            format!("from 1 to {most}")
        }
        Some(some) => {
            if asked < most && some.contains(&asked) {
                return Ok(asked);
            }
            let some: Vec<String> = some.iter().map(ToString::to_string).collect();
            format!("{most}, or one of {}", some.join(", "))
        }
    };
    let message = format!("dimensions is {asked}, but must be {accepted}");
    Err(ApiError::invalid(Some("dimensions"), message))
}

/// The embeddings of texts, in their order. Each is a request of the engine's, whose steps
/// hold texts of all requests and tenants. Where the engine has no place for another, one of
/// this request's own is waited for first, if there is one.
pub(crate) async fn embed(
    generator: &Generator,
    caller: &TenantAuth,
    inputs: Vec<Vec<TokenId>>,
    field: &str,
) -> Result<Vec<Arc<[f32]>>, ApiError> {
    check_minute(caller, &inputs, field)?;
    let mut embeddings = Vec::with_capacity(inputs.len());
    let mut running: VecDeque<Running> = VecDeque::new();
    for tokens in inputs {
        if let Some(stats) = &caller.stats {
            stats.note_prompt(tokens.len());
        }
        if let Some(trace) = &caller.trace {
            trace.note_prompt(tokens.len());
        }
        if running.len() == WINDOW {
            embeddings.extend(next_embedding(&mut running).await?);
        }
        let params = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
        let trace = caller.trace.as_ref().map(|trace| trace.sequence(None));
        let request = EngineRequest {
            tenant: caller.id,
            request_id: Arc::clone(&caller.request_id),
            // The token that a text ends in is none of the model's.
            scores_prompt: true,
            clock: trace.as_ref().map(|trace| trace.clock.clone()),
            ..EngineRequest::new(tokens, params)
        };
        let stream = loop {
            match generator.engine.submit(request.clone()) {
                Ok(stream) => break stream,
                Err(error) if !running.is_empty() && is_full(&error) => {
                    embeddings.extend(next_embedding(&mut running).await?);
                }
                Err(error) => return Err(ApiError::from(error).renamed("prompt", field)),
            }
        };
        running.push_back(Running { stream, trace });
    }
    while let Some(embedding) = next_embedding(&mut running).await? {
        embeddings.push(embedding);
    }
    Ok(embeddings)
}

/// Whether a text is refused for others that are before it, which may be its own request's.
fn is_full(error: &SubmitError) -> bool {
    match error {
        SubmitError::QueueFull { .. } => true,
        SubmitError::Overloaded { reason, .. } => {
            !matches!(reason, Overload::TokensPerMinute { .. })
        }
        _ => false,
    }
}

/// A text that the engine has.
struct Running {
    stream: RequestStream,
    trace: Option<Box<SequenceTrace>>,
}

/// Waits for the text that was submitted first; `None` if none is left.
async fn next_embedding(running: &mut VecDeque<Running>) -> Result<Option<Arc<[f32]>>, ApiError> {
    let Some(Running { mut stream, mut trace }) = running.pop_front() else { return Ok(None) };
    let mut embedding = None;
    loop {
        match stream.next().await {
            Some(RequestEvent::Embedding(made)) => embedding = Some(made),
            // Its end: read, lest the request count as cancelled.
            Some(RequestEvent::Token(end)) => {
                if let Some(trace) = &mut trace {
                    trace.usage = end.usage;
                }
                let missing = || ApiError::internal("the model made no embedding");
                return embedding.map(Some).ok_or_else(missing);
            }
            Some(RequestEvent::Failed(error)) => {
                if let Some(trace) = &trace {
                    trace.note_error(&error);
                }
                return Err(error.into());
            }
            Some(RequestEvent::PromptLogprobs { .. }) => {}
            None => return Err(ApiError::bug()),
        }
    }
}

/// The first numbers of an embedding, scaled to length 1.
pub(crate) fn shortened(embedding: &[f32], dimensions: usize) -> Vec<f32> {
    let first = &embedding[..dimensions];
    let length = first.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    first.iter().map(|x| x / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_embeddings_that_may_be_cut_are() {
        let info = |matryoshka| EmbeddingInfo {
            dimensions: 8,
            matryoshka,
            is_normalized: true,
            max_tokens: 16,
        };
        let allowed = |matryoshka: Option<Vec<usize>>| -> Vec<usize> {
            let info = info(matryoshka);
            (0..=10).filter(|&asked| check_dimensions(&info, asked).is_ok()).collect()
        };
        assert_eq!(allowed(None), [8]);
        assert_eq!(allowed(Some(Vec::new())), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(allowed(Some(vec![2, 4, 9])), [2, 4, 8]);
        assert_eq!(shortened(&[3.0, 4.0, 12.0], 2), [0.6, 0.8]);
    }
}
