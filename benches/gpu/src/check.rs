//! Every kernel against its reference.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::bail;
use sconce_cuda_shim::{Bench, cases};
use sconce_kernels::cuda::Driver;
use serde_json::json;

use crate::report;

/// Runs the cases whose names contain `only`.
pub(crate) fn run<D: Driver>(
    device: impl Fn() -> anyhow::Result<D>,
    only: &str,
) -> anyhow::Result<()> {
    let mut failed = 0;
    let mut check = |name: &str, run: &mut dyn FnMut()| {
        if !name.contains(only) {
            return;
        }
        // What went wrong was printed when it did.
        let passed = catch_unwind(AssertUnwindSafe(run)).is_ok();
        failed += usize::from(!passed);
        report(&json!({ "check": name, "passed": passed }));
    };
    // The shim is lost with the first fault, a GPU's context too: each case has its own.
    for (name, run) in cases::all() {
        let mut bench = Bench::new(device()?);
        check(name, &mut || run(&mut bench));
    }
    let device = || device().expect("it was there a moment ago");
    check("a_layer_over_ragged_batches_is_the_cpus", &mut || {
        cases::backend::a_layer_over_ragged_batches_is_the_cpus(device);
    });
    check("what_does_not_fit_is_refused_by_name", &mut || {
        cases::backend::what_does_not_fit_is_refused_by_name(device);
    });
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}
