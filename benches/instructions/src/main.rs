//! The regression guard: how many instructions the hot paths take, and how
//! often they call the heap, beside the stored figures.
//!
//! `just instructions` runs every case under callgrind, which counts the same
//! on any machine and under any load. It fails where a case takes over 5 % more
//! instructions than benches/results/instructions.txt says, or any heap call
//! more. With `--update` it stores what it counted; other arguments choose the
//! cases whose names hold them.
//!
//! Calls of the heap are counted because a copy costs more than its
//! instructions say, but hardly ever comes without memory for it. Instructions
//! vary by up to 1.5 % (seeds of hash maps, state of the heap), heap calls do
//! not. Some cases run once more with a copy made on purpose; the guard fails
//! too if it does not notice.
//!
//! Counted is the profile `instructions`, which is optimised as a release is.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]

mod baseline;
mod callgrind;
mod detokenizer;
mod kernels;
mod scheduler;
mod sse;
mod text;

use std::{hint::black_box, path::Path, process::ExitCode};

use baseline::{Baseline, Toolchain, Verdict};
use kernels::{
    AVX2, BF16, INT8, PORTABLE, linear_1_row, linear_8_rows, paged_attention, sample_greedy,
};

/// Something to count.
struct Case {
    name: &'static str,
    /// Prepares, and calls [`counted`] for what is to be counted.
    run: fn(),
}

const fn case(name: &'static str, run: fn()) -> Case {
    Case { name, run }
}

const CASES: &[Case] = &[
    case("scheduler_decode", scheduler::decode),
    case("scheduler_turnover", scheduler::turnover),
    case("detokenizer_byte_level", detokenizer::byte_level),
    case("detokenizer_window", detokenizer::window),
    case("sse_one_token_a_frame", || sse::frames(1, false)),
    case("sse_16_tokens_a_frame", || sse::frames(16, false)),
    case("linear_1_row_bf16_avx2", || linear_1_row(AVX2, BF16, false)),
    case("linear_1_row_bf16_portable", || linear_1_row(PORTABLE, BF16, false)),
    case("linear_1_row_int8_avx2", || linear_1_row(AVX2, INT8, false)),
    case("linear_1_row_int8_portable", || linear_1_row(PORTABLE, INT8, false)),
    case("linear_8_rows_bf16_avx2", || linear_8_rows(AVX2, BF16, false)),
    case("linear_8_rows_bf16_portable", || linear_8_rows(PORTABLE, BF16, false)),
    case("linear_8_rows_int8_avx2", || linear_8_rows(AVX2, INT8, false)),
    case("linear_8_rows_int8_portable", || linear_8_rows(PORTABLE, INT8, false)),
    case("paged_attention_avx2", || paged_attention(AVX2, false)),
    case("paged_attention_portable", || paged_attention(PORTABLE, false)),
    case("sample_greedy_avx2", || sample_greedy(AVX2)),
    case("sample_greedy_portable", || sample_greedy(PORTABLE)),
];

/// Cases of the same names that copy something more than they should.
const WITH_A_COPY: &[Case] = &[
    case("sse_one_token_a_frame", || sse::frames(1, true)),
    case("sse_16_tokens_a_frame", || sse::frames(16, true)),
    case("linear_1_row_bf16_avx2", || linear_1_row(AVX2, BF16, true)),
    case("linear_8_rows_int8_avx2", || linear_8_rows(AVX2, INT8, true)),
    case("paged_attention_avx2", || paged_attention(AVX2, true)),
];

/// Whatever this calls is counted, on its own thread; callgrind knows it by name.
#[inline(never)]
fn counted_region(work: &mut dyn FnMut()) {
    work();
    // Keeps the call above from becoming a jump, which would end the region.
    black_box(());
}

/// Calls `work`, which is counted. A case calls this once.
pub(crate) fn counted<R>(work: impl FnOnce() -> R) -> R {
    let (mut work, mut result) = (Some(work), None);
    counted_region(&mut || result = work.take().map(|work| work()));
    result.expect("the region ran")
}

/// What the command line asks for.
enum Task {
    /// In a process of its own, under callgrind.
    Run(Case),
    Compare {
        update: bool,
        parts: Vec<String>,
    },
}

fn task(args: impl Iterator<Item = String>) -> Result<Task, String> {
    let (mut update, mut parts) = (false, Vec::new());
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--update" => update = true,
            callgrind::CASE | callgrind::CASE_WITH_A_COPY => {
                let cases = if arg == callgrind::CASE { CASES } else { WITH_A_COPY };
                let name = args.next().unwrap_or_default();
                let case = cases.iter().find(|case| case.name == name);
                let case = case.ok_or_else(|| format!("{arg} {name:?} names no case"))?;
                return Ok(Task::Run(Case { ..*case }));
            }
            _ if arg.starts_with('-') => {
                return Err(format!(
                    "{arg:?} is not known; --update, and parts of cases' names, are"
                ));
            }
            _ if CASES.iter().any(|case| case.name.contains(&arg)) => parts.push(arg),
            _ => return Err(format!("{arg:?} is in no case's name")),
        }
    }
    Ok(Task::Compare { update, parts })
}

fn main() -> ExitCode {
    let done = task(std::env::args().skip(1)).and_then(|task| match task {
        Task::Run(case) => {
            (case.run)();
            Ok(true)
        }
        Task::Compare { update, parts } => compare(update, &parts),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Counts, and compares or stores; says whether nothing takes more.
fn compare(update: bool, parts: &[String]) -> Result<bool, String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("NOT COMPARED: instruction counts are stored for x86-64 Linux only");
        return Ok(true);
    }
    // What is to be stored, or what CI shall guard, must be counted.
    let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    if !callgrind::is_there("valgrind", update || is_ci)? {
        println!("NOT COUNTED: valgrind is missing ({})", callgrind::INSTALL);
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        return Err(
            "counts are stored for the profile `instructions`; `just instructions` builds it"
                .to_owned(),
        );
    }
    let toolchain = Toolchain::here()?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("results");
    let path = path.join("instructions.txt");
    let mut baseline = Baseline::read(&path)?;
    println!("# {toolchain}");
    println!("{}", baseline::HEAD);
    let mut good = true;
    for case in CASES {
        if !parts.is_empty() && !parts.iter().any(|part| case.name.contains(part.as_str())) {
            continue;
        }
        let now = callgrind::count(callgrind::CASE, case.name)?;
        let row = baseline.compare(case.name, now);
        println!("{row}");
        good &= update || row.verdict == Verdict::Good;
        if update {
            baseline.store(case.name, now);
        }
    }
    if update {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        baseline.write(&path, &names, &toolchain)?;
        println!("# stored in {}", path.display());
    } else if !good {
        println!("# if it must be so, `just instructions --update` stores it");
        baseline.explain(&toolchain);
    }
    // What fails anyway shows nothing with a copy more.
    if good && parts.is_empty() {
        println!("# with a copy made on purpose, which must be noticed:");
        for case in WITH_A_COPY {
            let row = baseline
                .compare(case.name, callgrind::count(callgrind::CASE_WITH_A_COPY, case.name)?);
            println!("{row}");
            if row.verdict == Verdict::Good {
                println!("# {} copies more, and the guard did not notice", case.name);
                good = false;
            }
        }
    }
    Ok(good)
}
