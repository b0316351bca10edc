//! One connection: whose turn it is, and for how long.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::call::Service;

/// How long a connection may have no request.
const IDLE: Duration = Duration::from_secs(60);

/// From the first byte of a head to its end.
const HEAD: Duration = Duration::from_secs(10);

/// The largest head, and as much of a body as is read ahead.
const MAX_HEAD: usize = 64 * 1024;

/// Whose turn it is.
#[derive(Clone, Copy)]
enum Turn {
    /// The client's, since then; it has sent nothing of its next request.
    Idle(Instant),
    /// The client's, since its first byte.
    Head(Instant),
    /// The server's. Bodies have deadlines of their own.
    Call,
}

/// Known to the connection and to what is answered on it.
#[derive(Clone)]
struct Turns(Arc<Mutex<Turn>>);

impl Turns {
    fn set(&self, turn: Turn) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = turn;
    }

    fn get(&self) -> Turn {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer is under way; the next request may come when this is dropped.
pub(super) struct Answering(Turns);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.set(Turn::Idle(Instant::now()));
    }
}

/// Until it is closed, or the server is stopped and its call is answered.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Arc<Service>,
    mut stopped: watch::Receiver<bool>,
) {
    let turns = Turns(Arc::new(Mutex::new(Turn::Idle(Instant::now()))));
    let timed = Timed {
        stream,
        turns: turns.clone(),
        read_end: Alarm::default(),
        write_end: None,
        write_wait: service.body_idle,
    };
    let answer = service_fn(move |request| {
        turns.set(Turn::Call);
        let answering = Answering(turns.clone());
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request, answering).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(timed), answer);
    let mut connection = pin!(connection);
    let mut stop = pin!(stopped.wait_for(|stopped| *stopped));
    let mut stopping = false;
    poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        // Whatever was wrong with it, the client knows, or is gone.
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

/// A stream that fails when it is the client's turn for too long.
struct Timed<S> {
    stream: S,
    turns: Turns,
    read_end: Alarm,
    write_end: Option<Pin<Box<Sleep>>>,
    write_wait: Duration,
}

/// A clock that is set again for every request, and so seldom really is.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom it wakes.
    waker: Option<Waker>,
}

impl Alarm {
    /// Ready at that time.
    fn poll(&mut self, end: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        let known = self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        // One that rings too early is set again then.
        if known && sleep.deadline() <= end && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        if sleep.deadline() > end || (sleep.is_elapsed() && sleep.deadline() < end) {
            sleep.as_mut().reset(end);
        }
        self.waker = Some(cx.waker().clone());
        sleep.as_mut().poll(cx)
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if let (Turn::Idle(_), true) = (this.turns.get(), read.is_ok()) {
                this.turns.set(Turn::Head(Instant::now()));
            }
            return Poll::Ready(read);
        }
        let end = match this.turns.get() {
            Turn::Idle(since) => since + IDLE,
            Turn::Head(since) => since + HEAD,
            Turn::Call => return Poll::Pending,
        };
        ready!(this.read_end.poll(end, cx));
        Poll::Ready(Err(timed_out()))
    }
}

impl<S: AsyncWrite + Unpin> Timed<S> {
    /// An error if it has been pending for too long.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.write_end = None;
            return poll;
        }
        let wait = self.write_wait;
        let sleep = self
            .write_end
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(timed_out()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
