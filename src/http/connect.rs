//! Connections for ureq: the chain of its connectors, with our own links.

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

use super::socket::{Call, Socket, timed_out};
use crate::error::io_reason;

/// ureq asks for addresses before every request, also for one on a kept connection. The lookup
/// is the connector's.
#[derive(Debug)]
pub(super) struct NoLookup;

impl Resolver for NoLookup {
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

/// The first link of the chain. The chain runs within itself for a proxy.
#[derive(Debug)]
pub(super) struct Begin;

impl Connector<()> for Begin {
    type Out = ();

    fn connect(&self, _: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<()>, ureq::Error> {
        Call::with(|state| {
            state.connecting += 1;
            state.connect_end();
        });
        Ok(None)
    }
}

/// The link that opens a socket, unless there is a tunnel through a proxy already.
#[derive(Debug)]
pub(super) struct SocketConnector {
    plain: bool,
    keeps: Arc<AtomicBool>,
}

impl SocketConnector {
    /// `plain` says that there is no TLS on the way.
    pub(super) fn new(plain: bool) -> SocketConnector {
        SocketConnector {
            plain,
            keeps: Arc::default(),
        }
    }
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
        let end = Call::with(|state| {
            state.place = format!("{host}:{port}");
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
            Arc::clone(&self.keeps),
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

/// Connects by `end`. Where the call can be cancelled, on a thread of its own: neither the system's
/// resolver nor a connect can be interrupted. That thread ends by `end` as well, but for a resolver
/// that takes longer.
fn open(host: String, port: u16, end: Instant) -> io::Result<TcpStream> {
    let Some(cancel) = Call::cancel() else {
        return connect(&lookup(host, port, end)?, end);
    };
    let (sender, receiver) = mpsc::channel();
    let canceller = sender.clone();
    let _guard =
        cancel.on_cancel(move || drop(canceller.send(Err(io::ErrorKind::Interrupted.into()))));
    in_background(move || {
        let stream = lookup(host, port, end).and_then(|addresses| connect(&addresses, end));
        // Nobody waits any more, if it was cancelled.
        let _ = sender.send(stream);
    })?;
    receive(&receiver, end)
}

fn connect(addresses: &[SocketAddr], end: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (at, address) in addresses.iter().enumerate() {
        // Each address gets half of what is left, the last one all of it.
        let left = end.saturating_duration_since(Instant::now());
        let share = if at + 1 == addresses.len() {
            left
        } else {
            left / 2
        };
        if share.is_zero() {
            return Err(timed_out("no answer in time"));
        }
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => return Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => last = timed_out("no answer in time"),
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
    // A little longer: the other side has better words for the same end.
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(50);
    receiver
        .recv_timeout(left)
        .unwrap_or_else(|_| Err(timed_out("the name was not resolved in time")))
}

/// The last link: from here on, what is written is the request.
pub(super) struct End {
    /// Header lines for every request. They are put in here, below ureq, which writes all that it
    /// sends into the log at trace level.
    secrets: Arc<[u8]>,
}

impl End {
    pub(super) fn new(secrets: &[u8]) -> End {
        End {
            secrets: secrets.into(),
        }
    }
}

impl<In: Transport> Connector<In> for End {
    type Out = Finished<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        Call::with(|state| state.connecting = state.connecting.saturating_sub(1));
        let secrets = Arc::clone(&self.secrets);
        Ok(chained.map(|inner| Finished { inner, secrets }))
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").finish_non_exhaustive()
    }
}

/// A connection as ureq has it: TLS and proxies are below.
pub(super) struct Finished<In> {
    inner: In,
    secrets: Arc<[u8]>,
}

impl<In: Transport> Finished<In> {
    /// Puts the secret headers behind the request line. The first output of a call is its head.
    fn complete(&mut self, amount: usize) -> io::Result<usize> {
        let first = Call::with(|state| {
            state.connecting == 0 && !std::mem::replace(&mut state.completed, true)
        });
        if !first || self.secrets.is_empty() {
            return Ok(amount);
        }
        let output = self.inner.buffers().output();
        let line_end = output[..amount].windows(2).position(|two| two == b"\r\n");
        let (Some(at), total) = (line_end.map(|at| at + 2), amount + self.secrets.len()) else {
            return Err(io::Error::other("the request has no first line"));
        };
        if total > output.len() {
            return Err(io::Error::other("the headers are too long"));
        }
        output.copy_within(at..amount, at + self.secrets.len());
        output[at..at + self.secrets.len()].copy_from_slice(&self.secrets);
        Ok(total)
    }
}

impl<In: Transport> Transport for Finished<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let amount = self.complete(amount)?;
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout).map_err(|e| match e {
            // ureq takes these for the end of a body without a length: a cut archive for a whole one.
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

impl<In: fmt::Debug> fmt::Debug for Finished<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
