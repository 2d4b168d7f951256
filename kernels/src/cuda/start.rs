//! Taking a GPU into use: what must be there, and what a person is told where it is not.
#![expect(unsafe_code, reason = "the driver fills in what it is asked")]

use std::fs::OpenOptions;
use std::io::ErrorKind;

use candle_core::CudaDevice;
use cudarc::driver::{CudaContext, DriverError, result as cuda, sys};
use sys::CUresult as E;

use super::device::device_error;
use crate::KernelError;

/// The CUDA version whose machine code the kernels are, as `cuDriverGetVersion` counts it;
/// drivers 580 and later have it.
const CUDA_VERSION: i32 = 13_000;

/// Opens candle's device after asking for all that it needs.
///
/// # Errors
/// [`KernelError::NoDevice`] where there is no driver or no such device; else what is wrong
/// with the one there is.
pub(super) fn open(ordinal: usize) -> Result<CudaDevice, KernelError> {
    let failed = |error| not_started(ordinal, error);
    cuda::init().map_err(failed)?;
    check_version()?;
    let count = cuda::device::get_count().map_err(failed)?;
    if usize::try_from(count).unwrap_or(0) <= ordinal {
        return Err(KernelError::NoDevice {
            reason: format!("the driver knows {count} devices, and this is number {ordinal}"),
        });
    }
    check_libraries()?;
    let context = CudaContext::new(ordinal).map_err(failed)?;
    let (major, minor) = context.compute_capability().map_err(failed)?;
    if major < 8 {
        return Err(KernelError::Unsupported {
            what: format!("compute capability {major}.{minor}"),
            device: "CUDA",
            accepted: "8.0 (Ampere) and later are",
        });
    }
    // Its primary context is the one above.
    Ok(CudaDevice::new_with_stream(ordinal)?)
}

/// Why the driver did not start a device, with what a person can do.
fn not_started(ordinal: usize, error: DriverError) -> KernelError {
    let reason = match error.0 {
        E::CUDA_ERROR_STUB_LIBRARY => {
            return KernelError::NoDevice {
                reason: "there is no NVIDIA driver (libcuda.so.1)".to_owned(),
            };
        }
        E::CUDA_ERROR_NO_DEVICE => match refused_file() {
            None => {
                return KernelError::NoDevice {
                    reason: "the driver finds no device (CUDA_ERROR_NO_DEVICE)".to_owned(),
                };
            }
            Some(file) => format!("{file} may not be opened by this user"),
        },
        E::CUDA_ERROR_NOT_PERMITTED | E::CUDA_ERROR_OPERATING_SYSTEM => {
            "the operating system refuses it: /dev/nvidia* must be readable and writable by this \
             user, and passed on to its container"
                .to_owned()
        }
        E::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process holds it exclusively (nvidia-smi -q -d COMPUTE shows the mode)"
                .to_owned()
        }
        E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | E::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "libcuda.so.1 is of another version than the driver that the kernel loaded".to_owned()
        }
        E::CUDA_ERROR_SYSTEM_NOT_READY => "its fabric manager does not run".to_owned(),
        E::CUDA_ERROR_OUT_OF_MEMORY => {
            "other processes have taken all of its memory (nvidia-smi shows them)".to_owned()
        }
        _ => return device_error(&format!("starting CUDA device {ordinal}"), error),
    };
    KernelError::Device {
        op: format!("starting CUDA device {ordinal}"),
        reason: format!("{reason} ({:?})", error.0),
        sticky: false,
    }
}

/// The device file that this user may not open, if that is why there is no device.
fn refused_file() -> Option<&'static str> {
    ["/dev/nvidiactl", "/dev/nvidia0"].into_iter().find(|file| {
        let opened = OpenOptions::new().read(true).write(true).open(file);
        opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    })
}

/// The newest CUDA version that the driver knows, as it counts them.
pub(super) fn driver_version() -> Result<i32, KernelError> {
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    asked.result().map_err(|error| device_error("the driver's version", error))?;
    Ok(version)
}

fn check_version() -> Result<(), KernelError> {
    let version = driver_version()?;
    if version >= CUDA_VERSION {
        return Ok(());
    }
    let show = |version| format!("{}.{}", version / 1000, version % 1000 / 10);
    Err(KernelError::Device {
        op: "starting CUDA".to_owned(),
        reason: format!(
            "the driver is of CUDA {}, but the kernels need {}: driver 580 or later",
            show(version),
            show(CUDA_VERSION),
        ),
        sticky: false,
    })
}

/// Names every library of NVIDIA's that is missing: what would use it says less.
fn check_libraries() -> Result<(), KernelError> {
    let missing: Vec<&str> = stubs::missing().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(KernelError::Device {
        op: "starting CUDA".to_owned(),
        reason: format!(
            "{} cannot be opened; the CUDA 13 runtime libraries have it (nvidia-cublas and \
             nvidia-curand on PyPI), found through LD_LIBRARY_PATH",
            missing.join(" and ")
        ),
        sticky: false,
    })
}

/// What `kernels/stubs` knows of NVIDIA's libraries.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stubs {
    unsafe extern "C" {
        safe fn sconce_cublas_missing() -> i32;
        safe fn sconce_curand_missing() -> i32;
    }

    pub(super) fn missing() -> impl Iterator<Item = &'static str> {
        let cublas = (sconce_cublas_missing() != 0).then_some("cuBLAS (libcublas.so.13)");
        let curand = (sconce_curand_missing() != 0).then_some("cuRAND (libcurand.so.10)");
        cublas.into_iter().chain(curand)
    }
}

/// Linked with the libraries themselves, a binary does not start without them.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod stubs {
    pub(super) fn missing() -> impl Iterator<Item = &'static str> {
        std::iter::empty()
    }
}
