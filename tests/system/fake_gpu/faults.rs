//! What fails on the device, over HTTP: who is told, what goes on, what the process ends with.

use std::{io::Read as _, thread};

use super::{Answer, Ask, EAGER, Gpu, Work, models, refusal, serving::FEW_BLOCKS};

/// What these tests ask, its right answer, and what the device did for it.
struct Right {
    ask: Ask,
    answer: Answer,
    /// Until the server was ready.
    loading: Vec<Work>,
    /// For the request, the first since then.
    serving: Vec<Work>,
}

impl Right {
    /// Of a server with these options, whose calls the scripts count.
    fn new(args: &[&str]) -> Self {
        let gpu = Gpu::start(&models::tiny(), &[], args);
        let loading = gpu.trace();
        let ask = Ask::new(100, 8, 1);
        let answer = ask.answer(&gpu.server);
        let mut trace = gpu.trace();
        let serving = trace.split_off(loading.len());
        Self { ask, answer, loading, serving }
    }

    /// The number of a call in the middle of the request.
    fn midway(&self, name: &str) -> usize {
        let count = |of: &[Work]| of.iter().filter(|work| work.name.starts_with(name)).count();
        count(&self.loading) + count(&self.serving) / 2
    }

    /// The number of the launch in the middle of the request, among those of that name.
    fn launch(&self, name: &str) -> u64 {
        let of: Vec<_> = self.serving.iter().filter(|work| work.name.starts_with(name)).collect();
        of[of.len() / 2].launch
    }
}

/// An error that leaves the device alive: who ran gets it, who waited is answered, and so is
/// whoever comes after, by an engine that was built anew, though nothing of the old one's could
/// be destroyed or freed. It is built once: then requests are refused, and nothing hangs.
#[test]
fn an_error_ends_what_ran_and_the_engine_is_built_anew_once() {
    let one_seat = ["--max-num-seqs", "1", EAGER];
    let right = Right::new(&one_seat);
    // All memory of the first executor, and none of the second's.
    let count = |name: &str| right.loading.iter().filter(|work| work.name == name).count();
    let freed = count("cuMemFreeAsync") + 1..=count("cuMemAllocAsync");
    let freed = freed.map(|nth| format!("fail cuMemFreeAsync {nth} 1\n"));
    let undestroyed = "fail cublasDestroy_v2 * 13\nfail curandDestroyGenerator * 201\n\
        fail cuMemFreeHost * 1\nfail cuEventDestroy_v2 * 1\nfail cuStreamDestroy_v2 * 1\n\
        fail cuModuleUnload * 1\nfail cuDevicePrimaryCtxRelease_v2 * 1\n";
    let undestroyed = undestroyed.to_owned() + &freed.collect::<String>();
    for (call, error, said, more) in [
        ("cuLaunchKernel", "701", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", &*undestroyed),
        ("cublasGemmEx", "14", "CUBLAS_STATUS_INTERNAL_ERROR", ""),
        ("cuMemcpyHtoDAsync_v2", "999", "CUDA_ERROR_UNKNOWN", &*undestroyed),
        ("cuMemcpyDtoHAsync_v2", "1", "CUDA_ERROR_INVALID_VALUE", ""),
    ] {
        let script = format!("fail {call} {} {error}\n{more}", right.midway(call));
        let mut gpu = Gpu::with_faults(&script, &["--mode", "late"], &one_seat);
        let answers = thread::scope(|scope| {
            let ask = || scope.spawn(|| right.ask.send(&gpu.server));
            [ask(), ask(), ask()].map(|client| client.join().expect("it is answered"))
        });
        let failed: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
        assert!(matches!(failed[..], [(500, body)] if body.contains(said)), "{script}{failed:?}");
        assert_eq!(right.ask.answer(&gpu.server), right.answer, "{script}");
        assert_eq!(gpu.server.metric("sconce:engine_restarts_total"), 1.0, "{script}");
        assert_eq!(gpu.server.send("GET", "/health", "").0, 200, "{script}");
        assert!(gpu.server.terminate().success(), "{script}{}", gpu.log());
    }
    let each = "fail cuLaunchKernel";
    let first = right.midway("cuLaunchKernel");
    let scripts: Vec<_> = (0..2).map(|n| format!("{each} {} 701", first * (n + 1))).collect();
    let mut gpu = Gpu::with_faults(&scripts.join("\n"), &[], &one_seat);
    assert_eq!(right.ask.send(&gpu.server).0, 500);
    // Loading again takes fewer launches than that; some request meets the second.
    while right.ask.send(&gpu.server).0 == 200 {}
    // A moment after the request has its error.
    while gpu.server.send("GET", "/health", "").0 == 200 {}
    let (status, body) = gpu.server.send("GET", "/health", "");
    assert!(status == 503 && body.contains("the engine has stopped"), "{status} {body}");
    assert_eq!(right.ask.send(&gpu.server).0, 503);
    assert!(gpu.server.terminate().success());
}

/// An error that takes the context along ends the process with a code of its own, whichever
/// call meets it.
#[test]
fn a_lost_device_ends_the_process_with_3() {
    let right = Right::new(&[]);
    for mode in ["eager", "late", "random"] {
        for name in ["cuLaunchKernel", "cublasGemmEx", "cuGraphLaunch"] {
            let script = format!("sticky {} CUDA_ERROR_ILLEGAL_ADDRESS", right.launch(name));
            let mut gpu = Gpu::with_faults(&script, &["--mode", mode], &[]);
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        let (status, body) = right.ask.send(&gpu.server);
                        assert!(status == 500 || status == 503, "{mode} {script}: {status} {body}");
                    });
                }
            });
            // Until it listens no more: an engine that has stopped without the process would
            // be waited for without end.
            while let Some(mut stream) = gpu.server.try_open("GET", "/health", "", "") {
                let mut text = String::new();
                // The process may end in the midst of it.
                let _ = stream.read_to_string(&mut text);
                assert!(!text.contains("the engine has stopped"), "{mode} {script}: {}", gpu.log());
            }
            let code = gpu.server.ended().code();
            assert_eq!(code, Some(3), "{mode} {script}: {}", gpu.log());
            assert!(gpu.log().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{}", gpu.log());
        }
    }
}

/// Whichever allocation fails, the server says so and does not start; once it has started it
/// needs no more memory.
#[test]
fn memory_runs_out_when_it_starts_or_never() {
    let right = Right::new(&[EAGER]);
    let is_allocation = |work: &&Work| work.name.starts_with("cuMemAlloc");
    assert_eq!(right.serving.iter().filter(is_allocation).count(), 0, "while it serves");
    let gpu = Gpu::start(&models::tiny(), &[], &[EAGER]);
    let all = gpu.trace().iter().filter(is_allocation).count();
    drop(gpu);
    for nth in [1, 2, 3, all / 4, all / 2, all - 3, all - 1, all] {
        let script = format!("fail cuMemAllocAsync {nth} CUDA_ERROR_OUT_OF_MEMORY");
        let (code, said) = refusal(&models::tiny(), &script, &["--mode", "late"], &[]);
        assert_eq!(code, Some(1), "{script} of {all}: {said}");
        let is_clear = said.contains("OUT_OF_MEMORY") || said.contains("memory");
        assert!(is_clear && !said.contains("panicked"), "{script} of {all}: {said}");
    }
    for call in ["cuMemHostAlloc", "cublasCreate_v2", "curandCreateGenerator", "cuModuleLoadData"] {
        let (code, said) = refusal(&models::tiny(), &format!("fail {call} 1 2"), &[], &[]);
        assert_eq!(code, Some(1), "{call}: {said}");
        assert!(!said.contains("panicked"), "{call}: {said}");
    }
    // What was there once is not there when the engine is built anew.
    let script = format!(
        "fail cuLaunchKernel {} 701\nfail cuMemAllocAsync {} CUDA_ERROR_OUT_OF_MEMORY",
        right.midway("cuLaunchKernel"),
        all + all / 2,
    );
    let mut gpu = Gpu::with_faults(&script, &[], &[EAGER]);
    assert_eq!(right.ask.send(&gpu.server).0, 500);
    assert_eq!(right.ask.send(&gpu.server).0, 503, "{}", gpu.log());
    assert_eq!(gpu.server.send("GET", "/health", "").0, 503);
    assert!(gpu.log().contains("the engine did not start again"), "{}", gpu.log());
    assert!(gpu.server.terminate().success());
}

/// A launch that never ends: the server goes on answering what needs no device, and ends when
/// it is told to, with the code for requests that were cut off. After a minute `/health` says
/// that a step is stuck, which takes too long to wait for here.
#[test]
fn a_device_that_hangs_does_not_keep_the_process() {
    let right = Right::new(&[]);
    for mode in ["eager", "late"] {
        let script = format!("hang {}", right.launch("cuLaunchKernel"));
        let args = ["--shutdown-timeout", "1"];
        let mut gpu = Gpu::with_faults(&script, &["--mode", mode], &args);
        let body = right.ask.body(false).to_string();
        let hanging = gpu.server.open("POST", "/v1/completions", &body);
        while gpu.server.metric("vllm:num_requests_running") == 0.0 {
            thread::yield_now();
        }
        assert_eq!(gpu.server.send("GET", "/v1/models", "").0, 200);
        assert_eq!(gpu.server.send("GET", "/health", "").0, 200);
        assert_eq!(gpu.server.terminate().code(), Some(4), "{}", gpu.log());
        drop(hanging);
    }
}

/// NaN on the device is the answer's error of whose it is, and nobody else's: not of those in
/// the same batch, nor of who gets its blocks or asks the same again.
#[test]
fn not_a_number_costs_nobody_else_anything() {
    let args = [&["--max-num-seqs", "1", EAGER], &FEW_BLOCKS[..]].concat();
    let right = Right::new(&args);
    // In each chunk eight products, and one more in each step that samples. The first of the
    // second chunk, and of the third step after the prompt: what comes of one row's queries is
    // not a number, and so are that row's K and V in the next layer. The first is in a block that
    // is full, and found by others, before the prompt's end samples.
    let products: Vec<_> =
        right.serving.iter().filter(|work| work.name.starts_with("cublasGemmEx")).collect();
    assert_eq!(products.len(), 4 * 8 + 1 + 7 * 9);
    for launch in [products[8].launch, products[4 * 8 + 1 + 2 * 9].launch] {
        let script = format!("nan {launch} 3");
        let gpu = Gpu::with_faults(&script, &["--mode", "late"], &args);
        let (status, body) = right.ask.send(&gpu.server);
        assert!(status == 500 && body.contains("finite"), "{script}: {status} {body}");
        let short = Ask::new(3, 5, 9);
        let expected = short.answer(&Gpu::start(&models::tiny(), &[], &[]).server);
        // Whatever blocks they get: there are 8, and names keep some from being given out.
        for _ in 0..20 {
            assert_eq!(short.answer(&gpu.server), expected, "{script}");
        }
        assert_eq!(right.ask.answer(&gpu.server), right.answer, "{script}: asked again");
        assert_eq!(gpu.server.metric("sconce:engine_restarts_total"), 0.0);
        assert_eq!(gpu.server.metric("vllm:corrupted_requests_total"), 1.0);
    }
    let args = ["--no-enable-prefix-caching", EAGER];
    let right = Right::new(&args);
    // Beside others: one of the batch is hit, the others have their bits.
    let count = |of: &[Work]| of.iter().filter(|work| work.name == "cublasGemmEx").count();
    let nth = count(&right.loading) + count(&right.serving);
    let script = format!("nan {nth} 3 cublasGemmEx");
    let gpu = Gpu::with_faults(&script, &["--mode", "late"], &args);
    let answers = thread::scope(|scope| {
        let ask = || scope.spawn(|| right.ask.send(&gpu.server));
        [ask(), ask(), ask()].map(|client| client.join().expect("it is answered"))
    });
    let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
    let failed = statuses.iter().filter(|status| **status == 500).count();
    assert!(failed <= 1 && statuses.iter().all(|s| [200, 500].contains(s)), "{answers:?}");
    let texts: Vec<_> = answers.iter().filter(|(status, _)| *status == 200).collect();
    for (_, text) in texts {
        assert_eq!(Answer::of_body(text), right.answer);
    }
}
