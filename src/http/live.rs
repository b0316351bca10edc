//! Execs whose output arrives as server-sent events, if the server has that extension.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::backend::HttpBackend;
use super::call::{parse_json, read_json};
use super::errors::{Operation, event_error, failure_error};
use super::transport::{Failure, Response, ResponseBody};
use crate::backend::events::{Event, EventReader, NoEvent};
use crate::backend::wire::{ACCEPT_LIVE, EVENT_STREAM, ExecResponse};
use crate::backend::{Sink, pass_on};
use crate::capped_stream::CappedStream;
use crate::chunk::{Chunk, Stream};
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::output::Output;
use crate::session_id::SessionId;

/// Maximum time for the end of the response after its last event.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The result of a command whose client prefers live output.
enum LiveResult {
    /// The sink got the output.
    Live(Output),
    /// The server answered with JSON, and the output is in its streams.
    Whole(Output),
}

/// The body of a success.
enum ExecBody {
    Events(ResponseBody),
    Json(u16, Vec<u8>),
}

impl HttpBackend {
    /// Runs a command, and passes its output to the sink as it arrives.
    pub(super) fn exec_to_sink(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut Sink<'_>,
    ) -> Result<Output> {
        match self.send_live(id, command, sink)? {
            LiveResult::Live(out) => Ok(out),
            LiveResult::Whole(out) => pass_on(out, sink),
        }
    }

    /// Runs a command. The sink gets the output if the server sends it as events.
    fn send_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut Sink<'_>,
    ) -> Result<LiveResult> {
        let mut call = self.exec_call(id, command)?;
        call.request.accept = Some(ACCEPT_LIVE);
        let started = Instant::now();
        let body = self.api.send(&mut call, |response| {
            if is_event_stream(&response) {
                return Ok(ExecBody::Events(response.body));
            }
            read_json(response).map(|(status, body)| ExecBody::Json(status, body))
        })?;
        match body {
            ExecBody::Events(body) => read_events(body, started, sink).map(LiveResult::Live),
            ExecBody::Json(status, body) => {
                let response: ExecResponse<'_> = parse_json(Operation::Exec, status, &body)?;
                Ok(LiveResult::Whole(response.into()))
            }
        }
    }

    /// Runs a command, and keeps its output up to a cap, as a plain exec does.
    pub(super) fn exec_by_events(&self, id: &SessionId, command: &Command) -> Result<Output> {
        let mut kept = [CappedStream::default(), CappedStream::default()];
        let [stdout, stderr] = &mut kept;
        let mut sink = |chunk: Chunk<'_>| {
            match chunk.stream() {
                Stream::Stdout => stdout.push(chunk.bytes()),
                Stream::Stderr => stderr.push(chunk.bytes()),
            }
            Ok(())
        };
        match self.send_live(id, command, &mut sink)? {
            LiveResult::Whole(out) => Ok(out),
            LiveResult::Live(out) => {
                let truncated = out.truncated() || kept.iter().any(CappedStream::truncated);
                let [stdout, stderr] = kept.map(CappedStream::into_bytes);
                Ok(out.with_truncated(truncated).with_streams(stdout, stderr))
            }
        }
    }
}

fn is_event_stream(response: &Response) -> bool {
    let content_type = response.header("content-type").unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(EVENT_STREAM)
}

/// Passes the output to the sink until the command has ended. If this fails, the connection is closed,
/// which ends the command.
fn read_events(body: ResponseBody, started: Instant, sink: &mut Sink<'_>) -> Result<Output> {
    let mut events = EventReader::new(body);
    loop {
        let in_sink = match events.next() {
            Ok(Event::Output(chunk)) => {
                let entered = Instant::now();
                sink(chunk)?;
                entered.elapsed()
            }
            Ok(Event::Exit(out)) => {
                end(events.into_inner());
                return Ok(out);
            }
            Ok(Event::Failed(json)) => {
                let error = event_error(json);
                end(events.into_inner());
                return Err(error);
            }
            Err(NoEvent::Broken(e)) => {
                let (failure, elapsed) = (Failure::cut_off(e), started.elapsed());
                return Err(failure_error(failure, Operation::Exec, false, elapsed));
            }
            Err(NoEvent::Invalid(reason)) => {
                let message = format!("the response is not a stream of events: {reason}");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
        };
        events.get_mut().extend(in_sink);
    }
}

/// Reads the end of a response after its last event, so that the connection can be reused. The result
/// is known already, so errors are ignored.
fn end(body: ResponseBody) {
    let mut rest = body.within(END_TIMEOUT).take(1024);
    let _ = io::copy(&mut rest, &mut io::sink());
}
