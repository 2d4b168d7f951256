//! What is served is the same on every GPU, whenever its work runs, and what the CPU serves.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

use super::{Answer, Ask, CHUNK, EAGER, Gpu, Work, models};

/// Beside the CPU in bf16, in natural logarithms: activations are rounded elsewhere.
const BOUND: f32 = 0.1;
/// The tiny model's cache in 8 blocks of 8 KiB: the scenario's prompts nearly fill them, and
/// where they grow together somebody is preempted.
pub(super) const FEW_BLOCKS: [&str; 4] =
    ["--max-model-len", "128", "--kv-cache-memory-bytes", "64K"];
const ORDERS: usize = 50;
/// Orders for each seed: a start takes as long as a few of them.
const OF_A_SEED: usize = 4;
/// Which of the scenario's clients leave, and after how many tokens.
pub(super) const LEAVER: (usize, usize) = (4, 3);

/// Prompts of one and of many chunks, greedy and drawn.
pub(super) fn scenario() -> Vec<Ask> {
    let drawn = |ask: Ask| Ask { temperature: 0.9, ..ask };
    vec![
        Ask::new(95, 8, 1),
        drawn(Ask::new(47, 12, 2)),
        Ask::new(31, 14, 3),
        drawn(Ask::new(15, 16, 4)),
        Ask::new(14, 24, 5),
    ]
}

/// All at once, one streamed to its end and one left midway.
fn together(gpu: &Gpu) -> Vec<Answer> {
    let asks = scenario();
    thread::scope(|scope| {
        let clients: Vec<_> = asks
            .iter()
            .enumerate()
            .map(|(index, ask)| {
                let server = &gpu.server;
                scope.spawn(move || match index {
                    0 => ask.stream(server, ask.max_tokens),
                    _ if index == LEAVER.0 => ask.stream(server, LEAVER.1),
                    _ => ask.answer(server),
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("it is answered")).collect()
    })
}

/// Of 50 random orders, in which streams, mixed batches, chunks, preemption and clients that
/// leave meet, and decode steps are replayed from graphs: every answer has the bits that it has
/// alone and without graphs on a device that does its work at once, and the fake driver finds
/// nothing wrong. With uploads through a ring of pinned buffers
/// that nothing waited for, it said of the late mode "host memory was changed before an
/// asynchronous copy had read it", and of which buffer.
#[test]
fn answers_are_the_same_bits_in_any_batch_whenever_the_device_runs() {
    let model = models::tiny();
    let alone = {
        let args = [&FEW_BLOCKS[..], &[EAGER]].concat();
        let gpu = Gpu::start(&model, &["--mode", "eager"], &args);
        scenario().iter().map(|ask| ask.answer(&gpu.server)).collect::<Vec<_>>()
    };
    let (next, preempted, cancelled) =
        (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let (replayed, orders) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run = |fake_gpu: &[&str], label: &str| {
        let mut gpu = Gpu::start(&model, fake_gpu, &FEW_BLOCKS);
        let asked: usize = scenario().iter().map(|ask| ask.max_tokens).sum();
        let mut given = 0;
        for order in 0..OF_A_SEED {
            for (index, (answer, alone)) in together(&gpu).iter().zip(&alone).enumerate() {
                let len = if index == LEAVER.0 { answer.tokens.len() } else { usize::MAX };
                assert_eq!(*answer, alone.first(len), "{label}, order {order}, request {index}");
            }
            let before = given;
            given = gpu.server.metric("vllm:generation_tokens_total") as usize;
            cancelled.fetch_add(usize::from(given - before < asked), Ordering::Relaxed);
            orders.fetch_add(1, Ordering::Relaxed);
        }
        let preemptions = gpu.server.metric("vllm:num_preemptions_total") as usize;
        preempted.fetch_add(preemptions, Ordering::Relaxed);
        assert!(gpu.server.terminate().success(), "{label}");
        gpu.assert_clean(label);
        let is_replayed = |work: &&Work| work.name.starts_with("cuGraphLaunch of decode_attention");
        replayed.fetch_add(gpu.trace().iter().filter(is_replayed).count(), Ordering::Relaxed);
    };
    run(&["--mode", "eager"], "eager");
    run(&["--mode", "late"], "late");
    orders.store(0, Ordering::Relaxed);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while orders.load(Ordering::Relaxed) < ORDERS {
                    let seed = next.fetch_add(1, Ordering::Relaxed).to_string();
                    run(&["--mode", "random", "--seed", &seed], &format!("seed {seed}"));
                }
            });
        }
    });
    let (preempted, cancelled) = (preempted.into_inner(), cancelled.into_inner());
    let replayed = replayed.into_inner();
    assert!(replayed >= 500, "{replayed} replays are few");
    assert!(preempted >= 10, "{preempted} preemptions are few");
    assert!(cancelled >= 10, "only {cancelled} clients left in time");
}

/// The default model's weights in two layers, a prompt of many chunks.
#[test]
fn a_real_models_answers_are_the_cpus() {
    let model = models::cut();
    let ask = Ask::new(6 * CHUNK, 8, 1);
    let args = ["--kv-cache-memory-bytes", "4M"];
    let of = |fake_gpu: &[&str]| {
        let gpu = Gpu::start(&model, fake_gpu, &args);
        let answer = ask.answer(&gpu.server);
        gpu.assert_clean("the cut model");
        answer
    };
    let late = of(&["--mode", "late"]);
    assert_eq!(late, of(&["--mode", "random", "--seed", "1"]));
    let on_cpu = ["--device", "cpu", "--dtype", "bfloat16", "--kv-cache-memory-bytes", "4M"];
    let cpu = Gpu::start(&model, &[], &on_cpu);
    late.assert_near(&ask.answer(&cpu.server), BOUND, "the cut model");
}

#[test]
fn answers_are_the_cpus_in_bf16_and_float16() {
    let model = models::tiny();
    let asks = [Ask::new(150, 12, 1), Ask::new(5, 20, 2), Ask::new(120, 8, 3)];
    let of = |device: &str, dtype: &str| -> Vec<_> {
        let args = ["--device", device, "--dtype", dtype, "--kv-cache-memory-bytes", "1M"];
        let gpu = Gpu::start(&model, &[], &args);
        asks.iter().map(|ask| ask.answer(&gpu.server)).collect()
    };
    for (gpu, cpu) in [("bfloat16", "bfloat16"), ("float16", "float32")] {
        for (own, theirs) in of("cuda", gpu).iter().zip(of("cpu", cpu)) {
            own.assert_near(&theirs, BOUND, gpu);
        }
    }
}

/// A cache in fp8 has 3 bits of mantissa: K and V are off by 6 % at most, what comes of them
/// by less.
#[test]
fn a_cache_in_fp8_serves_near_one_in_bf16() {
    const FP8_BOUND: f32 = 0.5;
    let model = models::tiny();
    let of = |dtype: &str, fake_gpu: &[&str]| -> Vec<_> {
        let args = [&["--kv-cache-dtype", dtype], &FEW_BLOCKS[..]].concat();
        let gpu = Gpu::start(&model, fake_gpu, &args);
        let alone: Vec<_> = scenario().iter().map(|ask| ask.answer(&gpu.server)).collect();
        assert_eq!(together(&gpu)[..LEAVER.0], alone[..LEAVER.0], "{dtype}, {fake_gpu:?}");
        gpu.assert_clean(dtype);
        alone
    };
    let fp8 = of("fp8_e4m3", &["--mode", "late"]);
    assert_eq!(fp8, of("fp8_e4m3", &["--mode", "random", "--seed", "3"]));
    let bf16 = of("auto", &["--mode", "late"]);
    assert_ne!(fp8, bf16, "it is another cache");
    for (ask, (own, other)) in scenario().iter().zip(fp8.iter().zip(&bf16)) {
        if ask.temperature == 0.0 {
            own.assert_near(other, FP8_BOUND, "fp8");
        }
    }
}

fn on_profile(name: &str) -> Vec<Answer> {
    let gpu = Gpu::start(&models::tiny(), &["--profile", name, "--mode", "late"], &FEW_BLOCKS);
    let answers = scenario().iter().map(|ask| ask.answer(&gpu.server)).collect();
    gpu.assert_clean(name);
    answers
}

/// GPUs with other numbers of multiprocessors and other shared memory compute the same.
#[test]
fn every_profile_serves_the_same() {
    let h100 = on_profile("h100");
    for profile in ["a100", "l40s", "h200", "b200"] {
        assert_eq!(on_profile(profile), h100, "{profile}");
    }
}
