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

use super::admission::{Eviction, Visitor};
use super::pace::Pace;
use super::service::Service;
use super::turn::{SharedTurn, Turn};

/// Maximum time without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum time until a client has sent its first valid request.
const GUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time from the first byte of a head to its end.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a head, and of the part of a body that is read ahead.
const MAX_HEAD: usize = 64 * 1024;

/// Serves a connection until the client closes it, the server shuts down, or the connection is evicted.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Arc<Service>,
    visitor: Arc<Visitor>,
    eviction: Eviction,
    mut stopped: watch::Receiver<bool>,
) {
    let turn = SharedTurn::idle();
    let stream = DeadlineStream {
        stream,
        turn: turn.clone(),
        visitor: Arc::clone(&visitor),
        read_alarm: Alarm::default(),
        write_wait: None,
        pace: Pace::new(service.body_idle),
    };
    let respond = service_fn(move |request| {
        let guard = turn.start_call();
        let (service, visitor) = (Arc::clone(&service), Arc::clone(&visitor));
        async move { Ok::<_, Infallible>(service.respond(request, guard, &visitor).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), respond);
    let mut connection = pin!(connection);
    let mut stop = pin!(stopped.wait_for(|stopped| *stopped));
    let mut stopping = false;
    let mut eviction = Some(eviction);
    poll_fn(|cx| {
        match eviction
            .as_mut()
            .map(|eviction| Pin::new(eviction).poll(cx))
        {
            Some(Poll::Ready(Ok(()))) => return Poll::Ready(()),
            // No longer a guest.
            Some(Poll::Ready(Err(_))) => eviction = None,
            Some(Poll::Pending) | None => {}
        }
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
    visitor: Arc<Visitor>,
    read_alarm: Alarm,
    /// The start and the end of a write that the client has not read yet.
    write_wait: Option<(Instant, Pin<Box<Sleep>>)>,
    pace: Pace,
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
            Turn::Idle(since) if this.visitor.is_guest() => since + GUEST_TIMEOUT,
            Turn::Idle(since) => since + IDLE_TIMEOUT,
            Turn::Head(since) => since + HEAD_TIMEOUT,
            Turn::Call | Turn::Live | Turn::LiveEnd => return Poll::Pending,
        };
        ready!(this.read_alarm.poll(end, cx));
        Poll::Ready(Err(timed_out()))
    }
}

impl<S: AsyncWrite + Unpin> DeadlineStream<S> {
    /// Fails if the client reads too slowly, unless it gets live output. `written` is the number of
    /// bytes in a result.
    fn with_deadline<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
        written: fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = poll {
            let waited = self.write_wait.take();
            let waited = waited.map_or(Duration::ZERO, |(since, _)| since.elapsed());
            self.pace.moved(result.as_ref().map_or(0, written), waited);
            return Poll::Ready(result);
        }
        if matches!(self.turn.get(), Turn::Live | Turn::LiveEnd) {
            return Poll::Pending;
        }
        let left = self.pace.left();
        let (_, end) = self
            .write_wait
            .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
        ready!(end.as_mut().poll(cx));
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
        self.with_deadline(cx, poll, |n| *n)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        // Everything is written before a flush.
        if let (true, Turn::LiveEnd) = (poll.is_ready(), self.turn.get()) {
            self.turn.set(Turn::Idle(Instant::now()));
            // The next read sets the deadline of an idle connection.
            cx.waker().wake_by_ref();
        }
        self.with_deadline(cx, poll, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.with_deadline(cx, poll, |()| 0)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.with_deadline(cx, poll, |n| *n)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
