//! The fake driver (`driver/`) keeps the promises of CUDA's documentation: programs that
//! break a rule are told which, and streams run in the order that a mode claims. The
//! programs are the cases of the `.cpp` files here.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// Runs a script of the repository and gives the folder that it prints.
fn folder(script: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(&path).output().expect("the script runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", path.display());
    PathBuf::from(String::from_utf8(output.stdout).expect("a folder's name").trim_end())
}

struct Programs {
    program: PathBuf,
    libraries: PathBuf,
    fatbins: PathBuf,
}

/// The programs, compiled once a process.
fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let libraries = folder("driver/build");
        let toolkit = folder("../cuda/toolkit");
        let fatbins = folder("../cuda/compile");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("driver-rules-{}", std::process::id()));
        let sources = ["main", "copies", "device", "order", "libraries"].map(|name| {
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/driver/{name}.cpp"))
        });
        let output = Command::new(sconce_cuda_shim::compiler())
            .args(["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-isystem"])
            .arg(toolkit.join("include"))
            .args(sources)
            .arg(libraries.join("libcuda.so.1"))
            .arg("-ldl")
            .arg("-o")
            .arg(&program)
            .output()
            .expect("the compiler runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Programs { program, libraries, fatbins }
    })
}

/// Runs a case with these of the driver's variables set.
fn run<V: AsRef<OsStr>>(case: &str, variables: &[(&str, V)]) -> Output {
    let Programs { program, libraries, fatbins } = programs();
    let mut command = Command::new(program);
    command.arg(case).env("LD_LIBRARY_PATH", libraries).env("FATBINS", fatbins);
    for (name, value) in variables {
        command.env(format!("SCONCE_FAKE_GPU_{name}"), value);
    }
    command.output().expect("the program was compiled")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8").trim_end()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// A case, the mode that finds its fault, and what the driver says of it.
type Told = (&'static str, &'static str, &'static str);

/// What a GPU would not have noticed, or would have ended the context for: the process
/// ends.
const ENDED: &[Told] = &[
    (
        "changed_before_read",
        "late",
        "host memory was changed before an asynchronous copy had read it: bytes 0 to 64 of \
         pinned buffer 2",
    ),
    ("wait_on_the_wrong_event", "late", "bytes 0 to 64 of pinned buffer 1"),
    (
        "written_before_a_copy_to_it",
        "late",
        "the host wrote to memory before an asynchronous copy had written it",
    ),
    (
        "pinned_memory_freed_early",
        "late",
        "host memory is freed before an asynchronous copy (cuMemcpyHtoDAsync_v2) has read it",
    ),
    ("host_reads_device_memory", "eager", "the host accessed byte 0 of device allocation 2"),
    ("freed_twice", "eager", "it is freed a second time"),
    (
        "launch_with_freed_memory",
        "eager",
        "the address at byte 8 of its parameters is memory that was freed",
    ),
    ("launch_before_the_allocation", "late", "is used before the allocation in its stream's order"),
    (
        "launch_beyond_its_memory",
        "eager",
        "it accessed 256 bytes beyond device allocation 2 of 16 bytes",
    ),
    ("copy_beyond_its_memory", "eager", "where it copies to (64 bytes) is outside all memory"),
    ("a_replay_with_freed_memory", "eager", "a captured cuLaunchKernel of add_bias_bf16"),
    ("a_product_beyond_its_memory", "eager", "cublasGemmEx: A (16 bytes) is outside all memory"),
];

/// What the driver refuses with an error, as the case expects.
const REFUSED: &[Told] = &[
    ("no_context", "eager", "this thread has no current context"),
    ("no_initialization", "eager", "cuInit was not called"),
    ("wrong_context", "eager", "this is no context"),
    ("a_context_that_is_gone", "eager", "the primary context was released"),
    (
        "too_much_shared_memory",
        "eager",
        "50000 bytes of dynamic shared memory, of which it is allowed 49152",
    ),
    ("too_much_shared_memory", "eager", "NVIDIA H100 80GB HBM3 can have 232448"),
    (
        "an_error_is_swallowed",
        "eager",
        "512 threads a block, of which its launch bounds allow 256 (Execution Control): \
         CUDA_ERROR_INVALID_VALUE",
    ),
    ("too_many_threads", "eager", "512 threads a block, of which its launch bounds allow 256"),
    ("too_many_blocks", "eager", "a grid of 1 x 70000 x 1 blocks"),
    ("a_fatbin_cut_short", "eager", "the fatbin is cut short at byte"),
    ("no_image_at_all", "eager", "it is neither a fatbin, a cubin nor PTX"),
    ("for_another_architecture", "eager", "the device is sm_90"),
    ("other_parameters", "eager", "the module's kernel has 16 bytes of parameters"),
    ("a_kernel_that_is_not_there", "eager", "the module has no kernel add_bias_f64"),
    ("a_kernel_of_an_unloaded_module", "eager", "its module was unloaded"),
    ("pageable_copy_in_a_capture", "eager", "not page-locked while stream 0 is capturing"),
    ("wait_in_a_capture", "eager", "a wait for the stream while stream 0 is capturing"),
    ("allocation_in_a_capture", "eager", "an allocation while stream 0 is capturing"),
    ("module_loading_in_a_capture", "eager", "the loading of a module while stream 0 is capturing"),
    ("time_of_an_event_without_timing", "eager", "created with CU_EVENT_DISABLE_TIMING"),
    ("more_memory_than_there_is", "eager", "bytes are asked for, of 85018542080 on the device"),
];

#[test]
fn whoever_breaks_a_rule_is_told_which() {
    for &(case, mode, message) in ENDED {
        let output = run(case, &[("MODE", mode)]);
        assert!(!output.status.success(), "{case} went through");
        assert!(stderr(&output).contains(message), "{case}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("fake GPU: "), "{case}: {}", stderr(&output));
    }
    for &(case, mode, message) in REFUSED {
        let output = run(case, &[("MODE", mode)]);
        assert!(output.status.success(), "{case}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{case}: {}", stderr(&output));
    }
}

#[test]
fn whoever_keeps_the_rules_is_right_in_every_mode() {
    const KEPT: &[&str] = &[
        "a_row_is_added_to",
        "changed_after_its_event",
        "pageable_memory_is_staged",
        "a_graph_is_replayed",
        "streams_with_an_event",
        "the_default_stream_waits_for_blocking_ones",
        "a_product_is_right",
    ];
    for case in KEPT {
        for mode in ["eager", "late"] {
            let output = run(case, &[("MODE", mode)]);
            assert!(output.status.success(), "{case}, {mode}: {}", stderr(&output));
        }
        for seed in 0..10 {
            let output = run(case, &[("MODE", "random"), ("SEED", seed.to_string().as_str())]);
            assert!(output.status.success(), "{case}, seed {seed}: {}", stderr(&output));
        }
    }
}

/// What two streams do without an event between them depends on when they run.
#[test]
fn modes_differ_where_an_event_is_missing() {
    let of = |mode: &str, seed: u32| {
        let output =
            run("streams_without_an_event", &[("MODE", mode), ("SEED", seed.to_string().as_str())]);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).to_owned()
    };
    let (done, not_done) = ("16256", "0");
    assert_eq!(of("eager", 1), done);
    assert_eq!(of("late", 1), not_done);
    let random: Vec<_> = (0..20).map(|seed| of("random", seed)).collect();
    assert!(random.iter().any(|got| got == done), "{random:?}");
    assert!(random.iter().any(|got| got == not_done), "{random:?}");
    assert_eq!(of("random", 7), of("random", 7));
    // Nor does the default stream wait for one that is not blocking.
    let default = |mode| run("the_default_stream_waits_for_blocking_ones", &[("MODE", mode)]);
    assert_eq!(stdout(&default("late")), "3f80");
    assert_eq!(stdout(&default("eager")), "4000");
    for case in ["read_too_early", "a_query_is_no_wait", "a_time_taken_at_launch"] {
        let output = run(case, &[("MODE", "late")]);
        assert!(output.status.success(), "{case}: {}", stderr(&output));
    }
    // What fresh memory holds gives it away in every order.
    for mode in ["eager", "late", "random"] {
        let output = run("a_launch_before_its_upload", &[("MODE", mode)]);
        assert_eq!(stdout(&output), "nan", "{mode}: {}", stderr(&output));
    }
}

/// README.md says of ten mistakes which program makes each; what finds it is tested above.
#[test]
fn the_ten_planted_faults_are_programs_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(folder.join("driver/README.md")).expect("the page");
    let table = text.split("## Planted faults").nth(1).expect("a chapter of that name");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| a")).collect();
    assert_eq!(rows.len(), 10, "{rows:#?}");
    let tests = fs::read_to_string(folder.join("tests/driver/main.rs")).expect("this file");
    for row in rows {
        let case = row.split('`').nth(1).expect("a program's name");
        assert!(tests.contains(&format!("\"{case}\"")), "no test runs {case}");
    }
}

#[test]
fn times_and_energy_are_the_same_in_every_mode() {
    for mode in ["eager", "late", "random"] {
        let output = run("energy_counts", &[("MODE", mode)]);
        assert_eq!(stdout(&output), "2102", "{mode}: {}", stderr(&output));
        let output = run("times_are_exact", &[("MODE", mode)]);
        assert_eq!(stdout(&output), "1500 3000", "{mode}: {}", stderr(&output));
    }
}

#[test]
fn profiles_and_drivers_decide_what_is_loaded() {
    let newer = run("for_a_newer_driver", &[("DRIVER", "12080")]);
    assert!(newer.status.success(), "{}", stderr(&newer));
    assert!(stderr(&newer).contains("the code is of CUDA 13, the driver of CUDA 12.8"));
    for profile in ["a100", "l40s", "h100", "h200", "b200"] {
        let output = run("a_row_is_added_to", &[("PROFILE", profile)]);
        assert!(output.status.success(), "{profile}: {}", stderr(&output));
    }
    for (name, value) in
        [("PROFILE", "h900"), ("MODE", "later"), ("SEED", "x"), ("FAULTS", "/nothing")]
    {
        let output = run("a_row_is_added_to", &[(name, value)]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains(value), "{name}: {}", stderr(&output));
    }
}

#[test]
fn faults_happen_as_the_script_says() {
    const ILLEGAL: &str = "700";
    let script = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("driver-faults-{}", std::process::id()));
    let of = |text: &str, mode: &str| {
        fs::write(&script, text).expect("the folder takes files");
        let output = run("faults", &[("MODE", mode.as_ref()), ("FAULTS", script.as_os_str())]);
        (stdout(&output).to_owned(), stderr(&output).to_owned())
    };
    // The calls' results, and the first element: 1 in bf16.
    assert_eq!(of("# nothing\n", "late").0, "0 0 0\n3f80");
    let out_of_memory = "fail cuMemAllocAsync 3 CUDA_ERROR_OUT_OF_MEMORY # the third";
    assert_eq!(of(out_of_memory, "late").0, "2 0 0\n3f80");
    // An asynchronous error shows where somebody waits for it, and stays.
    assert_eq!(of("sticky 1 700", "late").0, format!("0 {ILLEGAL} {ILLEGAL}"));
    assert_eq!(of("fail cuStreamSynchronize 1 719", "late").0, "0 719 0");
    for nan in ["nan 1 2", "nan 1 2 add_bias_bf16"] {
        assert_eq!(of(nan, "late").0, "0 0 0\nffff", "{nan}");
    }
    assert_eq!(of("nan 1 2 cublasGemmEx", "late").0, "0 0 0\n3f80");
    // The launch that was left out has added nothing.
    assert_eq!(of("skip cuLaunchKernel 1", "late").0, "0 0 0\n0");
    let (_, said) = of("stcky 1 700", "late");
    assert!(said.contains("line 1 is no fault: stcky 1 700"), "{said}");
    let slow = |text: &str| {
        fs::write(&script, text).expect("the folder takes files");
        let output =
            run("times_are_exact", &[("MODE", "late".as_ref()), ("FAULTS", script.as_os_str())]);
        stdout(&output).to_owned()
    };
    // The first copy is the bias's.
    assert_eq!(slow("slow 2 10"), "15000 3000");
    for mode in ["eager", "late", "random"] {
        fs::write(&script, "hang 1").expect("the folder takes files");
        let variables = [("MODE", mode.as_ref()), ("FAULTS", script.as_os_str())];
        let output = run("never_ready", &variables);
        assert!(output.status.success(), "{mode}: {}", stderr(&output));
    }
}
