//! Recorded requests get the same tokens again, alone and under load.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce::{
    EngineRequest, Options, Recorded, RequestEvent, SamplingParams, Sconce, hub::HubOptions,
    read_recording, replay,
};
use sconce_types::End;

use crate::model;

const REQUESTS: usize = 200;

/// Requests of many kinds; every seventh is given up after three tokens.
fn record(sconce: &Sconce) {
    let mut rng = StdRng::seed_from_u64(3);
    let streams: Vec<_> = (0..REQUESTS)
        .map(|index| {
            let len = [1, 16, 40, 130][rng.random_range(0..4)];
            let prompt = (0..len).map(|_| rng.random_range(100..40_000)).collect();
            let params = SamplingParams {
                max_tokens: rng.random_range(4..14),
                temperature: [0.0, 0.8, 1.2][index % 3],
                top_p: [1.0, 0.9][index % 2],
                seed: rng.random(),
                frequency_penalty: [0.0, 0.5][index / 2 % 2],
                ..SamplingParams::default()
            };
            let request = EngineRequest {
                request_id: format!("r{index}").into(),
                ..EngineRequest::new(prompt, params)
            };
            sconce.engine().submit(request).expect("there is room")
        })
        .collect();
    // Those that are given up are looked at first, before they have finished.
    let (leaving, staying): (Vec<_>, Vec<_>) =
        streams.into_iter().enumerate().partition(|(index, _)| index % 7 == 6);
    for (index, mut stream) in leaving.into_iter().chain(staying) {
        let leaves_after = if index % 7 == 6 { 3 } else { usize::MAX };
        let mut tokens = 0;
        while let Some(event) = stream.blocking_next() {
            assert!(matches!(event, RequestEvent::Token(_)), "{event:?}");
            tokens += 1;
            if tokens == leaves_after {
                break;
            }
        }
    }
}

#[test]
fn two_hundred_requests_are_replayed_token_by_token_under_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording.jsonl");
    let options = Options {
        hub: HubOptions { cache_dir: model::cache_dir(), use_hub: false, ..HubOptions::default() },
        max_num_seqs: 24,
        max_num_batched_tokens: Some(96),
        max_model_len: Some(512),
        kv_cache_memory_bytes: Some(256 << 20),
        record: Some(path.clone()),
        ..Options::new(model::dir().to_str().expect("UTF-8"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let recorder = Sconce::start(&options, &()).expect("the model starts");
    record(&recorder);
    runtime.block_on(recorder.engine().drain());
    runtime.block_on(recorder.engine().settle()).expect("the engine answers");
    let (head, recorded) = read_recording(&path).expect("the recording is valid");
    assert_eq!(head, recorder.summary().recording_head());
    drop(recorder);
    let given_up = recorded.iter().filter(|request| request.end == End::Abort).count();
    assert!(recorded.len() >= REQUESTS - 5 && given_up > 3, "{}, {given_up}", recorded.len());
    // Other neighbours, other chunks, another order of arrival.
    let other =
        Options { max_num_seqs: 32, max_num_batched_tokens: Some(256), record: None, ..options };
    let sconce = Sconce::start(&other, &()).expect("the model starts");
    let mut shuffled: Vec<Recorded> = recorded.clone();
    shuffled.reverse();
    let count = shuffled.len();
    let replayed = runtime.block_on(replay(sconce.engine(), shuffled, 32, |_| {}));
    let replayed = replayed.expect("nothing is refused");
    assert_eq!((replayed.same, replayed.different), (count, Vec::new()));
    // Alone, a few of them; and one that was tampered with is found out.
    let mut few: Vec<Recorded> = recorded.into_iter().take(9).collect();
    few[4].tokens[1] ^= 1;
    let id = few[4].request_id.clone();
    let replayed = runtime.block_on(replay(sconce.engine(), few, 1, |_| {}));
    let replayed = replayed.expect("nothing is refused");
    assert_eq!(replayed.same, 8);
    assert!(matches!(&replayed.different[..], [one] if one.request_id == id && one.position == 1));
}
