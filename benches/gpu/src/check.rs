//! Every kernel against its reference.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::ensure;
use sconce_cuda_shim::{Bench, ShimDriver, cases};
use sconce_kernels::cuda::Driver;
use serde_json::json;

use crate::report;

/// Names of the backend's cases, which make devices of their own.
const BACKEND: [&str; 6] = [
    "a_layer_over_ragged_batches_is_the_cpus",
    "masks_of_any_length_reach_the_kernels",
    "what_does_not_fit_is_refused_by_name",
    "a_replayed_step_is_the_step_that_is_staged",
    "what_cannot_be_recorded_is_refused",
    "steps_in_flight_sample_as_one_by_one",
];

/// Prints the cases' names.
pub(crate) fn list() {
    let kernels = cases::all::<ShimDriver>().into_iter().map(|(name, _)| name);
    kernels.chain(BACKEND).for_each(|name| report(&json!({ "check": name })));
}

/// Runs the cases whose names contain `only`.
pub(crate) fn run<D: Driver>(
    device: impl Fn() -> anyhow::Result<D>,
    only: &str,
) -> anyhow::Result<()> {
    let (mut ran, mut failed) = (0, 0);
    let mut check = |name: &str, run: &mut dyn FnMut()| {
        // What went wrong was printed when it did.
        let passed = catch_unwind(AssertUnwindSafe(run)).is_ok();
        (ran, failed) = (ran + 1, failed + usize::from(!passed));
        report(&json!({ "check": name, "passed": passed }));
    };
    for (name, run) in cases::all().into_iter().filter(|(name, _)| name.contains(only)) {
        let mut bench = Bench::new(device()?);
        check(name, &mut || run(&mut bench));
    }
    let device = || device().expect("it was there a moment ago");
    let [layer, masks, refusals, replayed, unrecorded, in_flight] = BACKEND;
    if layer.contains(only) {
        check(layer, &mut || cases::backend::a_layer_over_ragged_batches_is_the_cpus(device));
    }
    if masks.contains(only) {
        check(masks, &mut || cases::sampling_masks::masks_of_any_length_reach_the_kernels(device));
    }
    if refusals.contains(only) {
        check(refusals, &mut || cases::backend::what_does_not_fit_is_refused_by_name(device));
    }
    if replayed.contains(only) {
        check(replayed, &mut || cases::graphs::a_replayed_step_is_the_step_that_is_staged(device));
    }
    if unrecorded.contains(only) {
        check(unrecorded, &mut || cases::graphs::what_cannot_be_recorded_is_refused(device));
    }
    if in_flight.contains(only) {
        check(in_flight, &mut || cases::overlap::steps_in_flight_sample_as_one_by_one(device));
    }
    ensure!(ran > 0, "no case's name contains {only}");
    ensure!(failed == 0, "{failed} of {ran} checks failed");
    Ok(())
}
