//! Starting, signalling and watching the server as its operators do.
#![cfg(unix)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::process::{Server, sconce};

fn serve(args: &[&str]) -> Command {
    let mut command = sconce();
    command.args(["serve", "null", "--port", "0"]).args(args);
    command
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo runs").success());
}

fn add_tenant(file: &Path, name: &str) -> String {
    let added = sconce().args(["tenant", "add", name, "--config", path(file)]).output();
    let added = added.expect("the binary runs");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    String::from_utf8(added.stdout).expect("UTF-8").trim().to_owned()
}

/// What a command that does not start says.
fn refusal(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().expect("the binary runs");
    let text = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!(status.code(), Some(1), "{text}");
    text
}

#[test]
fn sighup_while_the_server_starts_is_taken_up_afterwards() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let keys = [add_tenant(&first, "acme"), add_tenant(&second, "acme")];
    let pipe = folder.path().join("sconce.toml");
    make_pipe(&pipe);
    let mut child = serve(&["--config", path(&pipe)])
        .args(["--ledger", path(&folder.path().join("usage.db"))])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // Opens once the server reads: it is starting, and stays so until it has read all.
    let mut writer = fs::File::options().write(true).open(&pipe).expect("the server reads it");
    let pid = child.id().to_string();
    for _ in 0..10 {
        let sent = Command::new("kill").args(["-HUP", &pid]).status().expect("kill runs");
        assert!(sent.success());
    }
    writer.write_all(&fs::read(&first).expect("it is there")).expect("the server reads it");
    drop(writer);
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let address = lines.find_map(|line| {
        let line = line.expect("UTF-8");
        Some(line.split_once("http://")?.1.strip_suffix("/v1")?.to_owned())
    });
    let address = address.expect("it has started");
    // All ten are one: the file is read once more.
    let mut writer = fs::File::options().write(true).open(&pipe).expect("it is read again");
    writer.write_all(&fs::read(&second).expect("it is there")).expect("the server reads it");
    drop(writer);
    let status = |key: &str| {
        let mut stream = std::net::TcpStream::connect(&address).expect("it listens");
        write!(
            stream,
            "GET /v1/models HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Authorization: Bearer {key}\r\n\r\n"
        )
        .expect("it is sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        text.split(' ').nth(1).map(ToOwned::to_owned)
    };
    // The file is taken up a moment after it is read.
    while status(&keys[1]).as_deref() != Some("200") {}
    assert_eq!(status(&keys[0]).as_deref(), Some("401"));
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn files_that_would_block_or_lock_everybody_out_are_refused_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    make_pipe(&at("pipe"));
    fs::write(at("empty.toml"), "").expect("it can be written");
    let text = refusal(&mut serve(&["--config", path(&at("empty.toml"))]));
    assert!(text.contains("empty.toml: no tenant has both a key"), "{text}");
    let text = refusal(&mut serve(&["--config", path(&at("pipe"))]));
    assert!(text.contains("not read within 5 seconds"), "{text}");
    for file in [at("pipe"), folder.path().to_owned()] {
        let text = refusal(&mut serve(&["--ledger", path(&file)]));
        assert!(text.contains("is no regular file"), "{text}");
        let text = refusal(&mut serve(&["--record", path(&file)]));
        assert!(text.contains(path(&file)), "{text}");
    }
    // The default file is there, though it cannot be read: nobody is let in for that.
    fs::create_dir(at("sconce.toml")).expect("it can be made");
    let text = refusal(serve(&[]).current_dir(folder.path()));
    assert!(text.contains("sconce.toml") && text.contains("directory"), "{text}");
}

#[test]
fn keys_that_lock_nobody_out_or_everybody_are_refused_at_start() {
    for key in ["", " ", ",", "a,", "a,,b", "a\nb"] {
        let text = refusal(&mut serve(&["--api-key", key]));
        assert!(text.contains("--api-key or SCONCE_API_KEY cannot be used"), "{key:?}: {text}");
        let text = refusal(serve(&[]).env("SCONCE_API_KEY", key));
        assert!(text.contains("SCONCE_API_KEY"), "{key:?}: {text}");
    }
    let server = Server::spawn(serve(&["--api-key", "with,comma", "--api-key", "spa\u{df}"]));
    let status = |header: &str| {
        let stream = server.try_open("GET", "/v1/models", header, "").expect("it listens");
        let line = BufReader::new(stream).lines().next().expect("a status").expect("UTF-8");
        line.split(' ').nth(1).map(ToOwned::to_owned)
    };
    for (header, expected) in [
        ("Authorization: Bearer with,comma\r\n", "200"),
        ("authorization: bearer   spa\u{df}\r\n", "200"),
        ("Authorization: Bearer with\r\n", "401"),
        ("Authorization: Bearer comma\r\n", "401"),
        ("", "401"),
    ] {
        assert_eq!(status(header).as_deref(), Some(expected), "{header}");
    }
}

#[test]
fn addresses_are_named_as_they_are_and_an_open_one_warns() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let text = refusal(sconce().args(["serve", "null", "--port", &port]));
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}; choose")), "{text}");
    assert_eq!(text.matches("in use").count(), 1, "{text}");
    let missing = refusal(&mut serve(&["--config", "/nowhere/at/all"]));
    assert_eq!(missing.matches("No such file").count(), 1, "{missing}");
    if TcpListener::bind("[::1]:0").is_ok() {
        let server = Server::spawn(serve(&["--host", "[::1]"]));
        assert!(server.address.starts_with("[::1]:"), "{}", server.address);
        assert_eq!(server.send("GET", "/health", "").0, 200);
    }
    for (host, key, warns) in [
        ("0.0.0.0", None, true),
        ("127.0.0.1", None, false),
        ("127.1.2.3", None, false),
        ("0.0.0.0", Some("k"), false),
    ] {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = serve(&["--host", host]);
        key.map(|key| command.args(["--api-key", key]));
        let server = Server::spawn_logging(command, log.reopen().expect("it is there").into());
        drop(server);
        let text = fs::read_to_string(log.path()).expect("UTF-8");
        assert_eq!(text.contains("without API keys"), warns, "{host} {key:?}: {text}");
    }
}

/// A server that answers one request and one refusal, and what it logged in a file.
fn logged(args: &[&str]) -> String {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let command = serve(args);
    let mut server = Server::spawn_logging(command, log.reopen().expect("it is there").into());
    let body = json!({ "prompt": "abc", "max_tokens": 5, "stream": true }).to_string();
    assert_eq!(server.send("POST", "/v1/completions", &body).0, 200);
    assert_eq!(server.send("GET", "/nowhere", "").0, 404);
    assert!(server.terminate().success());
    fs::read_to_string(log.path()).expect("UTF-8")
}

#[test]
fn each_request_has_a_line_in_text_or_json_and_never_in_colour() {
    let text = logged(&[]);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("sconce::access")).collect();
    let [answered, refused] = lines[..] else { panic!("not two lines:\n{text}") };
    for part in ["tenant=\"default\"", "client=127.0.0.1:", "generated_tokens=5", "status=200"] {
        assert!(answered.contains(part), "no {part} in {answered}");
    }
    assert!(refused.contains("path=\"/nowhere\"") && refused.contains("status=404"), "{refused}");

    let text = logged(&["--log-format", "json"]);
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let access: Vec<_> = lines.iter().filter(|line| line["target"] == "sconce::access").collect();
    assert_eq!(access.len(), 2, "{text}");
    assert_eq!((&access[0]["generated_tokens"], &access[1]["status"]), (&json!(5), &json!(404)));

    for off in ["--disable-access-log", "--disable-uvicorn-access-log"] {
        let text = logged(&[off]);
        assert!(!text.contains("sconce::access"), "{text}");
    }
    let text = logged(&["--disable-access-log-for-endpoints", "/health,/nowhere"]);
    assert_eq!(text.matches("sconce::access").count(), 1, "{text}");
    assert!(!text.contains("/nowhere"), "{text}");
}

#[test]
fn a_ledger_that_may_not_grow_further_fails_and_ends_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("usage.db");
    // Of a megabyte, so that the empty ledger and the log of the server fit.
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -f 256; exec \"$@\"", "-"]).arg(env!("CARGO_BIN_EXE_sconce"));
    command.args(["serve", "null", "--port", "0", "--disable-access-log", "--ledger"]).arg(&ledger);
    let mut server = Server::spawn(command);
    let body = json!({ "prompt": "x", "max_tokens": 40 }).to_string();
    let mut sent = 0;
    while server.metric("sconce:ledger_failing") == 0.0 {
        assert_eq!(server.send("POST", "/v1/completions", &body).0, 200);
        sent += 1;
        assert!(sent < 5_000, "the limit was not met");
    }
    assert_eq!(server.send("POST", "/v1/completions", &body).0, 200, "it serves on");
    assert_eq!(server.metric("sconce:ledger_lost_entries"), 0.0);
    assert!(server.terminate().success());
}

#[test]
fn a_ledger_that_is_deleted_under_a_server_is_told_and_whole_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("usage.db");
    let mut server = Server::spawn(serve(&["--ledger", path(&ledger)]));
    let body = json!({ "prompt": "x", "max_tokens": 7 }).to_string();
    assert_eq!(server.send("POST", "/v1/completions", &body).0, 200);
    fs::remove_file(&ledger).expect("it is there");
    // Found without another request.
    while server.metric("sconce:ledger_replaced") == 0.0 {}
    while server.metric("sconce:ledger_failing") == 1.0 {}
    assert_eq!(server.send("POST", "/v1/completions", &body).0, 200);
    assert!(server.terminate().success());
    let usage = sconce().args(["usage", "--format", "json", "--ledger", path(&ledger)]).output();
    let usage: Value = serde_json::from_slice(&usage.expect("it runs").stdout).expect("JSON");
    assert_eq!((&usage[0]["requests"], &usage[0]["generated_tokens"]), (&json!(2), &json!(14)));
}

#[test]
fn a_unix_socket_is_listened_on_and_its_file_goes_with_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("sconce.sock");
    // As an ended server leaves it.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let start = |at: &Path| {
        let mut command = sconce();
        command.args(["serve", "null", "--uds", path(at)]);
        command
    };
    let mut server = Server::spawn(start(&socket));
    let curl = format!("curl -N --unix-socket '{}' http://localhost/v1/chat", socket.display());
    assert!(server.banner.contains(&curl), "{}", server.banner);
    assert!(refusal(&mut start(&socket)).contains("cannot listen on"), "another server has it");
    let mut stream = UnixStream::connect(&socket).expect("it listens");
    let body = json!({ "prompt": "x", "max_tokens": 3, "ignore_eos": true }).to_string();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("UTF-8");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":3"));
    assert!(server.terminate().success());
    assert!(!socket.exists(), "its file goes with the server");
    let file = folder.path().join("notes.txt");
    fs::write(&file, "mine").expect("it can be written");
    let said = refusal(&mut start(&file));
    assert!(said.contains("not a socket"), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "mine");
}

#[test]
fn spans_that_wait_are_sent_before_a_server_ends() {
    let collector = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", collector.local_addr().expect("it listens"));
    let collected = std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().expect("spans come");
        let mut bytes = Vec::new();
        let length_of = |head: &[u8]| {
            let head = String::from_utf8_lossy(head);
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            length.expect("a length").parse::<usize>().expect("a number")
        };
        loop {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).expect("they are sent");
            bytes.extend_from_slice(&piece[..read]);
            let head = bytes.windows(4).position(|window| window == b"\r\n\r\n");
            if head.is_some_and(|head| bytes.len() == head + 4 + length_of(&bytes[..head])) {
                break;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("it reads");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let mut command = serve(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_SERVICE_NAME", "the-null-model");
    let mut server = Server::spawn(command);
    let body = json!({ "prompt": "x", "max_tokens": 3, "ignore_eos": true }).to_string();
    assert_eq!(server.send("POST", "/v1/completions", &body).0, 200);
    assert!(server.terminate().success());
    let sent = collected.join().expect("it is read");
    assert!(sent.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{sent}");
    for part in ["llm_request", "queue", "prefill", "decode", "the-null-model"] {
        assert!(sent.contains(part), "no {part} in {sent}");
    }
}

#[test]
fn collectors_that_spans_cannot_be_sent_to_are_refused_at_start() {
    for (args, env, named) in [
        (
            &["--otlp-traces-endpoint", "grpc://localhost:4317"][..],
            None,
            "--otlp-traces-endpoint is \"grpc://localhost:4317\"",
        ),
        (
            &[],
            Some(("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/v1/traces")),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is \"https://collector/v1/traces\"",
        ),
    ] {
        let mut command = serve(args);
        command.envs(env);
        let said = refusal(&mut command);
        assert!(said.contains(named) && said.contains("http://localhost:4318/v1/traces"), "{said}");
    }
}
