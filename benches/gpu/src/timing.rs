//! How long launches take, by the device's own events.

use sconce_kernels::{
    KernelError,
    cuda::{Cuda, Driver},
};

/// A repetition lasts so many seconds, so that starting and waiting are little of it.
const REPETITION: f64 = 0.02;
const REPETITIONS: usize = 7;

/// The median of the seconds that one call takes, of many one after another. A call is
/// told its number, so that it can take its inputs in turns. A dry run has one call.
pub(crate) fn seconds<D: Driver>(
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
    let calls = (REPETITION / about).ceil().clamp(3.0, 20_000.0) as usize;
    let mut times = (0..REPETITIONS).map(|_| repeat(cuda, calls)).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[REPETITIONS / 2])
}
