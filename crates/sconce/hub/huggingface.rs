//! Models from the Hugging Face hub.

use std::{
    net::{TcpStream, ToSocketAddrs as _},
    path::PathBuf,
    sync::mpsc,
    time::Duration,
};

use hf_hub::{
    Cache,
    api::{self, sync::ApiBuilder},
};

use super::{Phase, Progress};

/// How long the hub may take to show that it is there at all. A machine without
/// a way out should find that out quickly.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);

/// Files that a model may have and that are wanted.
const WANTED: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Fetches a model into the hub's own cache, which other programs share, and
/// returns its directory there. The error is a reason, for people.
pub(super) fn fetch(id: &str, progress: &dyn Progress) -> Result<PathBuf, String> {
    if let Some(path) = cached(id) {
        return Ok(path);
    }
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(|e| e.to_string())?;
    let repo = api.model(id.to_owned());
    reach(&repo.url("config.json"))?;
    let info = repo.info().map_err(|error| error.to_string())?;
    let wanted = |name: &str| WANTED.contains(&name) || name.ends_with(".safetensors");
    let names = info.siblings.iter().map(|file| file.rfilename.as_str());
    let mut names: Vec<_> = names.filter(|name| wanted(name) && !name.contains('/')).collect();
    // Weights last: where they are whole, an interrupted fetch lacks nothing else.
    names.sort_by_key(|name| name.ends_with(".safetensors"));
    if !names.contains(&"config.json") || !names.iter().any(|n| n.ends_with(".safetensors")) {
        return Err("it has no config.json with safetensors weights".to_owned());
    }
    let mut dir = None;
    for name in names {
        let bytes = Bytes { progress, done: 0, total: 0 };
        let path = repo.download_with_progress(name, bytes).map_err(|e| format!("{name}: {e}"))?;
        dir = path.parent().map(ToOwned::to_owned);
    }
    dir.ok_or_else(|| "it has no files".to_owned())
}

/// The model's directory in the hub's cache, if it is whole.
fn cached(id: &str) -> Option<PathBuf> {
    let repo = Cache::from_env().model(id.to_owned());
    let dir = repo.get("config.json")?.parent()?.to_owned();
    repo.get("tokenizer.json")?;
    if repo.get("model.safetensors").is_some() {
        return Some(dir);
    }
    let index = std::fs::read(repo.get("model.safetensors.index.json")?).ok()?;
    let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
    let shards = index["weight_map"].as_object()?;
    let whole = shards.values().all(|name| name.as_str().is_some_and(|n| dir.join(n).is_file()));
    whole.then_some(dir)
}

/// Whether a URL's host accepts a connection. Behind a proxy only the proxy
/// could tell, so there the download itself finds out.
fn reach(url: &str) -> Result<(), String> {
    let proxied = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(proxied) {
        return Ok(());
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or_default().to_owned();
    let port = if scheme == "http" { 80 } else { 443 };
    let address = if host.contains(':') { host.clone() } else { format!("{host}:{port}") };
    let (send, receive) = mpsc::channel();
    // Looking a name up cannot be given a limit, so it is waited for elsewhere.
    std::thread::spawn(move || {
        let connected = address.to_socket_addrs().and_then(|mut addresses| {
            let none = || std::io::Error::other("the name has no address");
            TcpStream::connect_timeout(&addresses.next().ok_or_else(none)?, REACH_TIMEOUT)
        });
        let _ = send.send(connected.map(|_| ()));
    });
    match receive.recv_timeout(REACH_TIMEOUT * 2) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{host} cannot be reached: {error}")),
        Err(_) => Err(format!("{host} cannot be reached: no answer")),
    }
}

/// One file's bytes.
struct Bytes<'a> {
    progress: &'a dyn Progress,
    done: u64,
    total: u64,
}

impl api::Progress for Bytes<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.progress.update(Phase::Download, self.done, self.total);
    }

    fn finish(&mut self) {}
}
