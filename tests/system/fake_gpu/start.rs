//! What a person is told where a GPU cannot be taken into use, on the fake GPU of
//! `kernels/shim`.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use super::{Gpu, models, refusal, with_fake_gpu};

#[test]
fn what_is_wrong_with_a_device_is_said_and_auto_does_not_hide_it() {
    for (fake_gpu, faults, said) in [
        (&["--driver", "12080"][..], "", "the driver is of CUDA 12.8, but the kernels need 13.0"),
        (&[], "fail cuInit 1 CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "another version"),
        (&[], "fail cuInit 1 CUDA_ERROR_OPERATING_SYSTEM", "/dev/nvidia*"),
        (&[], "fail cuDevicePrimaryCtxRetain 1 CUDA_ERROR_DEVICE_UNAVAILABLE", "exclusively"),
        (&[], "fail cuDevicePrimaryCtxRetain 1 CUDA_ERROR_OUT_OF_MEMORY", "other processes"),
        (&[], "fail cuModuleLoadData 2 CUDA_ERROR_NO_BINARY_FOR_GPU", "NO_BINARY_FOR_GPU"),
        (&[], "fail cuModuleLoadData 1 CUDA_ERROR_INVALID_IMAGE", "INVALID_IMAGE"),
        (&[], "fail cuMemHostAlloc 1 CUDA_ERROR_OUT_OF_MEMORY", "OUT_OF_MEMORY"),
    ] {
        for device in ["cuda", "auto"] {
            let (code, message) = refusal(&models::tiny(), faults, fake_gpu, &["--device", device]);
            assert_eq!(code, Some(1), "{faults}: {message}");
            assert!(message.contains(said), "{faults}: {message}");
            assert!(message.contains("--device cpu"), "{faults}: {message}");
            assert!(!message.contains("panicked"), "{faults}: {message}");
        }
    }
}

#[test]
fn without_a_driver_or_a_device_auto_takes_the_cpu_and_cuda_ends() {
    let faults = "fail cuInit * CUDA_ERROR_NO_DEVICE";
    let (code, message) = refusal(&models::tiny(), faults, &[], &[]);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("the driver finds no device"), "{message}");
    let gpu = Gpu::with_faults(faults, &[], &["--device", "auto"]);
    let message = gpu.log();
    assert!(message.contains("running on the CPU: the driver finds no device"), "{message}");
}

#[test]
fn libraries_that_are_missing_are_named() {
    let built = with_fake_gpu().args(["printenv", "LD_LIBRARY_PATH"]).output();
    let built = String::from_utf8(built.expect("it starts").stdout).expect("a path");
    let built = Path::new(built.trim().split(':').next().expect("a folder")).to_owned();
    for (missing, named) in [("libcurand.so.10", "cuRAND"), ("libcublas.so.13", "cuBLAS")] {
        let libraries = tempfile::tempdir().expect("a folder");
        for file in fs::read_dir(&built).expect("the fake driver").map(|file| file.expect("a file"))
        {
            if file.file_name() != missing {
                symlink(file.path(), libraries.path().join(file.file_name())).expect("a link");
            }
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
        command.arg("serve").arg(models::tiny()).args(["--device", "auto", "--port", "0"]);
        command.env("LD_LIBRARY_PATH", libraries.path()).env("SCONCE_NO_HUB", "1");
        let output = command.output().expect("it starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(named) && message.contains(missing), "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}

/// For the default model's first two layers: cuBLAS's workspace is of 32 MiB, the embedding of
/// 54, the layers of 14.
#[test]
fn a_gpu_that_is_too_small_is_told_what_would_fit() {
    let cut = models::cut();
    // So many MiB beside the context's own.
    let memory = |mib: u64| ((512 + mib) << 20).to_string();
    let refused = |mib: u64, args: &[&str], says: &[&str]| {
        let (code, said) = refusal(&cut, "", &["--memory", &memory(mib)], args);
        assert_eq!(code, Some(1), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        for says in says {
            assert!(said.contains(says), "{says:?} is missing: {said}");
        }
        said
    };
    // The flags after these words, with which the server starts.
    let advised = |mib: u64, said: &str, flags: &[&str], others: &[&str]| {
        let values: Vec<_> = flags
            .iter()
            .map(|flag| {
                let rest = said.split_once(&format!("{flag} ")).expect("the flag is named").1;
                rest.split(' ').next().expect("and its value")
            })
            .collect();
        let flags = flags.iter().zip(&values).flat_map(|(flag, value)| [*flag, *value]);
        let args: Vec<_> = flags.chain(others.iter().copied()).collect();
        Gpu::start(&cut, &["--memory", &memory(mib)], &args);
    };

    refused(
        96,
        &[],
        &["free for the weights", "a weight [", "are 70786808 bytes in all", "--device cpu"],
    );

    let large = ["--max-num-seqs", "64", "--max-num-batched-tokens", "64"];
    let said =
        refused(112, &large, &["free for what a step computes in", "activations [64, 49152]"]);
    advised(112, &said, &["--max-num-batched-tokens", "--max-num-seqs"], &[]);

    let asked = ["--kv-cache-memory-bytes", "64M"];
    let said = refused(128, &asked, &["free for the KV cache", "of 67092480 bytes"]);
    advised(128, &said, &["--kv-cache-memory-bytes"], &[]);

    let measured = ["--kv-cache-memory-bytes", "", "--gpu-memory-utilization", "1"];
    let long = [&measured[..], &["--max-model-len", "8192"]].concat();
    let said = refused(112, &long, &["the KV cache has room for", "takes 12582912 bytes"]);
    advised(112, &said, &["--max-model-len"], &measured);
}
