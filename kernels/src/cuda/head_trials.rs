//! Trials of forms between which the size of heads and the dtype of their cache decide; what trials
//! compute with, and how long they take.

use std::time::{Duration, Instant};

use super::{Cuda, Driver, names, product_trials::SLOW};
use crate::{CacheDtype, Dtype, Findings, KernelError, Verdict};

/// The size of heads, and the dtype of their cache.
pub(super) type Heads = (usize, CacheDtype);

/// An operation of which there are two forms.
pub(super) struct TwoForms {
    /// What its name begins with.
    pub(super) begin: &'static str,
    /// In the order in which they are preferred.
    pub(super) forms: [&'static str; 2],
}

impl TwoForms {
    fn name(&self, (head_dim, cache): Heads, dtype: Dtype) -> String {
        format!("{}, heads of {head_dim}, {dtype:?}, cache {cache:?}", self.begin)
    }

    /// The heads in a name.
    fn heads_of(&self, name: &str, dtype: Dtype) -> Option<Heads> {
        let rest = name.strip_prefix(self.begin)?.strip_prefix(", heads of ")?;
        let head_dim = rest.split_once(',')?.0.parse().ok()?;
        let caches = [dtype.into(), CacheDtype::Fp8E4m3];
        let heads = caches.into_iter().map(|cache| (head_dim, cache));
        heads.into_iter().find(|&heads| self.name(heads, dtype) == name)
    }
}

impl<D: Driver> Cuda<D> {
    /// The form that was found best for these heads.
    pub(super) fn form_of_heads(&self, of: &TwoForms, heads: Heads) -> Option<&'static str> {
        self.forms_of_heads.get(&(of.begin, heads)).copied()
    }

    /// Tries what is not known of these heads, and has each take its best form from then on.
    pub(super) fn try_two_forms(
        &mut self,
        of: &TwoForms,
        heads: &[Heads],
        (found, keep): (&mut Findings, &mut dyn FnMut(&Findings)),
        attempt: impl Fn(&mut Self, &'static str, Heads) -> Result<Verdict, KernelError>,
    ) -> Result<(), KernelError> {
        for &heads in heads {
            // Of another cache the device has no kernels.
            if names::rope_and_cache((self.dtype, heads.1)).is_none() {
                continue;
            }
            let name = of.name(heads, self.dtype);
            if of.forms.iter().any(|form| !found.knows(&name, form)) {
                for form in of.forms {
                    found.try_form(&name, form, keep, || attempt(self, form, heads))?;
                }
                keep(found);
            }
            let best = found.best(&name).ok_or_else(|| Findings::none_is_right(&name))?;
            if let Some(form) = of.forms.into_iter().find(|form| *form == best) {
                self.forms_of_heads.insert((of.begin, heads), form);
            }
        }
        Ok(())
    }

    /// The heads that `found` knows something of, of which it then knows nothing any more; heads of
    /// 128 if there are none.
    pub(super) fn forget_heads(&self, of: &TwoForms, found: &mut Findings) -> Vec<Heads> {
        let known = found.trials().iter().filter_map(|t| of.heads_of(&t.operation, self.dtype));
        let mut heads: Vec<_> = known.collect();
        heads.dedup();
        if heads.is_empty() {
            heads.push((128, self.dtype.into()));
        }
        heads.iter().for_each(|&heads| found.forget(&of.name(heads, self.dtype)));
        heads
    }

    /// Memory with these bytes.
    pub(super) fn place(&self, bytes: &[u8]) -> Result<D::Memory, KernelError> {
        // Nothing has no address.
        let mut memory = self.driver.allocate(bytes.len().max(1), "trials of forms")?;
        if !bytes.is_empty() {
            self.driver.upload(&mut memory, 0, bytes)?;
        }
        Ok(memory)
    }

    /// Memory with so many bytes of these numbers, over and over.
    pub(super) fn place_over(
        &self,
        numbers: &[u8],
        bytes: usize,
    ) -> Result<D::Memory, KernelError> {
        let mut all = numbers.repeat(bytes.div_ceil(numbers.len()));
        all.truncate(bytes);
        self.place(&all)
    }

    /// What a form takes that has been found right: `time` says what one of so many calls takes on
    /// what is given. Where one on what is `small` is slow already, that is all; else so many are
    /// made on what is `large`, if there is room for it.
    pub(super) fn time_trial<T>(
        &mut self,
        small: T,
        large: impl FnOnce(&Self) -> Result<T, KernelError>,
        calls: u32,
        time: impl Fn(&mut Self, &T, u32) -> Result<Duration, KernelError>,
    ) -> Result<Verdict, KernelError> {
        let started = Instant::now();
        let about = time(self, &small, 1)?;
        // An emulated device may keep time of its own.
        if about >= SLOW || started.elapsed() >= SLOW {
            return Ok(Verdict::Right(about));
        }
        let timed = match large(self) {
            Err(KernelError::OutOfMemory { .. }) => small,
            other => other?,
        };
        time(self, &timed, calls).map(Verdict::Right)
    }
}
