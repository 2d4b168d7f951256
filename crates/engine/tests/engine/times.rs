//! The times that a request's owner reads are those that metrics are made of.

use std::time::Duration;

use sconce_engine::{
    End, EngineHandle, EngineRequest, RequestClock, RequestEvent, RequestStream, RequestTimes,
};
use sconce_types::SamplingParams;

use crate::engine::start;

fn submit(handle: &EngineHandle, max_tokens: u32) -> (RequestStream, RequestClock) {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    let clock = RequestClock::default();
    let request =
        EngineRequest { clock: Some(clock.clone()), ..EngineRequest::new(vec![3; 16], params) };
    (handle.submit(request).expect("there is room"), clock)
}

fn seconds(of: &[RequestTimes], span: impl Fn(&RequestTimes) -> Option<Duration>) -> f64 {
    of.iter().map(|times| span(times).expect("it has ended").as_secs_f64()).sum()
}

#[test]
fn times_of_requests_sum_to_the_metrics() {
    let (_engine, handle) = start(&[]);
    // More than the cache holds of them at once: some are preempted.
    let running: Vec<_> = (0..6).map(|_| submit(&handle, 47)).collect();
    let times: Vec<_> = running
        .into_iter()
        .map(|(mut stream, clock)| {
            while let Some(event) = stream.blocking_next() {
                assert!(matches!(event, RequestEvent::Token(_)), "{event:?}");
            }
            clock.read()
        })
        .collect();
    for times in &times {
        let Some((ended, End::Length)) = times.ended else { panic!("{times:?}") };
        let mut order = vec![times.arrived, times.first_scheduled, times.first_token, Some(ended)];
        assert!(order.is_sorted() && order.iter().all(Option::is_some), "{times:?}");
        assert_eq!(times.num_preemptions as usize, times.preemptions.len());
        order = times.preemptions.iter().flat_map(|p| [Some(p.at), p.resumed]).collect();
        assert!(order.is_sorted() && order.iter().all(Option::is_some), "{times:?}");
    }
    let preemptions = times.iter().map(|times| u64::from(times.num_preemptions)).sum::<u64>();
    assert!(preemptions > 0, "nothing was preempted");
    let metrics = handle.metrics();
    assert_eq!(preemptions, metrics.num_preemptions.get());
    let ended = |times: &RequestTimes| Some(times.ended?.0);
    for (name, measured, histogram) in [
        ("queue", seconds(&times, |t| Some(t.first_scheduled? - t.arrived?)), &metrics.queue_time),
        (
            "prefill",
            seconds(&times, |t| Some(t.first_token? - t.first_scheduled?)),
            &metrics.prefill_time,
        ),
        ("decode", seconds(&times, |t| Some(ended(t)? - t.first_token?)), &metrics.decode_time),
        ("e2e", seconds(&times, |t| Some(ended(t)? - t.arrived?)), &metrics.e2e_latency),
    ] {
        let sum = histogram.get_sample_sum();
        assert!((measured - sum).abs() < 1e-9, "{name}: {measured}, but the metrics say {sum}");
    }
}

#[test]
fn a_cancelled_request_keeps_the_times_it_had() {
    let (_engine, handle) = start(&[]);
    let (mut stream, clock) = submit(&handle, 40);
    assert!(matches!(stream.blocking_next(), Some(RequestEvent::Token(_))));
    drop(stream);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(handle.drain());
    let times = clock.read();
    assert!(matches!(times.ended, Some((_, End::Abort | End::Length))), "{times:?}");
    assert!(times.first_token.is_some() && times.first_token <= times.ended.map(|end| end.0));
}
