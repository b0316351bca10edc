//! Sockets for ureq that keep the deadlines of the current call and record its progress.
//!
//! ureq's own total timeout starts a resolver thread per request, and its errors do not say whether a
//! byte was sent.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport};

use super::stream::Stream;
use crate::cancel::{Cancel, CancelGuard};
use crate::os::{self, Waiting};

/// Interval at which a blocked call checks its deadline and its cancellation.
const TICK: Duration = Duration::from_secs(1);

/// A server that closes connections after a response without announcing it does so within this time.
const CLOSES_WITHIN: Duration = Duration::from_millis(10);

/// Time limits of one attempt.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CallOptions {
    /// For making a connection: name resolution, TCP, proxy and TLS together.
    pub(super) connect: Duration,
    /// When the connection must be made at the latest.
    pub(super) connect_by: Option<Instant>,
    /// Without progress in either direction.
    pub(super) stall: Duration,
    /// For the whole call. Transfers may have none.
    pub(super) deadline: Option<Instant>,
    /// The request must not be sent again once it may have been received.
    pub(super) once: bool,
}

impl CallOptions {
    fn left(&self, limit: Duration) -> Duration {
        let until_end = |at: Instant| at.saturating_duration_since(Instant::now());
        limit.min(self.deadline.map_or(Duration::MAX, until_end))
    }
}

/// The progress of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Progress {
    #[default]
    NotConnected,
    /// Connected, but the request was certainly not received completely.
    NotReceived,
    /// The request may have been received.
    Sent,
}

thread_local! {
    /// The call of this thread. ureq uses its sockets on the caller's thread.
    static CALL: RefCell<CallState> = RefCell::default();
}

#[derive(Default)]
pub(super) struct CallState {
    options: CallOptions,
    cancel: Option<Cancel>,
    id: u64,
    /// Header lines of this request that may be secret.
    pub(super) headers: Arc<[u8]>,
    /// The secret headers were added to the head of the request.
    pub(super) head_completed: bool,
    /// The peer does not read the rest of the request.
    peer_stopped_reading: bool,
    /// When the last byte of the request was sent. The head of the response must arrive within the time of
    /// a stall after that, however many bytes of it arrive.
    head_due_since: Option<Instant>,
    progress: Progress,
    /// Nesting depth of making a connection, including those to a proxy and TLS.
    pub(super) connecting: u32,
    pub(super) connect_end: Option<Instant>,
    /// Address of the peer, for error messages.
    pub(super) peer: String,
    cancel_guard: Option<CancelGuard>,
}

impl CallState {
    /// Returns the deadline of making the connection.
    pub(super) fn connect_end(&mut self) -> Instant {
        let end = Instant::now() + self.options.left(self.options.connect);
        let end = self.options.connect_by.map_or(end, |by| by.min(end));
        *self.connect_end.get_or_insert(end)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }
}

/// The scope of a call on this thread. Scopes nest, because an upload may read from a download.
pub(super) struct CallScope {
    outer: CallState,
}

impl CallScope {
    pub(super) fn enter(options: CallOptions, cancel: Option<&Cancel>) -> CallScope {
        // Unique in the process, because sockets move between threads.
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let state = CallState {
            options,
            cancel: cancel.cloned(),
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            ..CallState::default()
        };
        CallScope {
            outer: CALL.replace(state),
        }
    }

    /// Returns how far the request got, and the peer's address.
    pub(super) fn progress(&self) -> (Progress, String) {
        CALL.with_borrow(|state| (state.progress, state.peer.clone()))
    }

    pub(super) fn is_cancelled(&self) -> bool {
        CALL.with_borrow(CallState::is_cancelled)
    }

    /// Returns true if the peer does not read the rest of the request.
    pub(super) fn peer_stopped_reading() -> bool {
        CALL.with_borrow(|state| state.peer_stopped_reading)
    }

    pub(super) fn cancel() -> Option<Cancel> {
        CALL.with_borrow(|state| state.cancel.clone())
    }

    /// Gives connectors access to the state of the call.
    pub(super) fn with<T>(change: impl FnOnce(&mut CallState) -> T) -> T {
        CALL.with_borrow_mut(change)
    }
}

impl Drop for CallScope {
    fn drop(&mut self) {
        // Dropped outside of the borrow, because dropping the guard may run code.
        drop(CALL.replace(std::mem::take(&mut self.outer)));
    }
}

pub(super) fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// A connection that keeps the deadlines of this thread's call and records its progress.
pub(super) struct Socket {
    stream: Arc<Stream>,
    buffers: LazyBuffers,
    /// The socket's current read and write timeouts.
    timeouts: [Option<Duration>; 2],
    /// The last call that wrote.
    call_id: u64,
    /// Bytes written in total, and before that call.
    written: u64,
    written_before: u64,
    /// The peer does not read the rest of the request. It may have responded already.
    peer_stopped_reading: bool,
    /// The peer sends plain HTTP, not TLS.
    plain: bool,
    idle_since: Option<Instant>,
    /// The server keeps connections open after a response. All sockets share this knowledge.
    keep_alive_seen: Arc<AtomicBool>,
}

impl Socket {
    pub(super) fn new(
        stream: Stream,
        buffers: LazyBuffers,
        plain: bool,
        keep_alive_seen: Arc<AtomicBool>,
    ) -> Socket {
        Socket {
            stream: Arc::new(stream),
            buffers,
            timeouts: [None; 2],
            call_id: 0,
            written: 0,
            written_before: 0,
            peer_stopped_reading: false,
            plain,
            idle_since: None,
            keep_alive_seen,
        }
    }

    /// Sets a timeout of at most a tick, after which the caller checks its deadline and cancellation.
    fn set_timeout(&mut self, write: bool, left: Duration) -> io::Result<()> {
        let wanted = Some(left.min(TICK).max(Duration::from_millis(1)));
        if self.timeouts[usize::from(write)] != wanted {
            if write {
                self.stream.set_write_timeout(wanted)?;
            } else {
                self.stream.set_read_timeout(wanted)?;
            }
            self.timeouts[usize::from(write)] = wanted;
        }
        Ok(())
    }

    /// Starts recording a call, at its first write.
    fn start_call(&mut self) {
        CALL.with_borrow_mut(|state| {
            if self.call_id == state.id || state.connecting > 0 {
                return;
            }
            self.call_id = state.id;
            self.written_before = self.written;
            self.peer_stopped_reading = false;
            self.idle_since = None;
            state.progress = Progress::NotReceived;
        });
    }

    /// Lets a cancellation wake this call at once instead of at its next tick.
    fn wake_on_cancel(&self) {
        CALL.with_borrow_mut(|state| {
            if state.cancel_guard.is_some() {
                return;
            }
            // Weak, so that the hook does not keep the socket open.
            let stream: Weak<Stream> = Arc::downgrade(&self.stream);
            let cancel = state.cancel.as_ref();
            state.cancel_guard = cancel.map(|cancel| cancel.on_cancel(move || shut_down(&stream)));
        });
    }

    /// Returns whether the server keeps the connection open, so that an exec is not sent to a closing
    /// one. A server that closes after a response does so at once: this waits for it, once per server.
    fn is_kept_open(&self, idle: Duration) -> bool {
        let once = CALL.with_borrow(|state| state.options.once);
        if once && idle < CLOSES_WITHIN && !self.keep_alive_seen.load(Ordering::Relaxed) {
            let _ = os::poll_readable([Some(self.stream.as_fd())], CLOSES_WITHIN - idle);
        }
        let open = os::peek(self.stream.as_fd()) == Waiting::Nothing;
        if open && (once || idle >= CLOSES_WITHIN) {
            self.keep_alive_seen.store(true, Ordering::Relaxed);
        }
        open
    }

    fn record_written(&mut self, count: usize) {
        self.written += count as u64;
        CALL.with_borrow_mut(|state| {
            if state.connecting == 0 {
                state.progress = Progress::Sent;
            }
        });
    }

    /// Stops writing if the peer has responded without reading on, for example with 413. Bytes below
    /// TLS may be part of the handshake and mean nothing.
    fn check_for_response(&mut self) {
        match os::peek(self.stream.as_fd()) {
            Waiting::End => self.stop_writing(),
            Waiting::Bytes if self.plain => self.stop_writing(),
            _ => {}
        }
    }

    fn stop_writing(&mut self) {
        self.peer_stopped_reading = true;
        CALL.with_borrow_mut(|state| state.peer_stopped_reading = true);
    }

    fn write(&mut self, from: usize, to: usize, left: Duration) -> io::Result<usize> {
        self.set_timeout(true, left)?;
        self.stream.write(&self.buffers.output()[from..to])
    }

    /// Records when the request was sent, unless this is a handshake.
    fn record_sent() {
        CALL.with_borrow_mut(|state| {
            if state.connecting == 0 {
                state.head_due_since = Some(Instant::now());
            }
        });
    }

    /// Records that the peer closed the connection instead of responding.
    fn record_close(&self) {
        CALL.with_borrow_mut(|state| {
            if state.progress == Progress::Sent && self.closed_before_request() {
                state.progress = Progress::NotReceived;
            }
        });
    }

    fn record_reset(&self, error: &io::Error) {
        if self.stream.was_not_read(error) {
            CALL.with_borrow_mut(|state| state.progress = Progress::NotReceived);
        }
    }

    /// Returns true if the peer cannot have received the request: it closed an idle connection, and its
    /// kernel never acknowledged a byte of the request.
    fn closed_before_request(&self) -> bool {
        // The opening SYN counts as one byte.
        os::tcp_bytes_acked(self.stream.as_fd())
            .is_some_and(|acked| acked <= self.written_before + 1)
    }

    /// Returns how long to wait for the next byte, if the last one was transferred at `moved`. `late` is
    /// the message of the timeout.
    fn left(&self, moved: Instant, late: &str) -> io::Result<Duration> {
        CALL.with_borrow(|state| {
            if state.is_cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = match state.connect_end {
                Some(end) if state.connecting > 0 => end.saturating_duration_since(Instant::now()),
                _ => state
                    .options
                    .left(state.options.stall.saturating_sub(moved.elapsed())),
            };
            if left.is_zero() {
                Err(timed_out(late))
            } else {
                Ok(left)
            }
        })
    }
}

fn shut_down(stream: &Weak<Stream>) {
    if let Some(stream) = stream.upgrade() {
        // Fails only if the peer has closed it already.
        let _ = stream.shutdown();
    }
}

/// Returns true for the timeout of a tick. `TimedOut` differs: there the kernel gave up the connection.
fn is_tick(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn is_closed(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
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
        self.start_call();
        self.wake_on_cancel();
        let mut done = 0;
        let mut moved = Instant::now();
        while done < amount && !self.peer_stopped_reading {
            let left = self.left(moved, "the server does not read the request")?;
            match self.write(done, amount, left) {
                Ok(count) => {
                    done += count;
                    moved = Instant::now();
                    self.record_written(count);
                }
                Err(e) if is_tick(&e) => self.check_for_response(),
                // The peer has closed the connection, perhaps after a response.
                Err(e) if is_closed(&e) => self.stop_writing(),
                Err(e) => return Err(e.into()),
            }
        }
        Socket::record_sent();
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.wake_on_cancel();
        let head_due_since = CALL.with_borrow(|state| state.head_due_since);
        let moved = head_due_since.unwrap_or_else(Instant::now);
        loop {
            let left = self.left(moved, "the server does not respond")?;
            self.set_timeout(false, left)?;
            match self.stream.read(self.buffers.input_append_buf()) {
                Ok(0) => {
                    self.record_close();
                    return Ok(false);
                }
                Ok(count) => {
                    self.buffers.input_appended(count);
                    return Ok(true);
                }
                Err(e) if is_tick(&e) => {}
                Err(e) => {
                    self.record_reset(&e);
                    return Err(e.into());
                }
            }
        }
    }

    /// Called before the connection returns to the pool, and before it is used again.
    fn is_open(&mut self) -> bool {
        if self.peer_stopped_reading {
            return false;
        }
        match self.idle_since {
            Some(since) => self.is_kept_open(since.elapsed()),
            None => {
                self.idle_since = Some(Instant::now());
                // A late cancellation must not shut down the socket of another call.
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
            .field("stream", &self.stream)
            .finish()
    }
}
