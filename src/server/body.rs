//! Archives between the network and a blocking backend.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::timeout;

use super::connection::Answering;

/// How many pieces of an archive wait for the other side.
pub(super) const AHEAD: usize = 4;

/// How much of an archive is one piece, where it is ours to choose.
const PIECE: usize = 64 * 1024;

/// How long a body that nobody wants is read, for the client to come to its answer.
const DRAIN: Duration = Duration::from_secs(30);

/// A part of an archive on its way. Without its end, it is cut off.
pub(super) enum Part {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// The body of an answer.
pub(super) struct AnswerBody {
    content: Content,
    failed: Option<io::Error>,
    _answering: Answering,
}

pub(super) enum Content {
    Whole(Bytes),
    Archive(Receiver<Part>),
}

impl AnswerBody {
    pub(super) fn new(content: Content, answering: Answering) -> AnswerBody {
        AnswerBody {
            content,
            failed: None,
            _answering: answering,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(e) = self.failed.take() {
            return Poll::Ready(Some(Err(e)));
        }
        let parts = match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Whole(bytes) => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            Content::Archive(parts) => parts,
        };
        let error = match parts.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Part::Data(bytes))) => {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Poll::Ready(Some(Part::End)) => return Poll::Ready(None),
            Poll::Ready(Some(Part::Failed(e))) => e,
            Poll::Ready(None) => io::ErrorKind::UnexpectedEof.into(),
        };
        // What came before it is sent first: an error drops what is not.
        self.failed = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Archive(_) => SizeHint::default(),
        }
    }
}

/// Reads an archive to its end and hands it on. To be called where it may block.
pub(super) fn send_archive(mut archive: Box<dyn Read + Send>, parts: &Sender<Part>) {
    loop {
        let mut piece = vec![0; PIECE];
        let part = match archive.read(&mut piece) {
            Ok(0) => Part::End,
            Ok(got) => {
                piece.truncate(got);
                Part::Data(piece.into())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Part::Failed(e),
        };
        let goes_on = matches!(part, Part::Data(_));
        // An error: the client is gone.
        if parts.blocking_send(part).is_err() || !goes_on {
            return;
        }
    }
}

/// An upload, for a backend to read. To be read where it may block.
pub(super) struct UploadReader {
    parts: Receiver<Part>,
    rest: Bytes,
    ended: bool,
}

impl UploadReader {
    pub(super) fn new(parts: Receiver<Part>) -> UploadReader {
        UploadReader {
            parts,
            rest: Bytes::new(),
            ended: false,
        }
    }

    /// Reads what the backend had no need of. An error where the body was not whole.
    pub(super) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }
}

impl Read for UploadReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.parts.blocking_recv() {
                Some(Part::Data(bytes)) => self.rest = bytes,
                Some(Part::End) => self.ended = true,
                Some(Part::Failed(e)) => return Err(e),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buf.len().min(self.rest.len());
        buf[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// How the body of a request ended.
#[derive(Debug, PartialEq)]
pub(super) enum Ended {
    Whole,
    /// Nobody reads it any more.
    Unwanted,
    TooLarge,
    Stalled,
    /// Cut off, or not what its framing says.
    Broken,
}

/// Hands a request's body on, piece by piece. `most` is how many bytes it may have.
pub(super) async fn receive(
    body: &mut Incoming,
    parts: &Sender<Part>,
    idle: Duration,
    most: u64,
) -> Ended {
    let mut total = 0_u64;
    loop {
        let (part, ended) = match timeout(idle, next_piece(body)).await {
            Err(_) => (Part::Failed(io::ErrorKind::TimedOut.into()), Ended::Stalled),
            Ok(None) => (Part::End, Ended::Whole),
            Ok(Some(Err(e))) => (Part::Failed(io::Error::other(e)), Ended::Broken),
            Ok(Some(Ok(bytes))) => {
                total += bytes.len() as u64;
                if total <= most {
                    if parts.send(Part::Data(bytes)).await.is_err() {
                        return Ended::Unwanted;
                    }
                    continue;
                }
                let error = io::Error::from(io::ErrorKind::FileTooLarge);
                (Part::Failed(error), Ended::TooLarge)
            }
        };
        // Where nobody reads it, the one who does not knows why.
        let _ = parts.send(part).await;
        return ended;
    }
}

/// All of a small body.
pub(super) async fn receive_whole(
    body: &mut Incoming,
    idle: Duration,
    most: usize,
) -> Result<Vec<u8>, Ended> {
    let mut whole = Vec::new();
    loop {
        match timeout(idle, next_piece(body)).await {
            Err(_) => return Err(Ended::Stalled),
            Ok(None) => return Ok(whole),
            Ok(Some(Err(_))) => return Err(Ended::Broken),
            Ok(Some(Ok(bytes))) if whole.len() + bytes.len() > most => {
                return Err(Ended::TooLarge);
            }
            Ok(Some(Ok(bytes))) => whole.extend_from_slice(&bytes),
        }
    }
}

/// Reads what nobody wants, beside the answer: a client that is still sending when its connection
/// is closed may never see what it was answered.
pub(super) fn drain(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let all = async { while let Some(Ok(_)) = next_piece(&mut body).await {} };
        let _ = timeout(DRAIN, all).await;
    });
}

/// Trailers are skipped.
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
