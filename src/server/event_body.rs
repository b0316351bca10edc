//! The response of a live exec: server-sent events.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, Interval, interval_at};

use super::budget::Reservation;
use super::disconnect::CancelOnDrop;
use crate::backend::events::{COMMENT, error_event};
use crate::backend::wire::{ErrorEvent, ErrorResponse};

/// Maximum time without an event. Then a comment shows proxies that the connection is in use.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// An encoded event.
pub(super) struct LiveEvent {
    pub(super) bytes: Bytes,
    pub(super) kind: EventKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventKind {
    Output,
    /// The last event: the result of the command.
    Exit,
    /// The last event: the error of the call.
    Failure,
}

/// The events of a command. Dropping it cancels the command.
pub(super) struct EventBody {
    first: Option<LiveEvent>,
    events: Receiver<LiveEvent>,
    comments: Interval,
    ended: bool,
    _cancel: CancelOnDrop,
    _memory: Reservation,
}

impl EventBody {
    pub(super) fn new(
        first: Option<LiveEvent>,
        events: Receiver<LiveEvent>,
        cancel: CancelOnDrop,
        memory: Reservation,
    ) -> EventBody {
        EventBody {
            first,
            events,
            comments: interval_at(Instant::now() + COMMENT_INTERVAL, COMMENT_INTERVAL),
            ended: false,
            _cancel: cancel,
            _memory: memory,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = match self.first.take() {
            Some(event) => Poll::Ready(Some(event)),
            None => self.events.poll_recv(cx),
        };
        let Poll::Ready(event) = event else {
            ready!(self.comments.poll_tick(cx));
            return Poll::Ready(Some(Bytes::from_static(COMMENT)));
        };
        self.comments.reset();
        let Some(event) = event else {
            // The backend has panicked.
            self.ended = true;
            return Poll::Ready(Some(ended_without_result().into()));
        };
        self.ended = event.kind != EventKind::Output;
        Poll::Ready(Some(event.bytes))
    }
}

fn ended_without_result() -> Vec<u8> {
    error_event(&ErrorEvent {
        response: ErrorResponse {
            error: "the call ended without a result",
            code: None,
        },
        status: 500,
        request_id: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::budget::{Budget, MIN_BUDGET};
    use std::future::poll_fn;
    use tokio::sync::mpsc::channel;

    #[test]
    fn quiet_command_sends_comments() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (sender, events) = channel(1);
            let memory = Budget::new(MIN_BUDGET, 1).0.reserve(0).unwrap();
            let mut body = EventBody::new(None, events, CancelOnDrop::default(), memory);
            let interval = Duration::from_millis(1);
            body.comments = interval_at(Instant::now() + interval, interval);
            let next = async |body: &mut EventBody| poll_fn(|cx| body.poll_event(cx)).await;
            for _ in 0..3 {
                assert_eq!(next(&mut body).await.unwrap(), COMMENT);
            }
            let (bytes, kind) = (Bytes::from_static(b"exit"), EventKind::Exit);
            sender.send(LiveEvent { bytes, kind }).await.ok().unwrap();
            body.comments.reset_after(Duration::from_secs(3600));
            assert_eq!(next(&mut body).await.unwrap(), "exit");
            assert_eq!(next(&mut body).await, None);
            assert!(body.is_ended());
        });
    }
}
