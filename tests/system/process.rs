//! The binary as a process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use crate::model;

pub(crate) fn sconce() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    command.env("SCONCE_NO_HUB", "1").env("SCONCE_CACHE", model::cache_dir());
    command
}

#[test]
fn the_banner_names_the_instructions_that_compute_in_the_models_dtype() {
    for (args, says) in [
        (&["--cpu-isa", "portable"][..], "portable, bf16 widened to f32\n"),
        (&["--cpu-isa", "portable", "--dtype", "float32"], "portable\n"),
        (
            &["--cpu-isa", "portable", "--quantization", "int8"],
            "portable, int8 widened to 32 bits\n",
        ),
    ] {
        let server = Server::start(args);
        assert!(server.banner.contains(says), "{args:?}: {}", server.banner);
    }
    let mut masked = sconce();
    masked.args(["serve", "null", "--port", "0"]).env("SCONCE_CPU_ISA", "avx1024");
    let refused = masked.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("avx512-vnni"), "{said}");
}

/// A server on a free port, killed when dropped.
pub(crate) struct Server {
    child: Mutex<Child>,
    pub(crate) address: String,
    /// What it printed while it started.
    pub(crate) banner: String,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = sconce();
        command.arg("serve").arg(model::dir()).args(["--port", "0"]).args(args);
        Self::spawn(command)
    }

    /// Starts what `command` is: a server.
    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_logging(command, Stdio::inherit())
    }

    /// The same, with its log elsewhere.
    pub(crate) fn spawn_logging(mut command: Command, log: Stdio) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut banner = String::new();
        let mut address = None;
        while !banner.contains("capital of France") {
            let line = lines.next().expect("the banner ends with a command").expect("UTF-8");
            if let Some((_, rest)) = line.split_once("http://").filter(|_| address.is_none()) {
                address = rest.split_once("/v1").map(|(address, _)| address.to_owned());
            }
            banner.push_str(&line);
            banner.push('\n');
        }
        let child = Mutex::new(child);
        Self { child, address: address.expect("the banner names the address"), banner }
    }

    /// One request on a connection of its own: status and body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.open(method, path, body);
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the response is UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        (status, body.to_owned())
    }

    /// Sends a request and leaves its response to be read.
    pub(crate) fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        self.try_open(method, path, "", body).expect("the server listens")
    }

    /// The same with more headers, each with its end of line; `None` if the server is gone.
    pub(crate) fn try_open(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout can be set");
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\
             Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .ok()?;
        Some(stream)
    }

    /// A metric's value.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "", "")
    }

    /// The same of the line that has a label, asked for with more headers.
    pub(crate) fn metric_with(&self, name: &str, label: &str, headers: &str) -> f64 {
        let mut stream = self.try_open("GET", "/metrics", headers, "").expect("it listens");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the response is UTF-8");
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }

    /// Asks the process to end and waits for it.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let child = self.child.get_mut().expect("nobody panics with it");
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        child.wait().expect("the process ends")
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.lock().expect("nobody panics with it").id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits until the process ends by itself.
    #[cfg(feature = "cuda")]
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        self.child.get_mut().expect("nobody panics with it").wait().expect("the process ends")
    }

    /// Ends the process at once, whatever it does.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().expect("nobody panics with it");
        child.kill().expect("it runs");
        child.wait().expect("the process ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Ok(child) = self.child.get_mut() else { return };
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}
