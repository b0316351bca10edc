//! The sockets below ureq: they know the bounds of the call that this thread makes, and note how
//! far it got. ureq's own total timeout starts a resolver thread per request, and its errors do not
//! say whether a byte was sent.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport};

use crate::cancel::{Cancel, CancelGuard};
use crate::os::{self, Waiting};

/// How often a waiting call looks at its deadline and its cancellation.
const TICK: Duration = Duration::from_secs(1);

/// A server that closes a connection after an answer without saying so has done it by then.
const CLOSES_WITHIN: Duration = Duration::from_millis(10);

/// How long one attempt may take, by phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Making a connection: name resolution, TCP, proxy and TLS together.
    pub(super) connect: Duration,
    /// When a connection must be there, if that is known.
    pub(super) connect_by: Option<Instant>,
    /// Without a byte in either direction.
    pub(super) stall: Duration,
    /// The end of it all; transfers may have none.
    pub(super) deadline: Option<Instant>,
    /// The request can't be sent again once it may have been received.
    pub(super) once: bool,
}

impl Bounds {
    fn left(&self, limit: Duration) -> Duration {
        let until_end = |at: Instant| at.saturating_duration_since(Instant::now());
        limit.min(self.deadline.map_or(Duration::MAX, until_end))
    }
}

/// How far the request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// No connection was made.
    Nowhere,
    /// There was one, and certainly no more than a part of the request was received.
    NotReceived,
    /// It may have been received.
    Sent,
}

thread_local! {
    /// The call that this thread makes. ureq calls its sockets on the thread of the caller.
    static CALL: RefCell<State> = const { RefCell::new(State::idle()) };
}

pub(super) struct State {
    bounds: Bounds,
    cancel: Option<Cancel>,
    number: u64,
    /// Whether the headers that ureq must not see were put into the request.
    pub(super) completed: bool,
    /// Whether the peer takes no more of the request.
    deaf: bool,
    reach: Reach,
    /// Not zero while a connection is being made: to a proxy, through it, and TLS included.
    pub(super) connecting: u32,
    pub(super) connect_end: Option<Instant>,
    /// Where to.
    pub(super) place: String,
    cancel_guard: Option<CancelGuard>,
}

impl State {
    /// When the connection must be there.
    pub(super) fn connect_end(&mut self) -> Instant {
        let end = Instant::now() + self.bounds.left(self.bounds.connect);
        let end = self.bounds.connect_by.map_or(end, |by| by.min(end));
        *self.connect_end.get_or_insert(end)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }

    const fn idle() -> State {
        State {
            bounds: Bounds {
                connect: Duration::ZERO,
                connect_by: None,
                stall: Duration::ZERO,
                deadline: None,
                once: false,
            },
            cancel: None,
            number: 0,
            completed: false,
            deaf: false,
            reach: Reach::Nowhere,
            connecting: 0,
            connect_end: None,
            place: String::new(),
            cancel_guard: None,
        }
    }
}

/// Makes its bounds those of this thread's call, until dropped. Calls nest: what one uploads may be
/// what another downloads.
pub(super) struct Call {
    outer: Option<State>,
}

impl Call {
    pub(super) fn begin(bounds: Bounds, cancel: Option<&Cancel>) -> Call {
        // Unique in the process: a socket goes from thread to thread.
        static LAST: AtomicU64 = AtomicU64::new(0);
        let state = State {
            bounds,
            cancel: cancel.cloned(),
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            ..State::idle()
        };
        Call {
            outer: Some(CALL.replace(state)),
        }
    }

    /// How far it got, and where it went.
    pub(super) fn progress(&self) -> (Reach, String) {
        CALL.with_borrow(|state| (state.reach, state.place.clone()))
    }

    pub(super) fn is_cancelled(&self) -> bool {
        CALL.with_borrow(State::is_cancelled)
    }

    /// Whether the rest of the request goes nowhere: then it need not be read either.
    pub(super) fn is_deaf() -> bool {
        CALL.with_borrow(|state| state.deaf)
    }

    pub(super) fn cancel() -> Option<Cancel> {
        CALL.with_borrow(|state| state.cancel.clone())
    }

    /// For the links of the chain of connectors.
    pub(super) fn with<T>(change: impl FnOnce(&mut State) -> T) -> T {
        CALL.with_borrow_mut(change)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(outer) = self.outer.take() {
            // What this call held on to is let go outside of the borrow.
            drop(CALL.replace(outer));
        }
    }
}

pub(super) fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// A TCP connection that keeps to the bounds of this thread's call, and tells it how far it got.
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    /// What the socket is set to, for reading and writing.
    timeouts: [Option<Duration>; 2],
    /// The call that wrote last.
    call: u64,
    /// Bytes written since the start, and before that call.
    written: u64,
    written_before: u64,
    /// The peer takes no more of the request; it may have answered already.
    deaf: bool,
    /// Whether what the peer sends is HTTP, and not TLS around it.
    plain: bool,
    /// Since when it waits for another request.
    idle_since: Option<Instant>,
    /// Whether the server was seen to keep connections after an answer. Known once for all sockets.
    keeps: Arc<AtomicBool>,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        buffers: LazyBuffers,
        plain: bool,
        keeps: Arc<AtomicBool>,
    ) -> Socket {
        Socket {
            stream: Arc::new(stream),
            buffers,
            timeouts: [None; 2],
            call: 0,
            written: 0,
            written_before: 0,
            deaf: false,
            plain,
            idle_since: None,
            keeps,
        }
    }

    /// Waits at most a tick; then the caller looks at its deadline and its cancellation again.
    fn set_timeout(&mut self, write: bool, left: Duration) -> io::Result<()> {
        let wanted = Some(left.min(TICK).max(Duration::from_millis(1)));
        if self.timeouts[usize::from(write)] != wanted {
            match write {
                true => self.stream.set_write_timeout(wanted)?,
                false => self.stream.set_read_timeout(wanted)?,
            }
            self.timeouts[usize::from(write)] = wanted;
        }
        Ok(())
    }

    fn first_write_of_call(&mut self) {
        CALL.with_borrow_mut(|state| {
            if self.call == state.number || state.connecting > 0 {
                return;
            }
            self.call = state.number;
            self.written_before = self.written;
            self.deaf = false;
            self.idle_since = None;
            state.reach = Reach::NotReceived;
        });
    }

    /// From now on a cancellation wakes this call at once, and not at its next tick.
    fn wake_on_cancel(&self) {
        CALL.with_borrow_mut(|state| {
            if state.cancel_guard.is_some() {
                return;
            }
            // The socket is shared weakly, so that the hook does not keep it open.
            let stream: Weak<TcpStream> = Arc::downgrade(&self.stream);
            state.cancel_guard = state.cancel.as_ref().map(|cancel| {
                cancel.on_cancel(move || {
                    if let Some(stream) = stream.upgrade() {
                        // It is gone already.
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                    }
                })
            });
        });
    }

    /// Whether the server keeps the connection, so that an exec does not run into its end. A server
    /// that closes after its answer shows that within moments; this waits for them, once per server.
    fn is_kept(&self, idle: Duration) -> bool {
        let once = CALL.with_borrow(|state| state.bounds.once);
        if once && idle < CLOSES_WITHIN && !self.keeps.load(Ordering::Relaxed) {
            let _ = os::poll_readable([Some(self.stream.as_fd())], CLOSES_WITHIN - idle);
        }
        let open = os::peek(self.stream.as_fd()) == Waiting::Nothing;
        if open && (once || idle >= CLOSES_WITHIN) {
            self.keeps.store(true, Ordering::Relaxed);
        }
        open
    }

    fn stop_writing(&mut self) {
        self.deaf = true;
        CALL.with_borrow_mut(|state| state.deaf = true);
    }

    fn write(&mut self, from: usize, to: usize, left: Duration) -> io::Result<usize> {
        self.set_timeout(true, left)?;
        let mut stream = &*self.stream;
        stream.write(&self.buffers.output()[from..to])
    }

    /// Whether the peer can't have received the whole request: then it has not begun with it.
    ///
    /// It closed the connection in good order, while idle as far as it knew, and its kernel never
    /// confirmed any byte of the request.
    fn closed_before_request(&self) -> bool {
        // The opening SYN counts as one byte.
        os::tcp_bytes_acked(self.stream.as_fd())
            .is_some_and(|acked| acked <= self.written_before + 1)
    }

    /// How long to wait for the next byte, the last of which moved at `moved`.
    fn left(&self, moved: Instant, late: &str) -> io::Result<Duration> {
        CALL.with_borrow(|state| {
            if state.is_cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = match state.connect_end {
                Some(end) if state.connecting > 0 => end.saturating_duration_since(Instant::now()),
                _ => state
                    .bounds
                    .left(state.bounds.stall.saturating_sub(moved.elapsed())),
            };
            if left.is_zero() {
                Err(timed_out(late))
            } else {
                Ok(left)
            }
        })
    }
}

/// The socket's own time-out, a tick. `TimedOut` is another thing: the kernel has given the
/// connection up.
fn is_tick(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        _: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        self.first_write_of_call();
        self.wake_on_cancel();
        let mut done = 0;
        let mut moved = Instant::now();
        while done < amount && !self.deaf {
            let left = self.left(moved, "the server takes no data")?;
            match self.write(done, amount, left) {
                Ok(count) => {
                    done += count;
                    self.written += count as u64;
                    CALL.with_borrow_mut(|state| {
                        if state.connecting == 0 {
                            state.reach = Reach::Sent;
                        }
                    });
                    moved = Instant::now();
                }
                // It may have answered without reading on, say with 413. Below TLS, what waits may
                // as well be a part of the handshake.
                Err(e) if is_tick(&e) => match os::peek(self.stream.as_fd()) {
                    Waiting::End => self.stop_writing(),
                    Waiting::Bytes if self.plain => self.stop_writing(),
                    _ => {}
                },
                // It has closed; what it said before can still be read.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    self.stop_writing();
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.wake_on_cancel();
        let moved = Instant::now();
        loop {
            let left = self.left(moved, "the server sends no data")?;
            self.set_timeout(false, left)?;
            let mut stream = &*self.stream;
            match stream.read(self.buffers.input_append_buf()) {
                Ok(0) => {
                    CALL.with_borrow_mut(|state| {
                        if state.reach == Reach::Sent && self.closed_before_request() {
                            state.reach = Reach::NotReceived;
                        }
                    });
                    return Ok(false);
                }
                Ok(count) => {
                    self.buffers.input_appended(count);
                    return Ok(true);
                }
                Err(e) if is_tick(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Asked twice: before the connection goes back to the pool, and before it is used again.
    fn is_open(&mut self) -> bool {
        if self.deaf {
            return false;
        }
        match self.idle_since {
            Some(since) => self.is_kept(since.elapsed()),
            None => {
                self.idle_since = Some(Instant::now());
                // A cancellation that comes late must not end what another call does with it.
                let (guard, cancelled) =
                    CALL.with_borrow_mut(|state| (state.cancel_guard.take(), state.is_cancelled()));
                drop(guard);
                !cancelled && os::peek(self.stream.as_fd()) == Waiting::Nothing
            }
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("peer", &self.stream.peer_addr().ok())
            .finish()
    }
}
