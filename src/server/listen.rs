//! Where the server listens, and the connections that come from there.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};

use super::call::Service;
use super::{First, connection, first};
use crate::os::random::temporary_name;

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A socket that is removed with this.
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Whether the path still leads to it.
    inode: u64,
}

/// Both kinds of connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How long to wait where descriptors or memory are short.
const SHORT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// To whom there is no room for. As much as a small request is read, or the answer would be lost.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 45\r\nRetry-After: 1\r\nConnection: close\r\n\r\nthe server has as many connections as it may\n";
const NO_ROOM_WAIT: Duration = Duration::from_secs(1);

impl Listener {
    /// Until the server is stopped. `done` is closed when the last connection is over.
    pub(super) async fn accept_all(
        self,
        service: Arc<Service>,
        connections: Arc<Semaphore>,
        mut stopped: watch::Receiver<bool>,
        done: mpsc::Sender<()>,
    ) {
        loop {
            let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
            let stream = match first(stop, self.accept()).await {
                First::One(()) => return,
                First::Other(Ok(stream)) => stream,
                First::Other(Err(e)) => {
                    log::warn!(target: "noxrunner::server", "cannot accept a connection: {e}");
                    tokio::time::sleep(SHORT_OF_DESCRIPTORS).await;
                    continue;
                }
            };
            let Ok(room) = Arc::clone(&connections).try_acquire_owned() else {
                tokio::spawn(turn_away(stream));
                continue;
            };
            let (service, stopped, done) = (Arc::clone(&service), stopped.clone(), done.clone());
            tokio::spawn(async move {
                connection::serve(stream, service, stopped).await;
                drop((room, done));
            });
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Else a small answer waits for the client's acknowledgement of the one before.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Listener::Unix(socket) => Box::new(socket.listener.accept().await?.0),
        })
    }
}

async fn turn_away(mut stream: Box<dyn Stream>) {
    use tokio::io::AsyncReadExt;
    let answer = async {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await?;
        stream.write_all(NO_ROOM).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(NO_ROOM_WAIT, answer).await;
}

impl UnixSocket {
    pub(super) fn bind(path: &Path) -> io::Result<UnixSocket> {
        refuse_what_is_used(path)?;
        // Nobody else reaches it before it has its mode, and then it takes the place of a stale one.
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let closed = parent.join(temporary_name());
        fs::DirBuilder::new().mode(0o700).create(&closed)?;
        let inside = closed.join("s");
        let bind = || {
            let listener = UnixListener::bind(&inside)?;
            fs::set_permissions(&inside, fs::Permissions::from_mode(0o600))?;
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
        let _ = fs::remove_dir(&closed);
        bound
    }
}

fn refuse_what_is_used(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        let text = "there is something that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server listens to it",
        )),
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
