//! How long launches take, by the device's own events.

use sconce_kernels::{
    KernelError,
    cuda::{Cuda, Driver},
};

/// How often a time is taken.
#[derive(Clone, Copy)]
pub(crate) struct Repetitions {
    /// A repetition lasts so many, so that starting and waiting are little of it.
    pub(crate) seconds: f64,
    pub(crate) number: usize,
}

const THOROUGH: Repetitions = Repetitions { seconds: 0.02, number: 7 };

/// The median of the seconds that one call takes, of many one after another. A call is
/// told its number, so that it can take its inputs in turns. A dry run has one call.
pub(crate) fn seconds<D: Driver>(
    cuda: &mut Cuda<D>,
    dry_run: bool,
    call: impl FnMut(&mut Cuda<D>, usize) -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    seconds_in(THOROUGH, cuda, dry_run, call)
}

/// The same of fewer or shorter repetitions.
pub(crate) fn seconds_in<D: Driver>(
    repetitions: Repetitions,
    cuda: &mut Cuda<D>,
    dry_run: bool,
    mut call: impl FnMut(&mut Cuda<D>, usize) -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    let mut number = 0;
    let mut repeat = |cuda: &mut Cuda<D>, calls: usize| {
        cuda.driver_mut().begin_step()?;
        for _ in 0..calls {
            call(cuda, number)?;
            number += 1;
        }
        let time = cuda.driver_mut().finish()?.unwrap_or_default();
        Ok::<_, KernelError>(time.as_secs_f64() / calls as f64)
    };
    let first = repeat(cuda, 1)?;
    if dry_run {
        return Ok(first);
    }
    // The first has loaded what there was to load; these tell how many calls fill a
    // repetition.
    let about = repeat(cuda, 10)?;
    let calls = (repetitions.seconds / about).ceil().clamp(3.0, 20_000.0) as usize;
    let mut times =
        (0..repetitions.number).map(|_| repeat(cuda, calls)).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[repetitions.number / 2])
}
