//! Archives between the network and a blocking backend.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, timeout};

use super::budget::{Budget, Reservation, Reserved, Shortage};
use super::event_body::EventBody;
use super::pace::Pace;
use super::turn::CallGuard;

/// Number of pieces of an archive that are buffered.
pub(super) const BUFFERED_PIECES: usize = 4;

/// Size of a piece of a download, in bytes.
const PIECE_SIZE: usize = 64 * 1024;

/// Maximum time for receiving a JSON body.
const JSON_TIMEOUT: Duration = Duration::from_secs(60);

/// First size of the buffer of a JSON body, in bytes.
const FIRST_BUFFER: usize = 8 * 1024;

/// Interval of the checks of an archive whose client does not read.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum time for reading the body of a refused request.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A piece of an archive in transfer. An archive without `End` is truncated.
pub(super) enum Piece {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// The body of a response.
pub(super) struct ReplyBody {
    content: Content,
    error: Option<io::Error>,
    _guard: CallGuard,
}

pub(super) enum Content {
    Whole(Bytes),
    Archive(
        Receiver<Piece>,
        #[expect(dead_code, reason = "released with it")] Reservation,
    ),
    Events(EventBody),
}

impl ReplyBody {
    pub(super) fn new(content: Content, guard: CallGuard) -> ReplyBody {
        if let Content::Events(_) = content {
            guard.may_take_long();
        }
        ReplyBody {
            content,
            error: None,
            _guard: guard,
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(e) = self.error.take() {
            return Poll::Ready(Some(Err(e)));
        }
        let pieces = match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Whole(bytes) => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            Content::Archive(pieces, _) => pieces,
            Content::Events(events) => {
                return events
                    .poll_event(cx)
                    .map(|event| event.map(|bytes| Ok(Frame::data(bytes))));
            }
        };
        let error = match pieces.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Piece::Data(bytes))) => {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Poll::Ready(Some(Piece::End)) => return Poll::Ready(None),
            Poll::Ready(Some(Piece::Failed(e))) => e,
            Poll::Ready(None) => io::ErrorKind::UnexpectedEof.into(),
        };
        // Flush the pieces before it first: hyper drops unsent data on an error.
        self.error = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Archive(..) => false,
            Content::Events(events) => events.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Archive(..) | Content::Events(_) => SizeHint::default(),
        }
    }
}

/// Sends an archive. Blocks.
pub(super) fn send_archive(mut archive: Box<dyn Read + Send>, pieces: &Sender<Piece>) {
    loop {
        let mut buffer = vec![0; PIECE_SIZE];
        let piece = match archive.read(&mut buffer) {
            Ok(0) => Piece::End,
            Ok(count) => {
                buffer.truncate(count);
                Piece::Data(buffer.into())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Piece::Failed(e),
        };
        let is_last = !matches!(piece, Piece::Data(_));
        if !send(piece, pieces, &mut *archive) || is_last {
            return;
        }
    }
}

/// Sends a piece once there is room. Returns false if the client has disconnected, or if the archive ends
/// while the client keeps the call waiting.
fn send(piece: Piece, pieces: &Sender<Piece>, archive: &mut dyn Read) -> bool {
    let runtime = Handle::current();
    loop {
        let room = async { timeout(CHECK_INTERVAL, pieces.reserve()).await };
        match runtime.block_on(room) {
            Ok(Ok(room)) => {
                room.send(piece);
                return true;
            }
            Ok(Err(_)) => return false,
            // Reads nothing, but fails if the sandbox is gone.
            Err(_) if archive.read(&mut []).is_err() => return false,
            Err(_) => {}
        }
    }
}

/// Lets a backend read an upload. Blocks.
pub(super) struct UploadReader {
    pieces: Receiver<Piece>,
    rest: Bytes,
    ended: bool,
}

impl UploadReader {
    pub(super) fn new(pieces: Receiver<Piece>) -> UploadReader {
        UploadReader {
            pieces,
            rest: Bytes::new(),
            ended: false,
        }
    }

    /// Reads what the backend has left unread. Fails if the body is incomplete.
    pub(super) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }
}

impl Read for UploadReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(e)) => return Err(e),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buf.len().min(self.rest.len());
        buf[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// The end of the body of a request.
#[derive(Debug, PartialEq)]
pub(super) enum BodyEnd {
    Complete,
    /// The backend stopped reading.
    NotRead,
    TooLarge,
    NoMemory(Shortage),
    Stalled,
    /// Cut off, or with invalid framing.
    Broken,
}

impl From<Shortage> for BodyEnd {
    fn from(shortage: Shortage) -> BodyEnd {
        BodyEnd::NoMemory(shortage)
    }
}

impl BodyEnd {
    /// Returns true if the rest of the body can still be read.
    pub(super) fn leaves_rest(&self) -> bool {
        matches!(self, BodyEnd::TooLarge | BodyEnd::NoMemory(_))
    }
}

/// Forwards the body of a request piece by piece, at most `max` bytes.
pub(super) async fn receive(
    body: &mut Incoming,
    pieces: &Sender<Piece>,
    idle: Duration,
    max: u64,
) -> BodyEnd {
    let mut total = 0_u64;
    let mut pace = Pace::new(idle);
    loop {
        let waiting = Instant::now();
        let received = timeout(pace.left(), next_piece(body)).await;
        let (piece, end) = match received {
            Err(_) => (
                Piece::Failed(io::ErrorKind::TimedOut.into()),
                BodyEnd::Stalled,
            ),
            Ok(None) => (Piece::End, BodyEnd::Complete),
            Ok(Some(Err(e))) => (Piece::Failed(io::Error::other(e)), BodyEnd::Broken),
            Ok(Some(Ok(bytes))) if total + bytes.len() as u64 <= max => {
                total += bytes.len() as u64;
                pace.moved(bytes.len(), waiting.elapsed());
                match pieces.send(Piece::Data(bytes)).await {
                    Ok(()) => continue,
                    Err(_) => return BodyEnd::NotRead,
                }
            }
            Ok(Some(Ok(_))) => {
                let error = io::Error::from(io::ErrorKind::FileTooLarge);
                (Piece::Failed(error), BodyEnd::TooLarge)
            }
        };
        // Fails only if the backend stopped reading, which it reports itself.
        let _ = pieces.send(piece).await;
        return end;
    }
}

/// Receives a small body, at most `max` bytes, after reserving memory for it.
pub(super) async fn receive_whole(
    body: &mut Incoming,
    idle: Duration,
    max: usize,
    budget: &Budget,
) -> Result<Reserved, BodyEnd> {
    let mut whole = Reserved {
        bytes: Vec::new(),
        memory: budget.reserve(0)?,
    };
    let end = Instant::now() + JSON_TIMEOUT;
    let mut pace = Pace::new(idle);
    loop {
        let waiting = Instant::now();
        let time = pace.left().min(end - waiting);
        match timeout(time, next_piece(body)).await {
            Err(_) => return Err(BodyEnd::Stalled),
            Ok(None) => return Ok(whole),
            Ok(Some(Err(_))) => return Err(BodyEnd::Broken),
            Ok(Some(Ok(bytes))) => {
                pace.moved(bytes.len(), waiting.elapsed());
                extend(&mut whole, &bytes, max)?;
            }
        }
    }
}

/// Appends to a body. Growing reserves the new buffer beside the old one.
fn extend(whole: &mut Reserved, bytes: &[u8], max: usize) -> Result<(), BodyEnd> {
    let length = whole.bytes.len() + bytes.len();
    if length > max {
        return Err(BodyEnd::TooLarge);
    }
    let capacity = whole.bytes.capacity();
    if length > capacity {
        let larger = length
            .next_power_of_two()
            .clamp(FIRST_BUFFER, max.max(FIRST_BUFFER));
        whole.memory.grow_to((capacity + larger) as u64)?;
        whole.bytes.reserve_exact(larger - whole.bytes.len());
        whole.memory.shrink_to(larger as u64);
    }
    whole.bytes.extend_from_slice(bytes);
    Ok(())
}

/// Reads the body of a refused request in the background. A client that is still sending when its
/// connection is closed may never see the response.
pub(super) fn drain(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let all = async { while let Some(Ok(_)) = next_piece(&mut body).await {} };
        let _ = timeout(DRAIN_TIMEOUT, all).await;
    });
}

/// Returns the next piece of data. Skips trailers.
async fn next_piece(body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        match frame?.map(Frame::into_data) {
            Ok(Ok(bytes)) => return Some(Ok(bytes)),
            Ok(Err(_)) => {}
            Err(e) => return Some(Err(e)),
        }
    }
}
