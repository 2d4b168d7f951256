//! Counting a case in a process of its own under valgrind's callgrind.

use std::{collections::HashMap, io::ErrorKind, process::Command};

/// How valgrind comes to a machine.
pub(crate) const INSTALL: &str = "Debian: apt-get install valgrind";

/// Runs a case in this process.
pub(crate) const CASE: &str = "--case";
/// Runs it with a copy more.
pub(crate) const CASE_WITH_A_COPY: &str = "--case-with-a-copy";

/// `crate::counted_region`, in callgrind's patterns.
const REGION: &str = "*::counted_region";
/// Callgrind's number of the thread that a case's region runs on.
const MAIN_THREAD: &str = "01";

/// The C library's functions that hand out memory and take it back; Rust's
/// allocator calls them.
const HEAP: &[&str] = &["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "free"];

/// What a case took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) instructions: u64,
    /// Calls that hand out memory, let it grow, or take it back.
    pub(crate) heap_calls: u64,
}

/// Whether valgrind is there to count with. A machine without it can build and test all
/// else, so it is only required where `required`, as in CI.
pub(crate) fn is_there(program: &str, required: bool) -> Result<bool, String> {
    match Command::new(program).arg("--version").output() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound && !required => Ok(false),
        Err(error) => Err(format!("{program}: {error}; it is needed ({INSTALL})")),
    }
}

/// Runs this program again under callgrind.
pub(crate) fn count(flag: &str, name: &str) -> Result<Counts, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    let out = dir.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--separate-threads=yes", "--fair-sched=yes"])
        // Dumps empty all counters: the second holds the region alone.
        .arg(format!("--dump-before={REGION}"))
        .arg(format!("--dump-after={REGION}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args([flag, name])
        .output()
        .map_err(|error| format!("valgrind: {error}; it is needed ({INSTALL})"))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} failed under valgrind ({}):\n{log}", output.status));
    }
    let dump = |number: u32| dir.path().join(format!("callgrind.out.{number}-{MAIN_THREAD}"));
    if dump(3).exists() {
        return Err(format!("{name} called `counted` more than once"));
    }
    let profile = std::fs::read_to_string(dump(2))
        .map_err(|error| format!("{name}: callgrind dumped no counted region: {error}"))?;
    read(&profile).ok_or_else(|| format!("{name}: callgrind's dump holds no counts"))
}

/// Reads a profile in callgrind's format (valgrind's manual, "Callgrind Format
/// Specification"). A function's name follows its number where it comes first.
fn read(profile: &str) -> Option<Counts> {
    let (mut instructions, mut heap_calls) = (None, 0);
    let mut names: HashMap<&str, bool> = HashMap::new();
    let mut calls_heap = false;
    for line in profile.lines() {
        if let Some(totals) = line.strip_prefix("totals:") {
            instructions = Some(totals.trim().parse().ok()?);
        } else if let Some(function) = line.strip_prefix("fn=").or(line.strip_prefix("cfn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(number, HEAP.contains(&name));
            }
            calls_heap = names.get(number).copied().unwrap_or(false);
        } else if let Some(calls) = line.strip_prefix("calls=")
            && calls_heap
        {
            heap_calls += calls.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    Some(Counts { instructions: instructions?, heap_calls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_counter_fails_only_where_it_is_required() {
        let missing = "no-such-counter";
        assert_eq!(is_there(missing, false), Ok(false));
        let error = is_there(missing, true).expect_err("it is required");
        assert!(error.contains(missing) && error.contains("apt-get"), "{error}");
        assert_eq!(is_there("rustc", true), Ok(true));
    }

    #[test]
    fn calls_to_the_heap_are_told_from_others_by_number() {
        let profile = "events: Ir\nsummary: 40\n\nfl=(1) a.rs\nfn=(1) work\n1 10\n\
            cfn=(2) malloc\ncalls=3 1\n1 9\ncfn=(3) malloc_usable_size\ncalls=5 1\n1 5\n\n\
            fn=(4) other\n1 7\ncfn=(2)\ncalls=2 1\n1 6\ncfn=(5) free\ncalls=1 1\n1 3\n\n\
            fn=(2)\n1 15\ncfn=(6) _int_malloc\ncalls=4 1\n1 8\n\ntotals: 40\n";
        assert_eq!(read(profile), Some(Counts { instructions: 40, heap_calls: 6 }));
        assert_eq!(read("fn=(1) work\n"), None);
    }
}
