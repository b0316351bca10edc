//! Running commands, and their responses.

use std::borrow::Cow;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::body::Incoming;
use hyper::header::ACCEPT;

use super::budget::{self, Reservation, Reserved};
use super::disconnect::CancelOnDrop;
use super::reply::{ErrorReply, Reply};
use super::service::Service;
use crate::backend::wire::{EVENT_STREAM, ExecRequest, ExecResponse};
use crate::chunk::whole_characters;
use crate::command::Command;
use crate::output::Output;
use crate::session_id::SessionId;

/// Maximum time that a response waits for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// Room for a response without its streams, in bytes.
const FIELDS: usize = 1024;

/// Size of a stream that is cut because there is no memory for it, in bytes. As JSON and with its
/// characters decoded, it fits into what is reserved for the output.
const CUT_STREAM: usize = 32 * 1024;

impl Service {
    pub(super) async fn exec(
        &self,
        id: SessionId,
        headers: &HeaderMap,
        body: &mut Option<Incoming>,
    ) -> Result<Reply, ErrorReply> {
        let received = self.receive_json::<ExecRequest<'_>>(headers, body).await?;
        let (request, mut memory) = received;
        let command = Command::from(request);
        command.check()?;
        memory.grow_by(budget::EXEC)?;
        let cancel = CancelOnDrop::default();
        let command = command.cancel_on(&cancel.0);
        if accepts_events(headers) {
            return self.exec_live(id, command, cancel, memory).await;
        }
        let call = self.run(move |backend| Ok((backend.exec(&id, &command)?, memory)));
        let (out, memory) = call.await?;
        answer(&out, memory).await
    }
}

/// Returns true if the client accepts server-sent events.
fn accepts_events(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter();
    let ranges = values.filter_map(|value| value.to_str().ok());
    ranges.flat_map(|ranges| ranges.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_event_stream = |kind: &str| kind.eq_ignore_ascii_case(EVENT_STREAM);
        let is_refusal = |part: &str| {
            let quality = part.strip_prefix("q=");
            quality.is_some_and(|quality| quality.parse() == Ok(0.0))
        };
        parts.next().is_some_and(is_event_stream) && !parts.any(is_refusal)
    })
}

/// Encodes a response whose memory is reserved until it is sent.
async fn answer(out: &Output, mut memory: Reservation) -> Result<Reply, ErrorReply> {
    let [stdout, stderr] = [out.stdout_bytes(), out.stderr_bytes()].map(EncodedSize::of);
    let raw = out.stdout_bytes().len() + out.stderr_bytes().len();
    let json = FIELDS + stdout.json + stderr.json;
    let needed = raw + stdout.decoded + stderr.decoded + json;
    let response = match memory.grow_within(needed as u64, MEMORY_TIMEOUT).await {
        true => ExecResponse::from(out),
        // The command has run, so this cannot be an error.
        false => ExecResponse::cut(out, start(out.stdout_bytes()), start(out.stderr_bytes())),
    };
    let mut bytes = Vec::with_capacity(json.min(needed));
    serde_json::to_writer(&mut bytes, &response).map_err(ErrorReply::not_json)?;
    memory.shrink_to(bytes.capacity() as u64);
    Ok(Reply::Reserved(Reserved { bytes, memory }))
}

/// Returns the start of a stream, without a part of a character at its end.
fn start(stream: &[u8]) -> Cow<'_, str> {
    let start = stream.get(..CUT_STREAM).unwrap_or(stream);
    String::from_utf8_lossy(whole_characters(start))
}

/// Sizes of a stream in a response, in bytes.
#[derive(Debug, PartialEq)]
struct EncodedSize {
    /// As text that had to be decoded, or 0 if it is UTF-8 already.
    decoded: usize,
    json: usize,
}

impl EncodedSize {
    fn of(stream: &[u8]) -> EncodedSize {
        let (mut text, mut json, mut is_text) = (0, 0, true);
        for chunk in stream.utf8_chunks() {
            text += chunk.valid().len();
            json += chunk.valid().bytes().map(json_length).sum::<usize>();
            if !chunk.invalid().is_empty() {
                is_text = false;
                text += char::REPLACEMENT_CHARACTER.len_utf8();
                json += char::REPLACEMENT_CHARACTER.len_utf8();
            }
        }
        // A decoded text grows by doubling.
        let decoded = if is_text { 0 } else { 2 * text };
        EncodedSize { decoded, json }
    }
}

/// Returns the length of a byte of text in JSON.
fn json_length(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn sizes_are_exact() {
        let all: Vec<u8> = (0..=255).collect();
        for stream in [
            b"".as_slice(),
            b"text\n",
            "\u{1}\"ü\\".as_bytes(),
            &all,
            b"\xe2\x82",
        ] {
            let size = EncodedSize::of(stream);
            let text = String::from_utf8_lossy(stream);
            let json = serde_json::to_string(&*text).unwrap();
            assert_eq!(size.json, json.len() - 2, "{text:?}");
            let decoded = matches!(text, Cow::Owned(_)).then_some(2 * text.len());
            assert_eq!(size.decoded, decoded.unwrap_or(0), "{text:?}");
        }
    }

    #[test]
    fn events_are_sent_to_who_accepts_them() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT, HeaderValue::from_static(value));
            }
            accepts_events(&headers)
        };
        assert!(accepts(&["text/event-stream, application/json;q=0.5"]));
        assert!(accepts(&["application/json", "Text/Event-Stream ; q=0.1"]));
        assert!(!accepts(&[]));
        assert!(!accepts(&["*/*", "text/event-stream-2, application/json"]));
        assert!(!accepts(&["text/event-stream;q=0.0, application/json"]));
    }

    #[test]
    fn cut_streams_end_with_a_character() {
        let text = format!("x{}", "ü".repeat(CUT_STREAM));
        assert_eq!(start(text.as_bytes()).len(), CUT_STREAM - 1);
        assert_eq!(start(b"a\xff"), "a\u{fffd}");
    }
}
