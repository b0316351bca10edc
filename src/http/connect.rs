//! Making connections: our parts of ureq's chain of connectors.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
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

/// Opens a socket, unless a connector before it has opened a tunnel through a proxy.
#[derive(Debug)]
pub(super) struct SocketConnector {
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
        let (host, port) = host_and_port(details.uri)?;
        let end = CallScope::with(|state| {
            state.peer = format!("{host}:{port}");
            state.connect_end()
        });
        let stream = open(host, port, end)?;
        stream.set_nodelay(true)?;
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
fn open(host: String, port: u16, end: Instant) -> io::Result<TcpStream> {
    let Some(cancel) = CallScope::cancel() else {
        return connect(&lookup(host, port, end)?, end);
    };
    let (sender, receiver) = mpsc::channel();
    let canceller = sender.clone();
    let _guard =
        cancel.on_cancel(move || drop(canceller.send(Err(io::ErrorKind::Interrupted.into()))));
    in_background(move || {
        let stream = lookup(host, port, end).and_then(|addresses| connect(&addresses, end));
        // Fails only if the call was cancelled.
        let _ = sender.send(stream);
    })?;
    receive(&receiver, end)
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
    receive(&receiver, end)
}

fn in_background(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name("noxrunner-connect".into())
        .spawn(work)
        .map(drop)
}

fn receive<T>(receiver: &mpsc::Receiver<io::Result<T>>, end: Instant) -> io::Result<T> {
    // Wait slightly longer than the worker: its timeout error is more specific.
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(50);
    receiver
        .recv_timeout(left)
        .unwrap_or_else(|_| Err(timed_out("DNS lookup timed out")))
}

/// The last connector of the chain. It adds the headers that may be secret, below ureq, which logs
/// everything that it sends at trace level.
pub(super) struct FinishConnecting {
    pub(super) headers: Arc<[u8]>,
}

impl<In: Transport> Connector<In> for FinishConnecting {
    type Out = HeaderTransport<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        CallScope::with(|state| state.connecting = state.connecting.saturating_sub(1));
        let headers = Arc::clone(&self.headers);
        Ok(chained.map(|inner| HeaderTransport { inner, headers }))
    }
}

impl fmt::Debug for FinishConnecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishConnecting").finish_non_exhaustive()
    }
}

/// A connection, above TLS and proxies, that adds headers to each request.
pub(super) struct HeaderTransport<In> {
    inner: In,
    headers: Arc<[u8]>,
}

impl<In: Transport> HeaderTransport<In> {
    /// Inserts the headers after the request line. The first output of a call is its head.
    fn add_headers(&mut self, amount: usize) -> io::Result<usize> {
        let first = CallScope::with(|state| {
            state.connecting == 0 && !std::mem::replace(&mut state.headers_added, true)
        });
        if !first || self.headers.is_empty() {
            return Ok(amount);
        }
        let output = self.inner.buffers().output();
        let line_end = output[..amount].windows(2).position(|two| two == b"\r\n");
        let (Some(at), total) = (line_end.map(|at| at + 2), amount + self.headers.len()) else {
            return Err(io::Error::other("the request has no request line"));
        };
        if total > output.len() {
            return Err(io::Error::other("the headers are too long"));
        }
        output.copy_within(at..amount, at + self.headers.len());
        output[at..at + self.headers.len()].copy_from_slice(&self.headers);
        Ok(total)
    }
}

impl<In: Transport> Transport for HeaderTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let amount = self.add_headers(amount)?;
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

impl<In: fmt::Debug> fmt::Debug for HeaderTransport<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
