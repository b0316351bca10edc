//! TCP and Unix sockets, and accepting connections.

use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};

use super::admission::Admission;
use super::connection;
use super::service::Service;
use crate::os::random::temporary_name;

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A Unix socket, whose file is removed when this is dropped.
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Tells the socket's file from one that replaced it.
    inode: u64,
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Pause after a failed accept, for example if no file descriptor is free.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Response over the limit of connections.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\nRetry-After: 1\r\nConnection: close\r\n\r\ntoo many connections\n";
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Listener {
    /// Accepts connections until the server is stopped. Each connection holds a clone of
    /// `connection_open`.
    pub(super) async fn accept_all(
        self,
        service: Arc<Service>,
        admission: Arc<Admission>,
        mut stopped: watch::Receiver<bool>,
        connection_open: mpsc::Sender<()>,
    ) {
        loop {
            let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
            let (stream, peer) = match unless(stop, self.accept()).await {
                None => return,
                Some(Ok(stream)) => stream,
                Some(Err(e)) => {
                    log::warn!(target: "noxrunner::server", "cannot accept a connection: {e}");
                    tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                    continue;
                }
            };
            let Some((visitor, eviction)) = admission.admit(peer) else {
                tokio::spawn(refuse(stream));
                continue;
            };
            let (service, stopped) = (Arc::clone(&service), stopped.clone());
            let connection_open = connection_open.clone();
            tokio::spawn(async move {
                connection::serve(stream, service, Arc::new(visitor), eviction, stopped).await;
                drop(connection_open);
            });
        }
    }

    async fn accept(&self) -> io::Result<(Box<dyn Connection>, Option<IpAddr>)> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Without this, a small response waits for the acknowledgement of the one before it.
                stream.set_nodelay(true)?;
                (Box::new(stream), Some(peer.ip()))
            }
            Listener::Unix(socket) => (Box::new(socket.listener.accept().await?.0), None),
        })
    }
}

/// Refuses a connection. Reads part of the request first, because closing a socket with unread data
/// would discard the response.
async fn refuse(mut stream: Box<dyn Connection>) {
    use tokio::io::AsyncReadExt;
    let respond = async {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await?;
        stream.write_all(TOO_MANY_CONNECTIONS).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(REFUSE_TIMEOUT, respond).await;
}

impl UnixSocket {
    pub(super) fn bind(path: &Path, mode: u32) -> io::Result<UnixSocket> {
        check_unused(path)?;
        // The socket is created in a private directory, gets its mode, and then replaces a stale one.
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let private = parent.join(temporary_name());
        fs::DirBuilder::new().mode(0o700).create(&private)?;
        let inside = private.join("s");
        let bind = || {
            let listener = UnixListener::bind(&inside)?;
            fs::set_permissions(&inside, fs::Permissions::from_mode(mode))?;
            let inode = fs::metadata(&inside)?.ino();
            fs::rename(&inside, path)?;
            Ok(UnixSocket {
                listener,
                path: path.to_owned(),
                inode,
            })
        };
        let bound = bind();
        let _ = fs::remove_file(&inside);
        let _ = fs::remove_dir(&private);
        bound
    }
}

/// Fails if the path is in use by something other than a stale socket.
fn check_unused(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        let text = "the path exists and is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server is listening on it",
        )),
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Runs `future` unless `stop` finishes first.
async fn unless<T>(stop: impl Future<Output = ()>, future: impl Future<Output = T>) -> Option<T> {
    let (mut stop, mut future) = (pin!(stop), pin!(future));
    poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
