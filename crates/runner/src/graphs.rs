//! Decode steps that a device has recorded, by their rows.
//!
//! A decode step is some hundred launches of a few microseconds each; recorded once, they are
//! asked for in one call. A recorded step has the rows of its bucket: a step of fewer is padded.

use sconce_kernels::{Backend, KernelError, StepPlan};
use sconce_models::{Buf, BufPlace, Workspace};

use crate::LoadError;

/// The largest bucket where none are asked for.
const MOST_ROWS: usize = 256;

/// Recorded steps, the smallest first.
pub(crate) struct Graphs<B: Backend>(Vec<Recorded<B>>);

/// A recorded step, and where its results lie.
pub(crate) struct Recorded<B: Backend> {
    pub(crate) rows: usize,
    pub(crate) graph: B::Graph,
    pub(crate) hidden: BufPlace,
    pub(crate) logits: BufPlace,
}

impl<B: Backend> Graphs<B> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the recorded step of a smaller bucket than those there are.
    pub(crate) fn push_smaller(&mut self, recorded: Recorded<B>) {
        self.0.insert(0, recorded);
    }

    /// The smallest bucket that holds the step, if it is a decode step.
    pub(crate) fn of(&self, plan: &StepPlan) -> Option<&Recorded<B>> {
        let index = self.0.partition_point(|recorded| recorded.rows < plan.num_tokens());
        self.0.get(index).filter(|_| plan.is_decode())
    }
}

/// Records a step that is staged.
///
/// # Errors
/// The device refused it.
pub(crate) fn record<B: Backend>(
    backend: &mut B,
    step: &B::Step,
    workspace: &mut Workspace<B>,
    rows: usize,
    mut forward: impl FnMut(&mut B, &mut Workspace<B>) -> Result<(Buf, Buf), KernelError>,
) -> Result<Recorded<B>, KernelError> {
    // Loads each kernel, and lets cuBLAS choose.
    let (hidden, logits) = forward(backend, workspace)?;
    [hidden, logits].into_iter().for_each(|buf| workspace.free(buf));
    let (graph, (hidden, logits)) = backend.capture(step, |backend| forward(backend, workspace))?;
    let [hidden, logits] = [hidden, logits].map(|buf| workspace.place(&buf));
    Ok(Recorded { rows, graph, hidden, logits })
}

/// The buckets that were asked for, or 1, 2, 4, 8 and every eighth up to the most sequences
/// of a step, at most 256; ascending.
///
/// # Errors
/// One that no step has.
pub(crate) fn buckets(
    asked: Option<&[usize]>,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
) -> Result<Vec<usize>, LoadError> {
    let most = max_num_seqs.min(max_num_batched_tokens);
    let Some(asked) = asked else {
        let most = most.min(MOST_ROWS);
        let eighths = (8..).step_by(8).take_while(|&rows| rows < most);
        let buckets = [1, 2, 4].into_iter().filter(|&rows| rows < most).chain(eighths);
        return Ok(buckets.chain([most]).collect());
    };
    if let Some(&size) = asked.iter().find(|&&size| size == 0 || size > most) {
        return Err(LoadError::GraphSize { size, most });
    }
    let mut buckets = asked.to_vec();
    buckets.sort_unstable();
    buckets.dedup();
    Ok(buckets)
}

#[cfg(test)]
mod tests {
    use super::buckets;

    #[test]
    fn every_decode_step_has_a_bucket_that_is_little_larger() {
        for max_num_seqs in 1..300 {
            let buckets = buckets(None, max_num_seqs, 512).expect("there are defaults");
            assert!(buckets.is_sorted_by(|a, b| a < b), "{buckets:?}");
            assert_eq!(buckets.last(), Some(&max_num_seqs.min(256)));
            for rows in 1..=max_num_seqs.min(256) {
                let bucket = buckets.iter().find(|&&bucket| bucket >= rows);
                assert!(bucket.is_some_and(|&bucket| bucket < 2 * rows && bucket < rows + 8));
            }
        }
        // A step has no more rows than tokens.
        assert_eq!(buckets(None, 256, 20).expect("defaults"), [1, 2, 4, 8, 16, 20]);
    }

    #[test]
    fn what_is_asked_for_is_taken_once_each_or_refused() {
        assert_eq!(buckets(Some(&[8, 1, 8]), 16, 512).expect("they fit"), [1, 8]);
        assert!(buckets(Some(&[]), 16, 512).expect("none is right too").is_empty());
        for size in [0, 17] {
            let refused = buckets(Some(&[1, size]), 16, 512).expect_err("no step has it");
            assert!(refused.to_string().contains(&format!(" {size}")), "{refused}");
        }
    }
}
