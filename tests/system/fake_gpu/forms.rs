//! Forms of operations: tried at the first start, and what comes of a faulty one.

use std::{fs, path::Path, process::Command};

use super::{Ask, Gpu, models, script_file, with_fake_gpu};

/// The product that the model's two larger weights are multiplied in, of a row.
const OPERATION: &str = "product of 1 rows, 256 x 8192, Bf16";
/// The kernel of one row, whose third pointer is what it writes.
const FAULT: &str = "wrong * 3 gemv_bf16_m1_r2_u4";

/// What log-probabilities are off by, of logits that other forms of products made.
const BOUND: f32 = 0.2;

/// Each call is so slow that it is timed few times: emulated, that takes as long.
const SLOWER: [&str; 2] = ["--slower", "10000"];

/// A server whose forms are kept in a folder.
fn start(cache: &Path, fake_gpu: &[&str]) -> Gpu {
    let cache = cache.to_str().expect("UTF-8");
    Gpu::start(&models::wide(), &[&SLOWER, fake_gpu].concat(), &["--cache-dir", cache])
}

/// What is kept of an operation's forms: the form, and the verdict.
fn kept(cache: &Path) -> Vec<(String, String)> {
    let folder = fs::read_dir(cache.join("forms")).expect("a folder of forms");
    let files: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let text = fs::read_to_string(&files[0]).expect("UTF-8");
    let of_operation = text.lines().filter_map(|line| line.strip_prefix(OPERATION));
    let parts = of_operation.map(|rest| rest.trim_start().split('\t').collect::<Vec<_>>());
    parts.map(|parts| (parts[0].to_owned(), parts[1].to_owned())).collect()
}

fn count(gpu: &Gpu, kernel: &str) -> usize {
    gpu.trace().iter().filter(|work| work.name.ends_with(kernel)).count()
}

#[test]
fn forms_are_tried_at_the_first_start_only_and_the_faster_is_used() {
    let cache = tempfile::tempdir().expect("a folder");
    let first = start(cache.path(), &["--mode", "late"]);
    let tried = count(&first, "gemv_bf16_m1_r2_u4");
    let ask = Ask::new(5, 6, 1);
    let answer = ask.answer(&first.server);
    assert!(first.log().contains("trying the forms"), "{}", first.log());
    assert!(tried >= 6 && count(&first, "gemv_bf16_m1_r2_u4") > tried + 6, "{tried}");
    first.assert_clean("the first start");
    let forms = kept(cache.path());
    assert!(forms.iter().all(|(_, verdict)| verdict == "right"), "{forms:?}");
    let again = start(cache.path(), &[]);
    assert!(!again.log().contains("trying the forms"), "{}", again.log());
    assert_eq!(ask.answer(&again.server), answer);
}

#[test]
fn a_wrong_form_is_found_at_the_first_start_named_and_not_used() {
    let cache = tempfile::tempdir().expect("a folder");
    let faults = script_file(FAULT);
    let path = faults.path().to_str().expect("UTF-8");
    let gpu = start(cache.path(), &["--faults", path]);
    let wrong = kept(cache.path()).into_iter().filter(|(_, verdict)| verdict == "wrong");
    let wrong: Vec<_> = wrong.map(|(form, _)| form).collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    let log = gpu.log();
    assert!(log.contains(&format!("{OPERATION}: {} gave wrong results", wrong[0])), "{log}");
    let (_, metrics) = gpu.server.send("GET", "/metrics", "");
    let named = metrics.lines().find(|line| line.starts_with("sconce:unused_kernel_forms{"));
    let named = named.expect("a metric");
    assert!(named.contains(OPERATION) && named.contains(&wrong[0]), "{named}");
    // Answers are those of a sound device, and the kernel takes no part in them.
    let tried = count(&gpu, "gemv_bf16_m1_r2_u4");
    let ask = Ask::new(5, 6, 1);
    let answer = ask.answer(&gpu.server);
    assert_eq!(count(&gpu, "gemv_bf16_m1_r2_u4"), tried);
    let sound = Gpu::start(&models::wide(), &[], &[]);
    answer.assert_near(&ask.answer(&sound.server), BOUND, "a wrong form");
}

/// What `sconce doctor` says.
fn doctor(mut command: Command, cache: &Path) -> String {
    let output = command.arg("doctor").arg("--cache-dir").arg(cache).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_doctor_tries_forms_again_and_says_so_without_a_gpu() {
    let cache = tempfile::tempdir().expect("a folder");
    drop(start(cache.path(), &[]));
    let faults = script_file(FAULT);
    let mut command = with_fake_gpu();
    command.args(SLOWER).arg("--faults").arg(faults.path()).arg(env!("CARGO_BIN_EXE_sconce"));
    let said = doctor(command, cache.path());
    assert!(said.contains("NVIDIA H100") && said.contains(OPERATION), "{said}");
    // Of both of the weights that are tried.
    assert_eq!(said.matches("WRONG: ").count(), 2, "{said}");
    assert!(said.contains("attention of prompts, heads of"), "{said}");
    assert!(said.contains("(before: "), "{said}");
    let said = doctor(Command::new(env!("CARGO_BIN_EXE_sconce")), cache.path());
    assert!(said.starts_with("GPU       none: "), "{said}");
}
