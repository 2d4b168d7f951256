//! What one answer may go on with.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};
use sconce_types::TokenId;

use crate::{GrammarError, mask_threads::MaskThreads};

/// How long the wanted mask of an answer holds up the thread that asks for it, counted from
/// the token that it follows.
const PATIENCE: Duration = Duration::from_millis(5);
/// A mask that took no longer is quick, and so the next should be.
const QUICK: Duration = Duration::from_millis(1);
/// What a mask may take at most, once it is being computed; the compiler's own limits end
/// most of those that would take longer.
const MOST: Duration = Duration::from_millis(500);

/// The tokens that one answer may go on with, token by token.
///
/// Once a token is accepted the next mask is computed on threads of the grammar's, while the
/// device computes logits.
pub struct Constraint {
    slot: Arc<Slot>,
    threads: Arc<MaskThreads>,
}

/// An answer's place in its grammar, shared with the threads that compute masks.
pub(crate) struct Slot {
    state: Mutex<State>,
    settled: Condvar,
    end_tokens: Arc<[TokenId]>,
}

struct State {
    /// Absent while it is at work.
    matcher: Option<Box<Matcher>>,
    /// Accepted, and not yet known to the matcher.
    tokens: Vec<TokenId>,
    mask: Mask,
    /// When the mask became wanted.
    since: Instant,
    /// What the last one took.
    cost: Duration,
}

enum Mask {
    Ready(SimpleVob),
    Wanted,
    /// Since when, and how to end that.
    Computing(Instant, Option<CancellationHandle>),
    Failed(GrammarError),
    /// Nobody asks any more.
    Abandoned,
}

impl Constraint {
    pub(crate) fn new(
        matcher: Matcher,
        first_mask: SimpleVob,
        end_tokens: Arc<[TokenId]>,
        threads: Arc<MaskThreads>,
    ) -> Self {
        let state = State {
            matcher: Some(Box::new(matcher)),
            tokens: Vec::new(),
            mask: Mask::Ready(first_mask),
            since: Instant::now(),
            cost: Duration::ZERO,
        };
        let slot = Slot { state: Mutex::new(state), settled: Condvar::new(), end_tokens };
        Self { slot: Arc::new(slot), threads }
    }

    /// Writes the tokens that may come next over `words`, all zero: token `t` as bit `t % 32`
    /// of word `t / 32`. Where it says `false` the mask is not ready yet. Where the constraint
    /// has failed no token is allowed.
    pub fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        let mut state = self.slot.state();
        loop {
            let left = (state.since + PATIENCE).saturating_duration_since(Instant::now());
            match &state.mask {
                Mask::Ready(mask) => {
                    let mask = mask.as_slice();
                    let len = mask.len().min(words.len());
                    words[..len].copy_from_slice(&mask[..len]);
                    return true;
                }
                Mask::Failed(_) | Mask::Abandoned => return true,
                Mask::Computing(began, cancellation) if began.elapsed() > MOST => {
                    if let Some(cancellation) = cancellation {
                        cancellation.cancel();
                    }
                    return false;
                }
                Mask::Wanted | Mask::Computing(..) if left.is_zero() => return false,
                Mask::Wanted | Mask::Computing(..) => {
                    let waited = self.slot.settled.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Takes the token that was generated.
    pub fn accept(&mut self, token: TokenId) {
        let mut state = self.slot.state();
        state.tokens.push(token);
        // After its end an answer goes on with nothing.
        if self.slot.end_tokens.contains(&token) || !matches!(state.mask, Mask::Ready(_)) {
            return;
        }
        state.mask = Mask::Wanted;
        state.since = Instant::now();
        let is_quick = state.cost <= QUICK;
        drop(state);
        self.threads.push(&self.slot, is_quick);
    }

    /// Why the constraint cannot go on.
    #[must_use]
    pub fn failure(&self) -> Option<GrammarError> {
        match &self.slot.state().mask {
            Mask::Failed(error) => Some(error.clone()),
            _ => None,
        }
    }
}

impl Drop for Constraint {
    fn drop(&mut self) {
        let mut state = self.slot.state();
        if let Mask::Computing(_, Some(cancellation)) = &state.mask {
            cancellation.cancel();
        }
        state.mask = Mask::Abandoned;
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        // Matchers work outside of the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes the mask, if it is wanted and nothing computes it yet.
    pub(crate) fn compute(&self) {
        let mut state = self.state();
        while matches!(state.mask, Mask::Wanted) {
            let Some(mut matcher) = state.matcher.take() else { return };
            let tokens = std::mem::take(&mut state.tokens);
            let began = Instant::now();
            state.mask = Mask::Computing(began, matcher.cancellation_handle());
            drop(state);
            let consumed = matcher.consume_tokens(&tokens);
            let mask = consumed.and_then(|()| matcher.compute_mask_or_eos());
            state = self.state();
            state.cost = began.elapsed();
            state.matcher = Some(matcher);
            if matches!(state.mask, Mask::Computing(..)) {
                state.mask = match mask {
                    Ok(_) if !state.tokens.is_empty() => Mask::Wanted,
                    Ok(mask) => Mask::Ready(mask),
                    Err(error) => {
                        let why = match state.matcher.as_ref().is_some_and(|m| m.is_cancelled()) {
                            true => format!("a mask took more than {} ms", MOST.as_millis()),
                            false => GrammarError::of_compiler(&error),
                        };
                        Mask::Failed(GrammarError::TooComplex(why))
                    }
                };
            }
        }
        self.settled.notify_all();
    }
}
