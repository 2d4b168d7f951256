//! Compiles the kernels as C++ together with the shim, under AddressSanitizer,
//! into a program of its own: what is wrong in a kernel ends that program, with a
//! message, and not the tests.

#[path = "src/compile.rs"]
mod compile;

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let cuda = here.join("../cuda");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let program = out.join("shim");
    let mut kernels = Vec::new();
    for entry in fs::read_dir(&cuda)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            kernels.push(path);
        }
    }
    kernels.sort();
    let cxx = cc::Build::new().cpp(true).get_compiler();
    let compiler = compile::Compiler { path: cxx.path(), shim: &here };
    let parts = compile::PARTS.map(|name| here.join(name));
    let parts = compiler.objects(&here, &parts, &out)?;
    compiler.program(&cuda, &kernels, &parts, &program)?;
    println!("cargo::rustc-env=SCONCE_SHIM={}", program.display());
    println!("cargo::rustc-env=SCONCE_SHIM_CXX={}", cxx.path().display());
    println!("cargo::rustc-env=SCONCE_SHIM_PARTS={}", out.display());
    for name in [
        "build.rs",
        "src/compile.rs",
        "shim.cpp",
        "tensor_core.cpp",
        "shim.hpp",
        "products.hpp",
        "tensor_map.hpp",
        "fiber.hpp",
        "main.cpp",
        "launch.hpp",
    ] {
        println!("cargo::rerun-if-changed={}", here.join(name).display());
    }
    println!("cargo::rerun-if-changed={}", cuda.display());
    Ok(())
}
