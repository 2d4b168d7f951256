//! The unchanged binary with one of its calls to the driver left out, by a script: each is a
//! mistake that could have been made, and is found. `kernels/shim/driver/README.md` lists them
//! beside those that are planted in small programs.

use std::io::Read as _;

use super::{Answer, Ask, EAGER, Gpu, Work, models, refusal};

/// A prompt of several chunks.
fn ask() -> Ask {
    Ask::new(100, 6, 1)
}

/// What a server answers, and its trace until it was ready and after.
fn right() -> (Answer, Vec<Work>, Vec<Work>) {
    let gpu = Gpu::start(&models::tiny(), &[], &[EAGER]);
    let ready = gpu.trace().len();
    let answer = ask().answer(&gpu.server);
    let mut trace = gpu.trace();
    let serving = trace.split_off(ready);
    (answer, trace, serving)
}

fn count(trace: &[Work], name: &str) -> usize {
    trace.iter().filter(|work| work.name.starts_with(name)).count()
}

/// Without its event, or without waiting for it, a pinned buffer is filled again before the
/// device has read it.
#[test]
fn a_missing_event_is_found() {
    for call in ["cuEventRecord", "cuEventSynchronize"] {
        let (code, said) =
            refusal(&models::tiny(), &format!("skip {call} *"), &["--mode", "late"], &[]);
        assert_ne!(code, Some(0), "{call}");
        let message = "host memory was changed before an asynchronous copy had read it: bytes 0";
        assert!(said.contains(message), "{call}: {said}");
    }
}

#[test]
fn an_unset_shared_memory_attribute_is_found() {
    // Attention with heads of 128 elements takes more than a block has without asking.
    let (code, said) = refusal(&models::tiny_with(128), "skip cuFuncSetAttribute *", &[], &[]);
    assert_eq!(code, Some(1), "{said}");
    let message = "(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)";
    assert!(said.contains("prefill_groups") && said.contains(message), "{said}");
}

/// Whichever of a step's uploads or launches is missing, the answer tells: memory that was
/// never written holds NaN, and what was written for another step is of another step.
#[test]
fn a_missing_upload_or_launch_changes_the_answer() {
    let (right, loading, serving) = right();
    for (call, of) in [
        // The batches of the second chunk and the third: each step has a copy for the work of
        // its attention too.
        ("cuMemcpyHtoDAsync_v2", &[3, 5][..]),
        // One of the first chunk's, one of the last token's.
        ("cuLaunchKernel", &[4, count(&serving, "cuLaunchKernel") - 2]),
    ] {
        let before = count(&loading, call);
        for nth in of {
            let script = format!("skip {call} {}", before + nth);
            let gpu = Gpu::with_faults(&script, &["--mode", "late"], &[EAGER]);
            let (status, body) = ask().send(&gpu.server);
            if status == 200 {
                assert_ne!(Answer::of_body(&body), right, "{script} changed nothing");
            }
        }
    }
}

/// An engine that is built anew lets go of pinned memory, or fills it again, that the failed
/// step's copies have not read, unless each buffer is waited for.
#[test]
fn pinned_memory_that_is_freed_early_is_found() {
    let (_, loading, serving) = right();
    let launch = count(&loading, "cuLaunchKernel") + count(&serving, "cuLaunchKernel") / 2;
    let script = format!("fail cuLaunchKernel {launch} 701\nskip cuEventSynchronize after");
    let mut gpu = Gpu::with_faults(&script, &["--mode", "late"], &[EAGER]);
    // The request whose step fails, and one after: the process may end in the midst of either.
    let [_, second] = [(); 2].map(|()| {
        let mut text = String::new();
        let body = ask().body(false).to_string();
        if let Some(mut stream) = gpu.server.try_open("POST", "/v1/completions", "", &body) {
            let _ = stream.read_to_string(&mut text);
        }
        text
    });
    assert!(!second.contains("200 OK"), "the engine was built anew: {}", gpu.log());
    assert_ne!(gpu.server.ended().code(), Some(0));
    // A buffer that is not waited for is let go of, or filled again: the next step comes first
    // where it stages more than the failed one.
    let messages = ["host memory is freed before", "host memory was changed before"];
    let found = messages.map(|message| format!("{message} an asynchronous copy"));
    assert!(found.iter().any(|message| gpu.log().contains(message)), "{}", gpu.log());
}
