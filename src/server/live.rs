//! Execs whose output is sent as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::budget::Reservation;
use super::disconnect::CancelOnDrop;
use super::event_body::{EventBody, EventKind, LiveEvent};
use super::reply::{ErrorReply, Reply, encode_error_event};
use super::service::{Service, join};
use crate::backend::Backend;
use crate::backend::events::{MAX_OUTPUT, exit_event, output_event};
use crate::chunk::Chunk;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result as CallResult};
use crate::output::Output;
use crate::session_id::SessionId;

/// Number of events that are buffered.
const BUFFERED_EVENTS: usize = 4;

/// Maximum time until the head of the response. A call that fails earlier gets an error response. After
/// that the error is an event.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

impl Service {
    /// Runs a command. `cancel` is the command's own.
    pub(super) async fn exec_live(
        &self,
        id: SessionId,
        command: Command,
        cancel: CancelOnDrop,
        memory: Reservation,
    ) -> Result<Reply, ErrorReply> {
        let (events, mut received) = mpsc::channel(BUFFERED_EVENTS);
        let permit = self.call_permit()?;
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            // Held until the call ends, even if its client has disconnected.
            let _permit = permit;
            run(&*backend, &id, &command, &events)
        });
        let first = timeout(HEAD_TIMEOUT, received.recv()).await;
        let failed = |event: &Option<LiveEvent>| {
            let kind = event.as_ref().map(|event| event.kind);
            kind.is_none_or(|kind| kind == EventKind::Failure)
        };
        if first.as_ref().is_ok_and(failed) {
            join(task.await)?;
        }
        let first = first.ok().flatten();
        Ok(Reply::Events(EventBody::new(
            first, received, cancel, memory,
        )))
    }
}

/// Runs a command, and sends its events. Blocks. The error is also the last event.
fn run(
    backend: &dyn Backend,
    id: &SessionId,
    command: &Command,
    events: &Sender<LiveEvent>,
) -> CallResult<()> {
    let send = |bytes: Vec<u8>, kind| {
        let bytes = bytes.into();
        let sent = events.blocking_send(LiveEvent { bytes, kind });
        sent.map_err(|_| Error::new(ErrorKind::Cancelled, "the client has disconnected"))
    };
    let mut sink = |chunk: Chunk<'_>| {
        let mut pieces = chunk.bytes().chunks(MAX_OUTPUT);
        pieces.try_for_each(|piece| {
            let event = output_event(Chunk::new(chunk.stream(), piece));
            send(event, EventKind::Output)
        })
    };
    let result = backend.exec_live(id, command, &mut sink);
    match result.and_then(|out| encode_exit(&out)) {
        Ok(exit) => send(exit, EventKind::Exit),
        Err(error) => {
            // The client may have disconnected.
            let _ = send(encode_error_event(&error), EventKind::Failure);
            Err(error)
        }
    }
}

fn encode_exit(out: &Output) -> CallResult<Vec<u8>> {
    exit_event(out).map_err(|e| {
        let text = "cannot write the result as JSON";
        Error::new(ErrorKind::Io, text).with_source(e)
    })
}
