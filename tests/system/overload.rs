//! More requests than a server can serve, over HTTP. The null model's steps take a time.

use std::thread;

use serde_json::{Value, json};

use crate::process::{Server, sconce};

fn serve(model: &str, flags: &[&str]) -> Server {
    let mut command = sconce();
    command.args(["serve", model, "--port", "0"]).args(flags);
    Server::spawn(command)
}

/// The status and body of so many requests at once.
fn all_at_once(server: &Server, count: usize, body: &Value) -> Vec<(u16, Value)> {
    let body = body.to_string();
    thread::scope(|scope| {
        let send = || {
            let (status, body) = server.send("POST", "/v1/completions", &body);
            (status, serde_json::from_str(&body).expect("the body is JSON"))
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it answers")).collect()
    })
}

#[test]
fn what_cannot_end_in_time_is_refused_by_a_server_that_just_started() {
    let server = serve("null:100ms", &[]);
    // 64 steps of 100 ms.
    let hurried = json!({ "prompt": "a", "max_tokens": 64, "timeout": 3 });
    for (status, body) in all_at_once(&server, 40, &hurried) {
        assert_eq!(status, 503, "{body}");
        assert_eq!(body["error"]["code"], "overloaded", "{body}");
    }
    assert_eq!(server.metric("vllm:generation_tokens_total"), 0.0, "nothing is computed in vain");
    let short = json!({ "prompt": "a", "max_tokens": 5, "timeout": 3 });
    for (status, body) in all_at_once(&server, 4, &short) {
        assert_eq!(status, 200, "{body}");
    }
}

#[test]
fn a_flood_in_no_hurry_is_taken_as_far_as_it_need_not_wait_long() {
    let flags = ["--max-num-seqs", "2", "--max-queue-wait", "3"];
    let server = serve("null:50ms", &flags);
    let body = json!({ "prompt": "a", "max_tokens": 10 });
    let answers = all_at_once(&server, 80, &body);
    let taken = answers.iter().filter(|(status, _)| *status == 200).count();
    // Two of half a second each run at once.
    assert!((2..40).contains(&taken), "{taken} were taken");
    for (status, body) in answers.iter().filter(|(status, _)| *status != 200) {
        assert_eq!(*status, 503, "{body}");
        let message = body["error"]["message"].as_str().expect("a message");
        assert!(message.contains("wait in the queue") && message.contains("3 s"), "{message}");
    }
}
