//! Answers of servers: JSON and streams of events.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::input::{Dribble, Input};
use crate::backend::events::{Event, EventReader, NoEvent};
use crate::backend::wire::{ExecResponse, ServerError};
use crate::chunk::Stream;
use crate::lenient_json;
use crate::output::Output;
use crate::spec::SandboxInfo;

/// Decodes an answer. The first byte chooses the kind of answer.
pub fn answers(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => exec(input.0),
        1 => sandbox(input.0),
        2 => drop(ServerError::parse(input.0)),
        _ => events(input.byte(), input.0),
    }
}

/// The answer to an exec, as the protocol has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StrictExec {
    exit_code: i32,
    stdout: String,
    stderr: String,
    duration_ms: Option<u64>,
    timed_out: Option<bool>,
    truncated: Option<bool>,
}

/// Valid JSON of the protocol is decoded exactly. A decoded output survives a round trip.
fn exec(json: &[u8]) {
    let lenient = exec_output(json);
    if let Ok(strict) = serde_json::from_slice::<StrictExec>(json) {
        let out = lenient.as_ref().expect("strict JSON is valid");
        assert_eq!(out.exit_code(), strict.exit_code);
        assert_eq!(
            (&*out.stdout(), &*out.stderr()),
            (&*strict.stdout, &*strict.stderr)
        );
        let millis = strict.duration_ms.unwrap_or(0);
        assert_eq!(out.duration().as_millis(), millis.into());
        assert_eq!(out.timed_out, strict.timed_out);
        assert_eq!(out.truncated, strict.truncated);
    }
    let Some(out) = lenient else { return };
    let json = serde_json::to_vec(&out).expect("an output can be written as JSON");
    let again = exec_output(&json).expect("our own JSON is valid");
    // A server knows both, and a client may not.
    let known = out
        .with_timed_out(again.timed_out())
        .with_truncated(again.truncated());
    assert_eq!(format!("{again:?}"), format!("{known:?}"));
}

fn exec_output(json: &[u8]) -> Option<Output> {
    let response: ExecResponse<'_> = decode(json)?;
    Some(response.into())
}

fn decode<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    lenient_json::from_slice(json).ok()
}

/// The answer to the creation of a sandbox, as the protocol has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StrictSandbox {
    pod_name: String,
    expires_at: String,
}

fn sandbox(json: &[u8]) {
    let lenient: Option<SandboxInfo> = decode(json);
    if let Ok(strict) = serde_json::from_slice::<StrictSandbox>(json) {
        let info = lenient.as_ref().expect("strict JSON is valid");
        assert_eq!(info.pod_name(), strict.pod_name);
        assert_eq!(info.expires_at(), strict.expires_at);
    }
    let Some(info) = lenient else { return };
    let _ = info.expires_at_time();
    let json = serde_json::to_vec(&info).expect("it can be written as JSON");
    assert_eq!(decode(&json), Some(info));
}

/// The events of a stream do not depend on the pieces in which it arrives.
fn events(seed: u8, stream: &[u8]) {
    let whole = read_events(EventReader::new(stream));
    assert_eq!(
        read_events(EventReader::new(Dribble::new(stream, seed))),
        whole
    );
    #[cfg(feature = "server")]
    round_trip(stream);
}

#[derive(Debug, PartialEq)]
enum Read {
    Output(Stream, Vec<u8>),
    Exit(i32),
    Failed(Vec<u8>),
    Broken(std::io::ErrorKind),
    Invalid(String),
}

/// Reads all events, and the reason for the end.
fn read_events(mut reader: EventReader<impl std::io::Read>) -> Vec<Read> {
    let mut events = Vec::new();
    loop {
        let event = match reader.next() {
            Ok(Event::Output(chunk)) => {
                assert!(!chunk.bytes().is_empty());
                Read::Output(chunk.stream(), chunk.bytes().to_vec())
            }
            Ok(Event::Exit(out)) => Read::Exit(out.exit_code()),
            Ok(Event::Failed(json)) => Read::Failed(json.to_vec()),
            Err(NoEvent::Broken(e)) => Read::Broken(e.kind()),
            Err(NoEvent::Invalid(why)) => Read::Invalid(why),
        };
        let is_end = matches!(event, Read::Broken(_) | Read::Invalid(_));
        events.push(event);
        if is_end {
            return events;
        }
    }
}

/// Output that the server sends arrives as it is.
#[cfg(feature = "server")]
fn round_trip(bytes: &[u8]) {
    use crate::backend::events::output_event;
    use crate::chunk::Chunk;

    let pieces = || {
        bytes
            .chunks(100)
            .zip([Stream::Stdout, Stream::Stderr].into_iter().cycle())
    };
    let sent: Vec<u8> = pieces()
        .flat_map(|(bytes, stream)| output_event(Chunk::new(stream, bytes)))
        .collect();
    let received = read_events(EventReader::new(&*sent));
    let expected = pieces().map(|(bytes, stream)| Read::Output(stream, bytes.to_vec()));
    let end = Read::Broken(std::io::ErrorKind::UnexpectedEof);
    assert_eq!(received, expected.chain([end]).collect::<Vec<_>>());
}
