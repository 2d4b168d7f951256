//! Compiles the shim with kernels into a program; also part of the build script.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles the shim of `shim` with these kernels, which may include headers from
/// `cuda`, into `program`.
///
/// # Errors
/// The compiler failed; what it said is in the error.
pub fn compile(
    compiler: &Path,
    shim: &Path,
    cuda: &Path,
    kernels: &[PathBuf],
    program: &Path,
) -> io::Result<()> {
    let output = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        // A product and a sum are two roundings unless a kernel says fmaf.
        .args(["-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .arg("-I")
        .arg(cuda)
        .arg("-I")
        .arg(shim)
        .args(["-x", "c++"])
        .args([shim.join("shim.cpp"), shim.join("main.cpp")])
        .args(kernels)
        .arg("-o")
        .arg(program)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}
