//! What a person is told where a GPU cannot be taken into use, on the fake GPU of
//! `kernels/shim`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::model;

/// A folder of a model without weights: what is wrong with the device shows first.
fn unloadable() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "vocab_size": 49152,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).expect("the folder takes files");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model::dir().join(name), dir.path().join(name)).expect("a file of the model");
    }
    dir
}

fn with_fake_gpu() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/shim/with-fake-gpu")
}

/// What `sconce serve` says when it ends at once, and its exit code.
fn refusal(fake_gpu: &[&str], faults: &str, device: &str) -> (Option<i32>, String) {
    let dir = unloadable();
    let script = dir.path().join("faults");
    fs::write(&script, faults).expect("the folder takes files");
    let mut command = Command::new(with_fake_gpu());
    command.args(fake_gpu).arg("--faults").arg(&script).arg(env!("CARGO_BIN_EXE_sconce"));
    command.arg("serve").arg(dir.path()).args(["--device", device, "--port", "0"]);
    let output = command.env("SCONCE_NO_HUB", "1").output().expect("it starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

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
            let (code, message) = refusal(fake_gpu, faults, device);
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
    let (code, message) = refusal(&[], faults, "cuda");
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("the driver finds no device"), "{message}");
    // The model's folder has no weights, which the CPU comes to only without a device.
    let (code, message) = refusal(&[], faults, "auto");
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("running on the CPU: the driver finds no device"), "{message}");
}

#[test]
fn libraries_that_are_missing_are_named() {
    let built = Command::new(with_fake_gpu()).args(["printenv", "LD_LIBRARY_PATH"]).output();
    let built = String::from_utf8(built.expect("it starts").stdout).expect("a path");
    let built = Path::new(built.trim().split(':').next().expect("a folder")).to_owned();
    for (missing, named) in [("libcurand.so.10", "cuRAND"), ("libcublas.so.13", "cuBLAS")] {
        let libraries = TempDir::new().expect("a folder");
        for file in fs::read_dir(&built).expect("the fake driver").map(|file| file.expect("a file"))
        {
            if file.file_name() != missing {
                symlink(file.path(), libraries.path().join(file.file_name())).expect("a link");
            }
        }
        let dir = unloadable();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
        command.arg("serve").arg(dir.path()).args(["--device", "auto", "--port", "0"]);
        command.env("LD_LIBRARY_PATH", libraries.path()).env("SCONCE_NO_HUB", "1");
        let output = command.output().expect("it starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(named) && message.contains(missing), "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}
