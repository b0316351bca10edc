//! Making connections: our parts of ureq's chain of connectors.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};

use super::socket::{CallScope, Socket, timed_out};
use super::stream::Stream;
use crate::error::io_reason;

/// Skips ureq's own DNS lookup, which runs before every request, even on a pooled connection.
/// [`SocketConnector`] resolves names itself.
#[derive(Debug)]
pub(super) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from(([0, 0, 0, 0], 0)));
        Ok(addresses)
    }
}

/// The first connector of the chain. For a proxy, the chain runs within itself.
#[derive(Debug)]
pub(super) struct StartConnecting;

impl Connector<()> for StartConnecting {
    type Out = ();

    fn connect(&self, _: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<()>, ureq::Error> {
        CallScope::with(|state| {
            state.connecting += 1;
            state.connect_end();
        });
        Ok(None)
    }
}

/// Opens a socket, unless a connector before it has opened a connection through a proxy.
#[derive(Debug)]
pub(super) struct SocketConnector {
    /// Path of the Unix socket to connect to, instead of the host.
    pub(super) unix: Option<PathBuf>,
    /// No TLS on top.
    pub(super) plain: bool,
    pub(super) keep_alive_seen: Arc<AtomicBool>,
}

impl<In: Transport> Connector<In> for SocketConnector {
    type Out = Either<In, Socket>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        let stream = match &self.unix {
            Some(path) => open_unix(path)?,
            None => open_tcp(details.uri)?,
        };
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Either::B(Socket::new(
            stream,
            buffers,
            self.plain,
            Arc::clone(&self.keep_alive_seen),
        ))))
    }
}

fn open_tcp(uri: &Uri) -> Result<Stream, ureq::Error> {
    let (host, port) = host_and_port(uri)?;
    let end = connect_end(format!("{host}:{port}"));
    let stream = in_cancellable(end, move || connect(&lookup(host, port, end)?, end))?;
    stream.set_nodelay(true)?;
    Ok(Stream::Tcp(stream))
}

/// Connects to a Unix socket. This uses a thread, because it waits while the server's queue of connections is
/// full. The thread ends when the server accepts the connection or closes.
fn open_unix(path: &Path) -> io::Result<Stream> {
    let end = connect_end(format!("unix://{}", path.display()));
    let path = path.to_owned();
    let (sender, receiver) = mpsc::channel();
    let stream = in_cancellable(end, move || {
        in_background(move || drop(sender.send(UnixStream::connect(path))))?;
        receive(&receiver, end, "connection timed out")
    })?;
    Ok(Stream::Unix(stream))
}

/// Records the address of the peer, and returns when the connection must be made at the latest.
fn connect_end(peer: String) -> Instant {
    CallScope::with(|state| {
        state.peer = peer;
        state.connect_end()
    })
}

fn host_and_port(uri: &Uri) -> Result<(String, u16), ureq::Error> {
    let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
    let default = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    Ok((host.to_owned(), uri.port_u16().unwrap_or(default)))
}

/// Connects by `end`. If the call can be cancelled, this uses a thread, because neither name resolution
/// nor connecting can be interrupted. The thread ends by `end` too, unless name resolution takes
/// longer.
fn in_cancellable<T: Send + 'static>(
    end: Instant,
    connect: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(cancel) = CallScope::cancel() else {
        return connect();
    };
    let (sender, receiver) = mpsc::channel();
    let canceller = sender.clone();
    let _guard =
        cancel.on_cancel(move || drop(canceller.send(Err(io::ErrorKind::Interrupted.into()))));
    in_background(move || {
        // Fails only if the call was cancelled.
        let _ = sender.send(connect());
    })?;
    receive(&receiver, end, "connection timed out")
}

fn connect(addresses: &[SocketAddr], end: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (at, address) in addresses.iter().enumerate() {
        // Each address gets half of the remaining time, the last one all of it.
        let left = end.saturating_duration_since(Instant::now());
        let is_last = at + 1 == addresses.len();
        let share = if is_last { left } else { left / 2 };
        if share.is_zero() {
            return Err(timed_out("connection timed out"));
        }
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => return Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                last = timed_out("connection timed out")
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn lookup(host: String, port: u16, end: Instant) -> io::Result<Vec<SocketAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    in_background(move || {
        let found = (host.as_str(), port)
            .to_socket_addrs()
            .map(Iterator::collect);
        let _ = sender.send(found);
    })?;
    receive(&receiver, end, "DNS lookup timed out")
}

fn in_background(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name("noxrunner-connect".into())
        .spawn(work)
        .map(drop)
}

fn receive<T>(receiver: &mpsc::Receiver<io::Result<T>>, end: Instant, late: &str) -> io::Result<T> {
    // Wait slightly longer than the worker: its timeout error is more specific.
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(50);
    receiver
        .recv_timeout(left)
        .unwrap_or_else(|_| Err(timed_out(late)))
}

/// Connects to a proxy that forwards plain http requests. Many proxies refuse CONNECT to other ports than
/// 443.
#[derive(Debug)]
pub(super) struct ForwardProxyConnector {
    pub(super) proxy: Option<Uri>,
}

impl<In: Transport> Connector<In> for ForwardProxyConnector {
    type Out = Either<In, Box<dyn Transport>>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let uri = match (&self.proxy, chained) {
            (_, Some(transport)) => return Ok(Some(Either::A(transport))),
            // The chain runs within itself, to connect to the proxy.
            (Some(proxy), None) if proxy != details.uri => proxy,
            _ => return Ok(None),
        };
        let to_proxy = ConnectionDetails {
            uri,
            addrs: details.resolver.empty(),
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: Arc::clone(&details.current_time),
            run_connector: Arc::clone(&details.run_connector),
            register_shutdown: Arc::clone(&details.register_shutdown),
        };
        let transport = (details.run_connector)(&to_proxy)?;
        Ok(Some(Either::B(transport)))
    }
}

/// The last connector of the chain. It completes the head of requests below ureq, which logs everything
/// that it sends at trace level.
pub(super) struct FinishConnecting {
    /// Headers that may be secret, as they are sent.
    pub(super) headers: Arc<[u8]>,
    /// Origin that a forwarding proxy needs in front of the path.
    pub(super) origin: Option<Arc<str>>,
}

impl<In: Transport> Connector<In> for FinishConnecting {
    type Out = HeadTransport<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        CallScope::with(|state| state.connecting = state.connecting.saturating_sub(1));
        Ok(chained.map(|inner| HeadTransport {
            inner,
            headers: Arc::clone(&self.headers),
            origin: self.origin.clone(),
        }))
    }
}

impl fmt::Debug for FinishConnecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishConnecting").finish_non_exhaustive()
    }
}

/// A connection, above TLS and proxies, that completes the head of each request.
pub(super) struct HeadTransport<In> {
    inner: In,
    headers: Arc<[u8]>,
    origin: Option<Arc<str>>,
}

impl<In: Transport> HeadTransport<In> {
    /// Inserts the origin before the path, and the headers after the request line. The first output of a
    /// call is its head.
    fn complete_head(&mut self, amount: usize) -> io::Result<usize> {
        let headers = CallScope::with(|state| {
            let first =
                state.connecting == 0 && !std::mem::replace(&mut state.head_completed, true);
            first.then(|| Arc::clone(&state.headers))
        });
        let Some(headers) = headers else {
            return Ok(amount);
        };
        let output = self.inner.buffers().output();
        let total = insert(output, amount, b"\r\n", &self.headers)?;
        let total = insert(output, total, b"\r\n", &headers)?;
        match &self.origin {
            Some(origin) => insert(output, total, b" ", origin.as_bytes()),
            None => Ok(total),
        }
    }
}

/// Inserts bytes after the first occurrence of a mark, and returns the new length.
fn insert(output: &mut [u8], length: usize, mark: &[u8], bytes: &[u8]) -> io::Result<usize> {
    let at = output[..length].windows(mark.len()).position(|w| w == mark);
    let Some(at) = at.map(|at| at + mark.len()) else {
        return Err(io::Error::other("the request has no request line"));
    };
    let total = length + bytes.len();
    if total > output.len() {
        return Err(io::Error::other("the headers are too long"));
    }
    output.copy_within(at..length, at + bytes.len());
    output[at..at + bytes.len()].copy_from_slice(bytes);
    Ok(total)
}

impl<In: Transport> Transport for HeadTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let amount = self.complete_head(amount)?;
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout).map_err(|e| match e {
            // ureq takes these for the end of a body without a length, which hides truncation.
            ureq::Error::Io(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                io::Error::new(io::ErrorKind::BrokenPipe, io_reason(&e)).into()
            }
            e => e,
        })
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl<In: fmt::Debug> fmt::Debug for HeadTransport<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
