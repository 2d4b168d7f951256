//! Running recorded requests again: the same tokens, alone or under load.

use sconce_engine::{EngineHandle, EngineRequest, RequestError, RequestEvent, SubmitError};
use sconce_types::{End, TokenId};
use tokio::task::JoinSet;

use crate::recording::Recorded;

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Requests that got the same tokens again.
    pub same: usize,
    /// Those that did not.
    pub different: Vec<Difference>,
}

/// A request that went another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its id as its client knew it.
    pub request_id: String,
    /// The first output token that differs, from 0.
    pub position: usize,
    /// What was recorded there, if anything.
    pub recorded: Option<TokenId>,
    /// What came now, if anything.
    pub replayed: Option<TokenId>,
}

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The engine refused a request.
    #[error("request {request_id} was refused: {source}")]
    Submit {
        /// Its id.
        request_id: String,
        /// Why.
        source: SubmitError,
    },
    /// A request failed.
    #[error("request {request_id} failed: {source}")]
    Failed {
        /// Its id.
        request_id: String,
        /// Why.
        source: RequestError,
    },
}

/// Runs recorded requests, `concurrency` at once, and compares their tokens.
/// `progress` is told how many are done.
///
/// A request that was given up before its end is run for as many tokens as it had.
///
/// # Errors
/// The engine refused a request, or one failed.
pub async fn replay(
    engine: &EngineHandle,
    recorded: Vec<Recorded>,
    concurrency: usize,
    mut progress: impl FnMut(usize),
) -> Result<Replay, ReplayError> {
    let mut outcome = Replay::default();
    let mut left = recorded.into_iter();
    let mut running = JoinSet::new();
    let mut done = 0;
    loop {
        while running.len() < concurrency.max(1)
            && let Some(request) = left.next()
        {
            running.spawn(run(engine.clone(), request));
        }
        let Some(ended) = running.join_next().await else { return Ok(outcome) };
        match ended.expect("nothing in a replay panics")? {
            None => outcome.same += 1,
            Some(difference) => outcome.different.push(difference),
        }
        done += 1;
        progress(done);
    }
}

async fn run(engine: EngineHandle, request: Recorded) -> Result<Option<Difference>, ReplayError> {
    let Recorded { request_id, prompt, mut params, tokens, end } = request;
    // A stop string may have ended it, which a recording does not hold.
    if end != End::Length {
        params.max_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        params.min_tokens = params.min_tokens.min(params.max_tokens);
    }
    let submitted = engine.submit(EngineRequest::new(prompt, params));
    let mut stream = submitted
        .map_err(|source| ReplayError::Submit { request_id: request_id.clone(), source })?;
    let mut replayed = Vec::with_capacity(tokens.len());
    while let Some(event) = stream.next().await {
        match event {
            RequestEvent::Token(event) => replayed.push(event.token),
            RequestEvent::Embedding(_) | RequestEvent::PromptLogprobs { .. } => {}
            RequestEvent::Failed(source) => return Err(ReplayError::Failed { request_id, source }),
        }
    }
    if tokens == replayed {
        return Ok(None);
    }
    let position = tokens.iter().zip(&replayed).take_while(|(a, b)| a == b).count();
    let at = |tokens: &[TokenId]| tokens.get(position).copied();
    let (recorded, replayed) = (at(&tokens), at(&replayed));
    Ok(Some(Difference { request_id, position, recorded, replayed }))
}
