//! The binary as a process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::model;

pub(crate) fn sconce() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    command.env("SCONCE_NO_HUB", "1").env("SCONCE_CACHE", model::cache_dir());
    command
}

/// A server on a free port, killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    /// What it printed while it started.
    pub(crate) banner: String,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = sconce();
        command.arg("serve").arg(model::dir()).args(["--port", "0"]).args(args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut banner = String::new();
        let mut address = None;
        while !banner.contains("capital of France") {
            let line = lines.next().expect("the banner ends with a command").expect("UTF-8");
            if let Some((_, rest)) = line.split_once("http://").filter(|_| address.is_none()) {
                address = rest.strip_suffix("/v1").map(ToOwned::to_owned);
            }
            banner.push_str(&line);
            banner.push('\n');
        }
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
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout can be set");
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .expect("the request is sent");
        stream
    }

    /// A metric's value.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.send("GET", "/metrics", "");
        assert_eq!(status, 200);
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }

    /// Asks the process to end and waits for it.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("the process ends")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
