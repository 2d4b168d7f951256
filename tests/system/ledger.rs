//! The ledger against what clients count and the server's metrics say: ten thousand
//! requests of three tenants, a quarter of them given up, and the server killed three
//! times in their midst.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Command,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::process::{Server, sconce};

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 48;
const KILLS: usize = 3;
const TENANTS: [&str; 3] = ["acme", "beta", "gamma"];

/// What a client knows of a request.
#[derive(Clone, Debug, PartialEq)]
struct Counted {
    tenant: usize,
    prompt_tokens: u64,
    max_tokens: u64,
    received: u64,
    end: End,
    /// The server that answered it.
    epoch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    /// The client left.
    Left,
    /// The server was killed.
    Broken,
}

/// The server that answers now, and how many came before it.
type Current = Arc<(Mutex<(usize, Option<Arc<Server>>)>, Condvar)>;

fn start(folder: &Path) -> Server {
    let mut command = sconce();
    command.arg("serve").args(["null:2ms", "--port", "0", "--max-num-seqs", "32"]);
    command.args(["--max-num-batched-tokens", "64", "--config"]).arg(folder.join("sconce.toml"));
    Server::spawn(command)
}

/// Sends a request and counts what comes back.
fn ask(server: &Server, key: &str, id: &str, body: &Value, leave_after: u64) -> (u64, End) {
    let headers = format!("Authorization: Bearer {key}\r\nX-Request-Id: {id}\r\n");
    let Some(stream) = server.try_open("POST", "/v1/completions", &headers, &body.to_string())
    else {
        return (0, End::Broken);
    };
    let mut received = 0;
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return (received, End::Broken) };
        let Some(data) = line.strip_prefix("data: ") else {
            assert!(!line.starts_with("HTTP/1.1 ") || line.contains("200"), "{line}");
            continue;
        };
        if data == "[DONE]" {
            return (received, End::Finished);
        }
        let chunk: Value = serde_json::from_str(data).expect("a chunk is JSON");
        let text = chunk["choices"][0]["text"].as_str().expect("a chunk has a text");
        // The null model's tokens are letters.
        received += text.len() as u64;
        if received >= leave_after {
            return (received, End::Left);
        }
    }
    (received, End::Broken)
}

fn client(
    number: usize,
    current: &Current,
    keys: &[String],
    taken: &AtomicUsize,
    done: &AtomicUsize,
) -> Vec<(String, Counted)> {
    let mut rng = StdRng::seed_from_u64(number as u64);
    let mut counted = Vec::new();
    while taken.fetch_add(1, Ordering::Relaxed) < REQUESTS {
        let (tenant, max_tokens) = (rng.random_range(0..TENANTS.len()), rng.random_range(1..=24));
        let prompt_tokens = rng.random_range(1..=80_u64);
        let leaves = rng.random_bool(0.25);
        let leave_after = if leaves { rng.random_range(1..=max_tokens) } else { u64::MAX };
        let body = json!({
            "prompt": "p".repeat(prompt_tokens as usize),
            "max_tokens": max_tokens, "stream": true, "ignore_eos": true,
        });
        let id = format!("c{number}-{}", counted.len());
        let (epoch, server) = {
            let (now, changed) = &**current;
            let now = now.lock().expect("nobody panics with it");
            let now = changed.wait_while(now, |now| now.1.is_none()).expect("as above");
            (now.0, now.1.clone().expect("it was waited for"))
        };
        let (received, end) = ask(&server, &keys[tenant], &id, &body, leave_after);
        let is_whole = end == End::Finished;
        assert!(!is_whole || received == max_tokens, "{id}: {received} of {max_tokens}");
        counted.push((id, Counted { tenant, prompt_tokens, max_tokens, received, end, epoch }));
        done.fetch_add(1, Ordering::Relaxed);
    }
    counted
}

/// Each request's tokens in the ledger: requests of that id, prompt and generated tokens.
fn usage(folder: &Path) -> HashMap<String, (u64, u64, u64)> {
    let output = sconce()
        .args(["usage", "--by", "request", "--format", "json", "--ledger"])
        .arg(folder.join("sconce-usage.db"))
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("it writes JSON");
    let number = |row: &Value, name: &str| row[name].as_u64().expect("a number");
    let of = |row: &Value| {
        let id = row["request"].as_str().expect("an id").to_owned();
        let tokens = (number(row, "prompt_tokens"), number(row, "generated_tokens"));
        (id, (number(row, "requests"), tokens.0, tokens.1))
    };
    rows.iter().map(of).collect()
}

#[test]
fn the_ledger_reconciles_to_the_token_through_three_kills() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let key = |name: &str| {
        let mut command: Command = sconce();
        let output = command.args(["tenant", "add", name, "--config"]).arg(&file).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    let keys = TENANTS.map(key);
    let admin = sconce().args(["tenant", "admin-key", "--config"]).arg(&file).output();
    let admin = String::from_utf8(admin.expect("the binary runs").stdout).expect("UTF-8");
    let admin = format!("Authorization: Bearer {}\r\n", admin.trim());
    let current: Current = Arc::new((Mutex::new((0, None)), Condvar::new()));
    let put = |epoch: usize, server: Option<Arc<Server>>| {
        *current.0.lock().expect("nobody panics with it") = (epoch, server);
        current.1.notify_all();
    };
    let (taken, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    put(0, Some(Arc::new(start(folder.path()))));
    let counted: HashMap<String, Counted> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (current, keys, taken, done) = (&current, &keys, &taken, &done);
                scope.spawn(move || client(number, current, keys, taken, done))
            })
            .collect();
        for kill in 1..=KILLS {
            while done.load(Ordering::Relaxed) < kill * REQUESTS / (KILLS + 1) {
                std::thread::yield_now();
            }
            let server = current.0.lock().expect("nobody panics with it").1.clone();
            put(kill, None);
            // SIGKILL, with every client in the midst of a request.
            server.expect("a server runs").kill();
            put(kill, Some(Arc::new(start(folder.path()))));
        }
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    });
    assert_eq!(counted.len(), REQUESTS);
    let server = current.0.lock().expect("nobody panics with it").1.clone().expect("it runs");
    // Once all that was given up has ended.
    let metric = |name: &str| server.metric_with(name, "", &admin);
    while metric("vllm:num_requests_running") + metric("vllm:num_requests_waiting") > 0.0 {
        std::thread::yield_now();
    }
    let names = ["vllm:generation_tokens_total", "vllm:prompt_tokens_total"];
    let metrics = names.map(|name| metric(name) as u64);
    let by_tenant = TENANTS.map(|tenant| {
        let label = format!("\"{tenant}\"");
        server.metric_with("sconce:tenant_generation_tokens_total", &label, &admin) as u64
    });
    put(KILLS, None);
    let mut server = Arc::into_inner(server).expect("the clients have ended");
    assert!(server.terminate().success());
    let ledger = usage(folder.path());
    let (mut whole, mut broken, mut in_flight) = (0, 0, 0);
    let (mut last_generated, mut last_prompt, mut last_by_tenant) = (0, 0, [0; TENANTS.len()]);
    for (id, client) in &counted {
        let Counted { tenant, prompt_tokens, max_tokens, received, end, epoch } = *client;
        let Some(&(requests, prompt, generated)) = ledger.get(id) else {
            // It never got as far as a step, or its first was the one in flight.
            assert!(end != End::Finished && received <= 1, "{id} is lost: {client:?}");
            in_flight += received;
            continue;
        };
        assert_eq!(requests, 1, "{id} is there once");
        assert!(generated <= max_tokens, "{id}: {generated} tokens of {client:?}");
        // A prompt may have been given up midway.
        let is_whole = generated > 0 || end == End::Finished;
        assert!(prompt == prompt_tokens || (!is_whole && prompt < prompt_tokens), "{id}: {prompt}");
        match end {
            // If its server was killed right after, its last token was of the step in flight.
            End::Finished => {
                let lost = received - generated;
                assert!(lost <= u64::from(epoch < KILLS), "{id}: {generated}, {client:?}");
                in_flight += lost;
                whole += 1;
            }
            // It may have been given more than it stayed to read.
            End::Left => {
                let lost = received.saturating_sub(generated);
                assert!(lost <= u64::from(epoch < KILLS), "{id}: {generated}, {client:?}");
                in_flight += lost;
            }
            End::Broken => {
                assert!(generated + 1 >= received, "{id} lost more than a step: {client:?}");
                in_flight += received.saturating_sub(generated);
                broken += 1;
            }
        }
        if epoch == KILLS {
            last_generated += generated;
            last_prompt += prompt;
            last_by_tenant[tenant] += generated;
        }
    }
    assert!(ledger.keys().all(|id| counted.contains_key(id)), "nothing is there that nobody asked");
    assert!(whole > REQUESTS / 2 && broken >= KILLS, "{whole} finished, {broken} were broken off");
    assert!(in_flight <= (KILLS * 32) as u64, "{in_flight} tokens are more than three steps'");
    // What the last server counted is what the ledger has of it.
    assert_eq!([last_generated, last_prompt], metrics);
    assert_eq!(last_by_tenant, by_tenant);
}
