//! Which forms of operations a device computes by: found out when a model is first loaded on a
//! device of its kind, kept in a folder.

use std::{path::Path, time::Instant};

use sconce_kernels::{Backend, CacheDtype, Findings, KernelError};

/// A form of an operation that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormFault {
    /// The operation.
    pub operation: String,
    /// The form.
    pub form: String,
    /// What it did.
    pub fault: String,
}

/// What [`crate::examine`] found out.
#[derive(Debug)]
pub struct Examined {
    /// The device, in words.
    pub device: String,
    /// What was known.
    pub before: Findings,
    /// What is known now.
    pub found: Findings,
    /// Why there is no more of it, if not all could be tried.
    pub error: Option<KernelError>,
}

/// Tries again what the folder knows: what was known, what is now, and what went wrong.
#[cfg(feature = "cuda")]
pub(crate) fn try_again<D: sconce_kernels::cuda::Driver>(
    cuda: &mut sconce_kernels::cuda::Cuda<D>,
    folder: &Path,
) -> (Findings, Findings, Option<KernelError>) {
    use sconce_kernels::Device as _;

    let before = Findings::read(folder, &cuda.setting().unwrap_or_default());
    let mut found = before.clone();
    let keep = |now: &Findings| {
        if let Err(error) = now.write(folder) {
            tracing::warn!("{} cannot keep what was found: {error}", folder.display());
        }
    };
    let error = cuda.try_again(&mut found, &mut { keep }).err();
    (before, found, error)
}

/// Has the backend, on which a model is loaded, use the best forms of its operations; `folder`
/// has what was found before, and gets what is found now. `heads` are the model's, each with the
/// dtype of its cache.
///
/// # Errors
/// The device failed, or no form of an operation is right.
pub(crate) fn choose<B: Backend>(
    backend: &mut B,
    heads: &[(usize, CacheDtype)],
    folder: &Path,
) -> Result<Vec<FormFault>, KernelError> {
    let Some(setting) = backend.setting() else { return Ok(Vec::new()) };
    let mut found = Findings::read(folder, &setting);
    let (started, mut is_told) = (Instant::now(), false);
    let mut keep = |now: &Findings| {
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(
                "trying the forms of products and attention on {setting}; it takes some seconds, once"
            );
        }
        if let Err(error) = now.write(folder) {
            tracing::debug!("{}: {error}", folder.display());
        }
    };
    backend.try_forms(heads, &mut found, &mut keep)?;
    if is_told {
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!("tried them in {seconds:.1} s; sconce doctor shows what came of it");
        // Where nothing can be kept the next start tries again.
        if let Err(error) = found.write(folder) {
            tracing::warn!("{} cannot keep what was found: {error}", folder.display());
        }
    }
    let faults = faults(&found);
    for FormFault { operation, form, fault } in &faults {
        tracing::warn!("{operation}: {form} {fault}; it is not used");
    }
    Ok(faults)
}

/// Forms that are not used.
fn faults(found: &Findings) -> Vec<FormFault> {
    let fault = |trial: &sconce_kernels::Trial| {
        let (operation, form) = (trial.operation.clone(), trial.form.clone());
        Some(FormFault { operation, form, fault: trial.fault()? })
    };
    found.trials().iter().filter_map(fault).collect()
}
