//! Connections and their deadlines.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::service::Service;
use super::turn::{SharedTurn, Turn};

/// Maximum time without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum time from the first byte of a head to its end.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a head, and of the part of a body that is read ahead.
const MAX_HEAD: usize = 64 * 1024;

/// Serves a connection until the client closes it or the server shuts down.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Arc<Service>,
    mut stopped: watch::Receiver<bool>,
) {
    let turn = SharedTurn::idle();
    let stream = DeadlineStream {
        stream,
        turn: turn.clone(),
        read_alarm: Alarm::default(),
        write_deadline: None,
        write_timeout: service.body_idle,
    };
    let respond = service_fn(move |request| {
        let guard = turn.start_call();
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.respond(request, guard).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), respond);
    let mut connection = pin!(connection);
    let mut stop = pin!(stopped.wait_for(|stopped| *stopped));
    let mut stopping = false;
    poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        // An error concerns only this client, which has been told or has disconnected.
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

/// A stream that fails if the client takes too long.
struct DeadlineStream<S> {
    stream: S,
    turn: SharedTurn,
    read_alarm: Alarm,
    write_deadline: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
}

/// A timer that is set for every request. It avoids most resets: an earlier timer stays, and is set again
/// when it fires.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// The task that the timer wakes.
    waker: Option<Waker>,
}

impl Alarm {
    /// Becomes ready at `end`.
    fn poll(&mut self, end: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        let known = self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        // The timer fires before `end` and is set again then.
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

impl<S: AsyncRead + Unpin> AsyncRead for DeadlineStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if let (Turn::Idle(_), true) = (this.turn.get(), read.is_ok()) {
                this.turn.set(Turn::Head(Instant::now()));
            }
            return Poll::Ready(read);
        }
        let end = match this.turn.get() {
            Turn::Idle(since) => since + IDLE_TIMEOUT,
            Turn::Head(since) => since + HEAD_TIMEOUT,
            Turn::Call => return Poll::Pending,
        };
        ready!(this.read_alarm.poll(end, cx));
        Poll::Ready(Err(timed_out()))
    }
}

impl<S: AsyncWrite + Unpin> DeadlineStream<S> {
    /// Fails if a write has been pending for too long.
    fn with_deadline<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.write_deadline = None;
            return poll;
        }
        let timeout = self.write_timeout;
        let sleep = self
            .write_deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(timed_out()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for DeadlineStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.with_deadline(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.with_deadline(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.with_deadline(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.with_deadline(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
