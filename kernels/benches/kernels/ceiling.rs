//! What the machine could do: reading memory, `vdpbf16ps`, `vpdpbusd`, f32
//! FMA, and how soon a parallel region starts.
#![expect(unsafe_code, reason = "loops of one instruction each")]

use std::hint::black_box;

use sconce_kernels::cpu::ThreadPool;

use crate::seconds;

pub(crate) fn print(pool: &ThreadPool) {
    let threads = pool.num_threads();
    println!("ceilings on {threads} threads");

    let len = 256 << 20_usize;
    let memory: Vec<u64> = (0..len as u64 / 8).collect();
    let share = memory.len() / threads;
    // A thread that reads several places at once gets more; the best counts.
    let times = [1, 2, 4, 8].map(|places| {
        seconds(|| {
            pool.run(threads, &|_, task| {
                black_box(sum(&memory[task * share..][..share], places));
            });
        })
    });
    let time = times.into_iter().fold(f64::INFINITY, f64::min);
    println!("  reading memory   {:>8.1} GB/s", len as f64 / time * 1e-9);

    #[cfg(target_arch = "x86_64")]
    x86::print(pool);

    let time = seconds(|| {
        (0..100).for_each(|_| pool.run(threads, &|_, task| _ = black_box(task)));
    });
    println!("  an empty region  {:>8.2} µs", time * 1e6 / 100.0);
}

/// Reads as many places in turn; many chains, so that the sum waits for memory only.
fn sum(x: &[u64], places: usize) -> u64 {
    let mut sums = [0_u64; 32];
    let each = x.len() / places / 32 * 32;
    for at in (0..each).step_by(32) {
        for place in 0..places {
            let chunk = &x[place * each + at..][..32];
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum ^= x);
        }
    }
    sums.into_iter().fold(0, |a, b| a ^ b)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, hint::black_box};

    use super::{ThreadPool, seconds};

    const ROUNDS: usize = 20_000;
    const CHAINS: usize = 24;

    pub(super) fn print(pool: &ThreadPool) {
        let threads = pool.num_threads();
        let report = |what: &str, flops: usize, run: &(dyn Fn() + Sync)| {
            let time = seconds(|| pool.run(threads, &|_, _| run()));
            let flops = (threads * ROUNDS * CHAINS * flops) as f64;
            println!("  {what:<16} {:>8.1} GFLOP/s", flops / time * 1e-9);
        };
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the instruction was detected.
            report("vpdpbusd", 128, &|| unsafe { dpbusd() });
        }
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the instruction was detected.
            report("vdpbf16ps", 64, &|| unsafe { dpbf16() });
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instruction was detected.
            report("f32 FMA, 512 bit", 32, &|| unsafe { fma() });
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dpbf16() {
        // SAFETY: all are 64 bytes of plain numbers.
        let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi16(black_box(1))) };
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dpbusd() {
        let x = _mm512_set1_epi8(black_box(1));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    fn fma() {
        let x = _mm512_set1_ps(black_box(1e-20));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
    }
}
