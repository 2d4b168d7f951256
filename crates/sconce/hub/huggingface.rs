//! Models from the Hugging Face hub.

use std::{
    collections::BTreeSet,
    net::{TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use hf_hub::{
    Cache,
    api::{self, sync::ApiBuilder},
};

use super::{HubOptions, Phase, Progress};

/// How long the hub may take to show that it is there at all. A machine without
/// a way out should find that out quickly.
const REACH_TIMEOUT: Duration = Duration::from_secs(6);

/// How long each of the hub's addresses may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the hub may take to list a model's files. A firewall may accept a
/// connection and then say nothing, and hf-hub waits without a limit.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files beside the weights that a model may have and that are wanted.
const WANTED: [&str; 10] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    // What becomes of an encoder's hidden states.
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];

/// Fetches a model into the hub's own cache, which other programs share, and
/// returns its directory there. The error is a reason, for people.
///
/// Weights come last, so that a directory with all its weights is whole. Files
/// that an interrupted fetch has left are used again, unless all is to be
/// fetched anew by `force`.
pub(super) fn fetch(
    id: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<PathBuf, String> {
    let force = options.force;
    if let Some(path) = cached(id).filter(|_| !force) {
        return Ok(path);
    }
    let mut builder = ApiBuilder::from_env().with_progress(false);
    // Before the token that a login has left, which hf-hub reads itself.
    if options.token.is_some() {
        builder = builder.with_token(options.token.clone());
    }
    let api = builder.build().map_err(|error| error.to_string())?;
    let repo = api.model(id.to_owned());
    reach(repo.url("config.json"))?;
    let listing = api.model(id.to_owned());
    let refused = |error: &dyn std::fmt::Display| refusal(id, &error.to_string());
    let info = within(LIST_TIMEOUT, move || listing.info().map_err(|error| error.to_string()))
        .map_err(|error| refused(&error))?;
    let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
    if !has("config.json") || !(has(WEIGHTS) || has(INDEX)) {
        let ends = |ending: &str| {
            let mut names = info.siblings.iter().map(|file| file.rfilename.to_ascii_lowercase());
            names.any(|name| name.ends_with(ending))
        };
        let hint = if ends(".gguf") {
            "; it has GGUF files: download one and name it"
        } else if ends(".bin") {
            "; of PyTorch's files only safetensors are read"
        } else {
            ""
        };
        return Err(format!("it has no config.json with {WEIGHTS} or {INDEX}{hint}"));
    }
    let snapshot = Cache::from_env().model(id.to_owned()).pointer_path(&info.sha);
    let get = |name: &str| {
        if !force && snapshot.join(name).is_file() {
            return Ok(());
        }
        let bytes = Bytes { progress, done: 0, total: 0 };
        let fetched = repo.download_with_progress(name, bytes);
        fetched.map(|_| ()).map_err(|error| format!("{name}: {}", refused(&error)))
    };
    for name in WANTED.into_iter().filter(|name| has(name)) {
        get(name)?;
    }
    if has(WEIGHTS) {
        get(WEIGHTS)?;
    } else {
        get(INDEX)?;
        let shards = shards(&snapshot).ok_or_else(|| format!("{INDEX} lists no files"))?;
        for name in shards {
            // A name that the hub does not list could lead out of the cache.
            if !has(&name) || name.contains(['/', '\\']) {
                return Err(format!("{INDEX} names {name:?}, which the model does not have"));
            }
            get(&name)?;
        }
    }
    // Where every file was there already, no download has noted the commit.
    let noted = Cache::from_env().model(id.to_owned()).create_ref(&info.sha);
    noted.map_err(|error| error.to_string())?;
    cached(id).ok_or_else(|| "the model changed on the hub meanwhile; try again".to_owned())
}

/// What the hub's refusal means. It answers so for models whose licence has to be accepted,
/// and, to who gives no token, for those that it does not have.
fn refusal(id: &str, error: &str) -> String {
    match error {
        _ if error.contains("status: 401") => format!(
            "{error}: there is no such model, or it is gated: accept its licence at \
             https://huggingface.co/{id} and give a token of your account in HF_TOKEN"
        ),
        _ if error.contains("status: 403") => format!(
            "{error}: the token's account has not been given access: accept the model's licence \
             at https://huggingface.co/{id}"
        ),
        _ => error.to_owned(),
    }
}

/// The files that a model's index of shards names.
fn shards(dir: &Path) -> Option<BTreeSet<String>> {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join(INDEX)).ok()?).ok()?;
    let files = index["weight_map"].as_object().filter(|map| !map.is_empty())?;
    files.values().map(|name| name.as_str().map(ToOwned::to_owned)).collect()
}

/// The model's directory in the hub's cache, if it is whole.
fn cached(id: &str) -> Option<PathBuf> {
    let repo = Cache::from_env().model(id.to_owned());
    let dir = repo.get("config.json")?.parent()?.to_owned();
    repo.get("tokenizer.json")?;
    if dir.join(WEIGHTS).is_file() {
        return Some(dir);
    }
    let whole = shards(&dir)?.iter().all(|name| dir.join(name).is_file());
    whole.then_some(dir)
}

/// Whether a URL's host accepts a connection. Behind a proxy only the proxy
/// could tell, so there the listing itself finds out.
fn reach(url: String) -> Result<(), String> {
    let proxied = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(proxied) {
        return Ok(());
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", &url));
    let host = rest.split('/').next().unwrap_or_default().to_owned();
    let port = if scheme == "http" { 80 } else { 443 };
    let address = if host.contains(':') { host.clone() } else { format!("{host}:{port}") };
    let connect = move || {
        let addresses = address.to_socket_addrs().map_err(|error| error.to_string())?;
        let mut reason = "the name has no address".to_owned();
        // A host may have addresses of a family that this machine cannot route.
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(_) => return Ok(()),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    };
    within(REACH_TIMEOUT, connect).map_err(|reason| format!("{host} cannot be reached: {reason}"))
}

/// What `ask` gives within a limit. Neither looking a name up nor hf-hub can be
/// given one, so they are waited for elsewhere.
fn within<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = mpsc::channel();
    // Nobody listens any more once the limit has passed.
    std::thread::spawn(move || send.send(ask()).ok());
    let silent = |_| Err(format!("no answer within {} s", limit.as_secs()));
    receive.recv_timeout(limit).unwrap_or_else(silent)
}

/// One file's bytes.
struct Bytes<'a> {
    progress: &'a dyn Progress,
    done: u64,
    total: u64,
}

impl api::Progress for Bytes<'_> {
    fn init(&mut self, size: usize, _: &str) {
        // Called again whenever a download is taken up anew.
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.progress.update(Phase::Download, self.done, self.total);
    }

    fn finish(&mut self) {}
}
