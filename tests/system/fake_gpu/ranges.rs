//! Ranges for NVIDIA's profilers.

use std::fs;

use super::{Ask, Gpu, models};

#[test]
fn a_profiler_sees_what_the_host_does_in_a_step() {
    let ranges = tempfile::NamedTempFile::new().expect("a file");
    let path = ranges.path().to_str().expect("UTF-8");
    let gpu = Gpu::start(&models::tiny(), &["--nvtx", path], &[]);
    Ask::new(5, 6, 1).answer(&gpu.server);
    gpu.assert_clean("ranges");
    let text = fs::read_to_string(ranges.path()).expect("ranges");
    let (mut open, mut seen) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.strip_prefix("begin ") {
            Some(name) => {
                open.push(name);
                seen.push(open.join(" > "));
            }
            None => {
                assert_eq!(line, "end");
                open.pop().expect("what ends has begun");
            }
        }
    }
    for name in ["launch", "launch > stage", "launch > forward", "sample", "wait"] {
        let count = seen.iter().filter(|one| *one == name).count();
        assert!(count >= 6, "{name}: {count} of {} ranges", seen.len());
    }
    // A step before all others is no request's: it is computed while the server starts.
    let known =
        ["stage", "forward", "launch", "launch > stage", "launch > forward", "sample", "wait"];
    assert!(seen.iter().all(|one| known.contains(&&**one)), "{seen:?}");
}
