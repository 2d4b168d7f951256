//! What the server listens on: a TCP address, or a Unix socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

/// The listener's backlog: the kernel drops connections beyond it, and each of their clients
/// retries only after a second.
const BACKLOG: u32 = 4096;

/// Takes up connections.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(unix::SocketFile),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self(Kind::Tcp(listener))
    }
}

impl Listener {
    /// The address, of a TCP listener.
    ///
    /// # Errors
    /// It is not known, or there is none: this is a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr(),
            #[cfg(unix)]
            Kind::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The next connection, and the address of its client where that has one.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        match &self.0 {
            Kind::Tcp(listener) => {
                let (socket, client) = listener.accept().await?;
                // A token goes out when it is there, not when the last one was acknowledged.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!("a connection without TCP_NODELAY: {error}");
                }
                Ok((socket, Some(client.ip())))
            }
            #[cfg(unix)]
            Kind::Unix(file) => Ok((file.accept().await?, None)),
        }
    }
}

/// Listens on the first of a host's addresses that can be bound; port 0 picks a free one.
///
/// # Errors
/// The host has no address, or none that can be bound.
pub async fn listen(host: &str, port: u16) -> io::Result<Listener> {
    let mut refused = None;
    for address in lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        #[cfg(not(windows))]
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener.into()),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host")))
}

#[cfg(unix)]
pub use unix::listen_on_path;

#[cfg(unix)]
mod unix {
    use std::{
        fs, io,
        os::{
            fd::OwnedFd,
            unix::{fs::FileTypeExt as _, net::UnixStream},
        },
        path::{Path, PathBuf},
    };

    use tokio::net::{TcpStream, UnixListener};

    use super::{Kind, Listener};

    /// A Unix socket that is listened on; its file goes with it.
    #[derive(Debug)]
    pub(super) struct SocketFile {
        listener: UnixListener,
        path: PathBuf,
    }

    impl SocketFile {
        /// What tokio and std call a TCP stream is any connected stream socket, as far as
        /// reading, writing, peeking and closing go.
        pub(super) async fn accept(&self) -> io::Result<TcpStream> {
            let (socket, _) = self.listener.accept().await?;
            let socket = OwnedFd::from(socket.into_std()?);
            TcpStream::from_std(std::net::TcpStream::from(socket))
        }
    }

    impl Drop for SocketFile {
        fn drop(&mut self) {
            // It may be gone already.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Listens on a Unix socket. A socket that an ended server has left at the path is
    /// replaced.
    ///
    /// # Errors
    /// Another server listens there, the path is that of something else, or it cannot be
    /// made.
    pub fn listen_on_path(path: &Path) -> io::Result<Listener> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket"));
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                }
                _ => return Err(io::ErrorKind::AddrInUse.into()),
            },
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        Ok(Listener(Kind::Unix(SocketFile { listener, path: path.to_owned() })))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::listen;

    #[test]
    fn a_burst_of_connections_waits_to_be_taken_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(listen("localhost", 0)).expect("a free port");
        let address = listener.local_addr().expect("it listens");
        // Nobody takes them up. More than 128, which is what listeners have by default.
        let connections: Vec<_> = (0..300)
            .map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(900)))
            .collect();
        assert!(connections.iter().all(Result::is_ok), "{:?}", connections.last());
    }
}
