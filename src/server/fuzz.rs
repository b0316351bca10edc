//! Fuzz target for requests.

use std::future::Future;
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection;
use super::running::Server;
use crate::backend::Backend;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::fuzz::input::Input;
use crate::os::random::temporary_name;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

const TOKEN: &str = "s3cret";
const MAX_CALLS: usize = 32;

/// A request that succeeds, and ends its connection.
const HEALTHY: &[u8] = b"POST /v1/sandboxes/a/exec HTTP/1.1\r\nHost: localhost\r\n\
    Authorization: Bearer s3cret\r\nContent-Type: application/json\r\nConnection: close\r\n\
    Content-Length: 16\r\n\r\n{\"cmd\":[\"true\"]}";

/// Time without progress after which a server is taken to wait: for the client, or for a call if one runs.
const QUIET: Duration = Duration::from_micros(100);
const BUSY: Duration = Duration::from_millis(5);
/// Maximum time of a connection whose client has left, and of a healthy request.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends any bytes to a server. Its responses are valid, nothing is done without a token, and the server
/// answers the next client. The first byte chooses the server, the second one the size of the pieces.
///
/// # Panics
///
/// If one of these properties does not hold.
pub fn requests(data: &[u8]) {
    static SERVERS: OnceLock<[Target; 2]> = OnceLock::new();
    let mut input = Input(data);
    let with_token = usize::from(input.byte() % 2);
    let piece = usize::from(input.byte()) + 1;
    let target = &SERVERS.get_or_init(|| [false, true].map(Target::new))[with_token];

    let calls = target.calls.load(Ordering::SeqCst);
    let responses = target.converse(input.0, piece, false);
    check_responses(&responses, input.0);
    target.settle();
    let has_token = with_token == 0 || contains(input.0, TOKEN.as_bytes());
    let new_calls = target.calls.load(Ordering::SeqCst) - calls;
    assert!(
        has_token || new_calls == 0,
        "{new_calls} calls without a token"
    );

    let healthy = target.converse(HEALTHY, usize::MAX, true);
    let shown = String::from_utf8_lossy(&healthy);
    assert!(shown.starts_with("HTTP/1.1 200 OK\r\n"), "{shown}");
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// A server, which needs no listener.
struct Target {
    server: Server,
    /// The number of calls that have reached the backend.
    calls: Arc<AtomicUsize>,
}

impl Target {
    fn new(with_token: bool) -> Target {
        let calls = Arc::new(AtomicUsize::new(0));
        let backend = Counted(Arc::clone(&calls));
        let socket = std::env::temp_dir().join(temporary_name());
        let builder = Server::builder(backend).unix(&socket).max_calls(MAX_CALLS);
        let builder = if with_token {
            builder.token(TOKEN)
        } else {
            builder.no_auth()
        };
        let server = builder.max_upload(64 * 1024).bind();
        let server = server.expect("the temporary directory is writable");
        let removed = std::fs::remove_file(socket);
        removed.expect("the socket exists");
        Target { server, calls }
    }

    /// Waits for the calls of clients that have left.
    fn settle(&self) {
        let end = Instant::now() + PATIENCE;
        while self.server.service.calls.available_permits() < MAX_CALLS {
            assert!(Instant::now() < end, "a call does not end");
            std::thread::sleep(QUIET);
        }
    }

    /// Sends bytes on a new connection, and returns the responses. The client leaves once the server waits
    /// for more, unless it is `patient`.
    fn converse(&self, input: &[u8], piece: usize, patient: bool) -> Vec<u8> {
        let server = &self.server;
        let _entered = server.runtime.enter();
        let tape = Tape::new(input, piece);
        let (visitor, eviction) = server.admission.admit(None).expect("there is room");
        let service = Arc::clone(&server.service);
        let calls = Arc::clone(&service.calls);
        let stopped = server.stop.subscribe();
        let serving =
            connection::serve(tape.clone(), service, Arc::new(visitor), eviction, stopped);
        let mut serving = pin!(serving);

        let signal = Arc::new(Signal::new());
        let waker = Waker::from(Arc::clone(&signal));
        let mut has_left = false;
        while serving
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            let time = match calls.available_permits() {
                _ if has_left || patient => PATIENCE,
                MAX_CALLS => QUIET,
                _ => BUSY,
            };
            if !signal.wait(time) {
                assert!(!has_left && !patient, "the connection does not end");
                tape.end();
                has_left = true;
            }
        }
        std::mem::take(&mut tape.lock().output)
    }
}

/// Wakes the thread that polls a connection.
struct Signal {
    thread: Thread,
    woken: AtomicBool,
}

impl Signal {
    fn new() -> Signal {
        Signal {
            thread: std::thread::current(),
            woken: AtomicBool::new(false),
        }
    }

    /// Returns false if nothing has happened within a time.
    fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if self.woken.swap(false, Ordering::SeqCst) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::park_timeout(left);
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// The server's end of a connection, in memory.
#[derive(Clone)]
struct Tape(Arc<Mutex<TapeState>>);

struct TapeState {
    input: Vec<u8>,
    piece: usize,
    has_ended: bool,
    reader: Option<Waker>,
    output: Vec<u8>,
}

impl Tape {
    fn new(input: &[u8], piece: usize) -> Tape {
        Tape(Arc::new(Mutex::new(TapeState {
            input: input.to_vec(),
            piece,
            has_ended: false,
            reader: None,
            output: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, TapeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncRead for Tape {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.input.is_empty() && !state.has_ended {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = state.piece.min(buf.remaining()).min(state.input.len());
        buf.put_slice(&state.input[..count]);
        state.input.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tape {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A backend that counts its calls.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counts a call. The sandbox `missing` does not exist.
    fn call(&self, id: &SessionId) -> Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        match id.as_str() {
            "missing" => {
                let error = Error::new(ErrorKind::NotFound, "no such sandbox");
                Err(error.with_sandbox_gone(true))
            }
            _ => Ok(()),
        }
    }
}

impl Backend for Counted {
    fn health(&self) -> Result<()> {
        Ok(())
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        self.call(id)?;
        let ignored = spec.get_image().map(str::to_owned);
        let info = SandboxInfo::new(id.as_str(), "2026-01-02T12:34:56Z");
        Ok(info.with_ignored(ignored.into_iter().collect()))
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.call(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        self.call(id)?;
        assert!(command.get_workdir().starts_with('/') && !command.get_args().is_empty());
        let stdout = command.get_args().join("\n");
        Ok(Output::new(3, stdout, b"\xff", Duration::from_millis(1)))
    }

    fn upload(&self, id: &SessionId, dest: &str, mut archive: Upload<'_>) -> Result<()> {
        self.call(id)?;
        assert!(dest.starts_with('/'), "{dest:?}");
        let mut start = [0; 100];
        let read = archive.read(&mut start);
        read.map(drop).map_err(|e| Error::io("cannot read", e))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        self.call(id)?;
        assert!(src.starts_with('/'), "{src:?}");
        Ok(Box::new(io::Cursor::new(vec![7; src.len() * 100])))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.call(id)?;
        Ok(id.as_str() != "gone")
    }
}

/// Checks that responses are HTTP. The last one may be incomplete.
fn check_responses(mut responses: &[u8], requests: &[u8]) {
    // These responses have no bodies, whatever their heads say.
    let has_head_request = contains(requests, b"HEAD");
    while !responses.is_empty() {
        let Some(end) = responses.windows(4).position(|end| end == b"\r\n\r\n") else {
            return;
        };
        let head = std::str::from_utf8(&responses[..end]).expect("the head is text");
        let status = check_head(head);
        responses = &responses[end + 4..];
        if has_head_request {
            return;
        }
        let body = match status {
            100..200 | 204 | 304 => Some(0),
            _ if header(head, "transfer-encoding") == Some("chunked") => chunked_length(responses),
            _ => {
                let length = header(head, "content-length").expect("the length is known");
                Some(length.parse().expect("the length is a number"))
            }
        };
        let Some(rest) = body.and_then(|length| responses.get(length..)) else {
            return;
        };
        responses = rest;
    }
}

/// Returns the status of a head.
fn check_head(head: &str) -> u16 {
    const STATUSES: [u16; 17] = [
        100, 200, 204, 400, 401, 403, 404, 405, 408, 413, 414, 415, 429, 431, 501, 503, 505,
    ];
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| first.strip_prefix("HTTP/1.0 "));
    let status = status.and_then(|status| status.get(..3)?.parse().ok());
    let status = status.expect("there is a status");
    assert!(STATUSES.contains(&status), "{head}");
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header has a name");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
            "{line}"
        );
        assert!(value.bytes().all(|b| (b' '..0x7f).contains(&b)), "{line}");
    }
    status
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.split("\r\n").filter_map(|line| line.split_once(": "));
    headers
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Returns the length of a chunked body, or `None` if it is incomplete.
fn chunked_length(body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = body[at..].windows(2).position(|end| end == b"\r\n")?;
        let size = std::str::from_utf8(&body[at..at + line]).expect("a size is text");
        let size = usize::from_str_radix(size, 16).expect("a size is a number");
        at += line + 2 + size;
        let end = body.get(at..at + 2)?;
        assert_eq!(end, b"\r\n");
        at += 2;
        if size == 0 {
            return Some(at);
        }
    }
}
