//! The binary against a hub that a thread plays, told where by hf-hub's own
//! environment variables.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

/// The one model of this hub. Its files in the hub's own order, by name.
const FILES: [(&str, &str); 6] = [
    ("README.md", "about"),
    ("config.json", "{}"),
    (
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}"#,
    ),
    ("part-1.safetensors", "the first half"),
    ("part-2.safetensors", "the second half"),
    ("tokenizer.json", "{}"),
];
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct Hub {
    /// Files asked for, in order.
    asked: Vec<String>,
    /// A file whose answer breaks off.
    breaks_at: Option<&'static str>,
}

impl Hub {
    fn start(breaks_at: Option<&'static str>) -> (Arc<Mutex<Self>>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let hub = Arc::new(Mutex::new(Self { breaks_at, ..Self::default() }));
        let state = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that only looks whether somebody is there says nothing.
                stream.and_then(|stream| state.lock().expect("no panic").answer(stream)).ok();
            }
        });
        (hub, address)
    }

    fn answer(&mut self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let Some(request) = lines.next() else { return Ok(()) };
        let request = request?;
        let (mut range, mut token) = (None, None);
        for line in lines.by_ref() {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            range = line.strip_prefix("range: bytes=").map(ToOwned::to_owned).or(range);
            token = line.strip_prefix("authorization: bearer ").map(ToOwned::to_owned).or(token);
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        // One that has to be accepted first.
        let path = path.replace("/org/gated/", "/org/tiny/");
        let refusal = match token.as_deref() {
            _ if !request.contains("/org/gated/") || path.ends_with("config.json") => None,
            Some("accepted") => None,
            Some(_) => Some("403 Forbidden"),
            None => Some("401 Unauthorized"),
        };
        if let Some(refusal) = refusal {
            return respond(&mut stream, refusal, "", "", 0);
        }
        if path == "/api/models/org/tiny/revision/main" {
            let siblings: Vec<_> =
                FILES.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return respond(&mut stream, "200 OK", "", &body, body.len());
        }
        let name = path.strip_prefix("/org/tiny/resolve/main/");
        let Some((name, body)) = FILES.iter().find(|(file, _)| Some(*file) == name) else {
            return respond(&mut stream, "404 Not Found", "", "", 0);
        };
        let range = range.unwrap_or_default();
        let (from, to) = range.split_once('-').unwrap_or(("0", ""));
        let from = from.parse().unwrap_or(0).min(body.len());
        let to = to.parse().map_or(body.len(), |last: usize| body.len().min(last + 1));
        let part = &body[from..to];
        let mut sent = part;
        if to == body.len() {
            self.asked.push((*name).to_owned());
            if self.breaks_at == Some(*name) {
                sent = &part[..part.len() / 2];
            }
        }
        let headers = format!(
            "etag: \"{name}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes {from}-{}/{}\r\n",
            to.saturating_sub(1),
            body.len()
        );
        respond(&mut stream, "206 Partial Content", &headers, sent, part.len())
    }
}

fn respond(
    stream: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &str,
    length: usize,
) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
}

fn pull(model: &str, home: &Path, address: &str, flags: &[&str]) -> Output {
    pull_with(None, model, home, address, flags)
}

fn pull_with(
    token: Option<&str>,
    model: &str,
    home: &Path,
    address: &str,
    flags: &[&str],
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    command
        .args(["pull", model, "--cache-dir"])
        .arg(home.join("sconce"))
        .args(flags)
        .env_clear()
        .env("HOME", home)
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", address);
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    command.output().expect("the binary runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_broken_fetch_is_no_model_and_is_taken_up_again() {
    let home = tempfile::tempdir().expect("a directory");
    let (hub, address) = Hub::start(Some("part-2.safetensors"));
    let output = pull("org/tiny", home.path(), &address, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("part-2.safetensors"), "{}", told(&output));
    assert!(output.stdout.is_empty(), "no directory is named");

    {
        let mut hub = hub.lock().expect("no panic");
        hub.breaks_at = None;
        let parts = ["part-1.safetensors", "part-2.safetensors"];
        assert_eq!(hub.asked[hub.asked.len() - 2..], parts, "weights come last: {:?}", hub.asked);
        assert!(!hub.asked.contains(&"README.md".to_owned()), "only what is wanted");
        hub.asked.clear();
    }
    let output = pull("org/tiny", home.path(), &address, &[]);
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(hub.lock().expect("no panic").asked, ["part-2.safetensors"], "the rest is there");
    let dir = String::from_utf8(output.stdout).expect("a path");
    for (name, body) in &FILES[1..] {
        let text = fs::read_to_string(Path::new(dir.trim_end()).join(name)).expect("it is there");
        assert_eq!(text, *body, "{name}");
    }
    hub.lock().expect("no panic").asked.clear();

    let again = pull("org/tiny", home.path(), &address, &[]);
    assert_eq!(String::from_utf8(again.stdout).expect("a path"), dir);
    assert_eq!(hub.lock().expect("no panic").asked, [""; 0], "nothing is fetched twice");
    let nowhere = pull("org/tiny", home.path(), "http://127.0.0.1:1", &[]);
    assert!(nowhere.status.success(), "what is whole needs no hub: {}", told(&nowhere));

    let forced = pull("org/tiny", home.path(), &address, &["--force"]);
    assert!(forced.status.success(), "{}", told(&forced));
    assert_eq!(hub.lock().expect("no panic").asked.len(), 5, "force fetches everything");
}

#[test]
fn a_model_that_the_hub_does_not_have_is_told() {
    let home = tempfile::tempdir().expect("a directory");
    let (_hub, address) = Hub::start(None);
    let output = pull("org/missing", home.path(), &address, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("404"), "{}", told(&output));
}

#[test]
fn a_hub_that_is_not_there_is_told() {
    let home = tempfile::tempdir().expect("a directory");
    let output = pull("org/tiny", home.path(), "http://127.0.0.1:1", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("127.0.0.1:1 cannot be reached"), "{}", told(&output));
}

/// It says where to accept the licence, and takes a token.
#[test]
fn a_gated_model_says_what_to_do() {
    let home = tempfile::tempdir().expect("a directory");
    let (_hub, address) = Hub::start(None);
    for (token, said) in [
        (None, "and give a token of your account in HF_TOKEN"),
        (Some("other"), "the token's account has not been given access"),
    ] {
        let output = pull_with(token, "org/gated", home.path(), &address, &[]);
        assert_eq!(output.status.code(), Some(1));
        let told = told(&output);
        let place = "accept its licence at https://huggingface.co/org/gated";
        let place =
            if token.is_none() { place } else { "licence at https://huggingface.co/org/gated" };
        assert!(told.contains(said) && told.contains(place), "{told}");
    }
    let output = pull_with(Some("accepted"), "org/gated", home.path(), &address, &[]);
    assert!(output.status.success(), "{}", told(&output));
}
