//! The server-sent events of a live exec, for the client and the server.

use std::io::{self, BufRead, BufReader, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

#[cfg(feature = "server")]
use super::wire::ErrorEvent;
use super::wire::ExecResponse;
use crate::chunk::{Chunk, Stream};
use crate::error::one_line;
use crate::lenient_json;
use crate::output::Output;

/// Maximum length of the output in one event, in bytes.
#[cfg(feature = "server")]
pub(crate) const MAX_OUTPUT: usize = 64 * 1024;

/// An event without content, which keeps proxies from closing a quiet connection.
#[cfg(feature = "server")]
pub(crate) const COMMENT: &[u8] = b":\n\n";

/// Maximum length of a line, and of the data of an event, in bytes. Output has less than 90 KiB, as base64.
const MAX_LENGTH: u64 = 1024 * 1024;

const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const EXIT: &str = "exit";
const ERROR: &str = "error";

/// Encodes a chunk of at most [`MAX_OUTPUT`] bytes.
#[cfg(feature = "server")]
pub(crate) fn output_event(chunk: Chunk<'_>) -> Vec<u8> {
    let name = match chunk.stream() {
        Stream::Stdout => STDOUT,
        Stream::Stderr => STDERR,
    };
    let head = format!("event: {name}\ndata: ");
    let encoded = chunk.bytes().len().div_ceil(3) * 4;
    let mut event = vec![0; head.len() + encoded + 2];
    event[..head.len()].copy_from_slice(head.as_bytes());
    let data = &mut event[head.len()..];
    // Has room for all of it.
    let length = STANDARD.encode_slice(chunk.bytes(), data).unwrap_or(0);
    event.truncate(head.len() + length);
    event.extend_from_slice(b"\n\n");
    event
}

/// Encodes the result of a command, without its streams.
#[cfg(feature = "server")]
pub(crate) fn exit_event(out: &Output) -> serde_json::Result<Vec<u8>> {
    let json = ExecResponse::without_streams(out)?;
    Ok(format!("event: {EXIT}\ndata: {json}\n\n").into())
}

/// Encodes the error of a call.
#[cfg(feature = "server")]
pub(crate) fn error_event(error: &ErrorEvent<'_>) -> Vec<u8> {
    // Text and a number are always valid JSON.
    let json = serde_json::to_string(error).unwrap_or_default();
    format!("event: {ERROR}\ndata: {json}\n\n").into()
}

/// An event of a live exec.
pub(crate) enum Event<'a> {
    Output(Chunk<'a>),
    Exit(Output),
    /// The JSON of an error.
    Failed(&'a [u8]),
}

/// The reason for a missing event.
pub(crate) enum NoEvent {
    Broken(io::Error),
    /// The stream does not follow the protocol.
    Invalid(String),
}

/// Reads events.
pub(crate) struct EventReader<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    event: RawEvent,
    output: Vec<u8>,
}

enum EventName {
    Output(Stream),
    Exit,
    Error,
}

/// The fields of an event.
#[derive(Default)]
struct RawEvent {
    name: Vec<u8>,
    data: Vec<u8>,
}

impl<R: Read> EventReader<R> {
    pub(crate) fn new(reader: R) -> EventReader<R> {
        EventReader {
            reader: BufReader::with_capacity(64 * 1024, reader),
            line: Vec::new(),
            event: RawEvent::default(),
            output: Vec::new(),
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut R {
        self.reader.get_mut()
    }

    pub(crate) fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    /// Returns the next event. Skips comments and events of other names.
    pub(crate) fn next(&mut self) -> Result<Event<'_>, NoEvent> {
        match self.read_known_event()? {
            EventName::Output(stream) => Ok(Event::Output(Chunk::new(stream, &self.output))),
            EventName::Exit => parse_exit(&self.event.data).map(Event::Exit),
            EventName::Error => Ok(Event::Failed(&self.event.data)),
        }
    }

    /// Reads an event of a known name, and decodes its output.
    fn read_known_event(&mut self) -> Result<EventName, NoEvent> {
        loop {
            self.read_event()?;
            let stream = match std::str::from_utf8(&self.event.name).unwrap_or_default() {
                STDOUT => Stream::Stdout,
                STDERR => Stream::Stderr,
                EXIT => return Ok(EventName::Exit),
                ERROR => return Ok(EventName::Error),
                _ => continue,
            };
            self.output.clear();
            let decoded = STANDARD.decode_vec(&self.event.data, &mut self.output);
            decoded.map_err(|e| NoEvent::Invalid(format!("invalid base64: {e}")))?;
            if !self.output.is_empty() {
                return Ok(EventName::Output(stream));
            }
        }
    }

    /// Reads lines until an event is complete.
    fn read_event(&mut self) -> Result<(), NoEvent> {
        self.event.name.clear();
        self.event.data.clear();
        loop {
            self.line.clear();
            let mut reader = (&mut self.reader).take(MAX_LENGTH);
            let read = reader.read_until(b'\n', &mut self.line);
            read.map_err(NoEvent::Broken)?;
            let too_long = || NoEvent::Invalid("an event is too long".to_owned());
            let Some(line) = self.line.strip_suffix(b"\n") else {
                return Err(match self.line.len() as u64 {
                    MAX_LENGTH => too_long(),
                    _ => NoEvent::Broken(io::ErrorKind::UnexpectedEof.into()),
                });
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                return Ok(());
            }
            self.event.add(line);
            if self.event.data.len() as u64 > MAX_LENGTH {
                return Err(too_long());
            }
        }
    }
}

impl RawEvent {
    /// Adds a line `name: value`. The name of a comment is empty.
    fn add(&mut self, line: &[u8]) {
        let end = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(end.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => self.name = value.to_vec(),
            b"data" => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            _ => {}
        }
    }
}

fn parse_exit(json: &[u8]) -> Result<Output, NoEvent> {
    let response: ExecResponse<'_> = lenient_json::from_slice(json)
        .map_err(|e| NoEvent::Invalid(format!("invalid JSON: {}", one_line(&e.to_string()))))?;
    Ok(response.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_many_lines_is_limited() {
        let line = format!("data: {}\n", "x".repeat(1000));
        let endless = format!("event: error\n{}", line.repeat(2000));
        assert_eq!(events(endless.as_bytes()), ["an event is too long"]);
        let long = format!("event: error\n{}\n", line.repeat(1000));
        assert_eq!(events(long.as_bytes())[0].len(), 1000 * 1001 - 1);
    }

    /// Shows the events of a stream, one per line.
    fn events(stream: &[u8]) -> Vec<String> {
        let mut reader = EventReader::new(stream);
        let mut events = Vec::new();
        loop {
            events.push(match reader.next() {
                Ok(Event::Output(chunk)) => format!("{:?} {:?}", chunk.stream(), chunk.bytes()),
                Ok(Event::Exit(out)) => format!("exit {}", out.exit_code()),
                Ok(Event::Failed(json)) => String::from_utf8_lossy(json).into_owned(),
                Err(NoEvent::Broken(e)) => return [events, vec![e.kind().to_string()]].concat(),
                Err(NoEvent::Invalid(why)) => return [events, vec![why]].concat(),
            });
        }
    }

    #[test]
    fn events_are_read_as_other_servers_write_them() {
        let stream = b"\
            :\n\n\
            : a comment\n\
            event: stdout\r\ndata: AP8=\r\n\r\n\
            id: 7\nretry: 5\nevent:stderr\ndata:YQ==\n\n\
            event: later\ndata: x\n\n\
            data: no name\n\n\
            event: stdout\n\n\
            event: exit\ndata: {\"exitCode\":\ndata:  3}\n\n\
            event: error\ndata: {\"error\": \"x\"}\n\n\
            event: exit\ndata: {}";
        let expected = [
            "Stdout [0, 255]",
            "Stderr [97]",
            "exit 3",
            "{\"error\": \"x\"}",
            "unexpected end of file",
        ];
        assert_eq!(events(stream), expected);
    }

    #[test]
    fn invalid_events_are_reported() {
        for (stream, reason) in [
            (&b"event: stdout\ndata: ?\n\n"[..], "invalid base64"),
            (b"event: exit\ndata: {\n\n", "invalid JSON"),
            (&[b'x'; 2 << 20], "an event is too long"),
        ] {
            let events = events(stream);
            assert!(
                events.len() == 1 && events[0].contains(reason),
                "{events:?}"
            );
        }
    }

    #[cfg(feature = "server")]
    #[test]
    fn written_events_are_read() {
        use super::super::wire::ErrorResponse;
        use std::time::Duration;

        let all: Vec<u8> = (0..MAX_OUTPUT).map(|n| (n * 7 % 256) as u8).collect();
        let out = Output::new(3, "streams", "are not sent", Duration::from_millis(5));
        let error = ErrorEvent {
            response: ErrorResponse {
                error: "line 1\nline 2",
                code: Some("BUSY"),
            },
            status: 503,
            request_id: Some("req-1"),
        };
        let exit = exit_event(&out).unwrap();
        assert!(!String::from_utf8_lossy(&exit).contains("std"));
        let stream = [
            output_event(Chunk::new(Stream::Stdout, &all)),
            COMMENT.to_vec(),
            output_event(Chunk::new(Stream::Stderr, b"a")),
            exit,
            error_event(&error),
        ];
        let mut expected = vec![format!("Stdout {all:?}"), "Stderr [97]".to_owned()];
        let json = r#"{"error":"line 1\nline 2","code":"BUSY","status":503,"requestId":"req-1"}"#;
        expected.extend(["exit 3", json].map(str::to_owned));
        expected.push("unexpected end of file".to_owned());
        assert_eq!(events(&stream.concat()), expected);
    }
}
