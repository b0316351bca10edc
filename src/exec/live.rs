//! Output while a command runs.

use std::io;

use super::stream_tail::StreamTail;
use crate::chunk::{Chunk, Stream, whole_characters};
use crate::command::IntoCommand;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::sandbox::Sandbox;

impl Sandbox {
    /// Runs a command, passes its output to `sink` while it runs, and waits until it has finished. A
    /// non-zero exit code is not an error.
    ///
    /// Sends one exec, as [`exec`](Sandbox::exec) does. The output is not limited in length and may
    /// be binary. Chunks of one stream arrive in order; the order of chunks of different streams is
    /// not exact. The returned output keeps the last 64 KiB of each stream, and
    /// [`truncated`](Output::truncated) is true if there was more.
    ///
    /// While the sink runs, no more output is read, and a command that writes much has to wait. This
    /// time does not count against the command's timeout. If the sink returns an error, the command
    /// is ended.
    ///
    /// A server without the extension for live output runs a plain exec: the sink then gets one chunk
    /// per stream after the command has finished, cut at the server's cap
    /// ([`lost_output`](Output::lost_output)).
    ///
    /// # Errors
    ///
    /// The same as for [`exec`](Sandbox::exec). [`OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown) if
    /// the connection broke before the end of the output. [`Io`](crate::ErrorKind::Io) with the sink's
    /// error as the source if the sink failed.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// use noxrunner::{Command, Stream};
    /// use std::io::{self, Write};
    ///
    /// let build = Command::shell("echo compiling; echo linking; echo warning >&2; exit 3");
    /// let out = sandbox.exec_live(build, |chunk| match chunk.stream() {
    ///     Stream::Stdout => io::stdout().write_all(chunk.bytes()),
    ///     Stream::Stderr => io::stderr().write_all(chunk.bytes()),
    /// })?;
    /// assert_eq!((out.exit_code(), &*out.stderr()), (3, "warning\n"));
    ///
    /// // The first line is enough, so the sink ends the command.
    /// let mut seen = String::new();
    /// let result = sandbox.exec_live(["yes"], |chunk| {
    ///     seen += &chunk.text();
    ///     Err(io::ErrorKind::Interrupted.into())
    /// });
    /// assert!(result.is_err() && seen.starts_with("y\n"));
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn exec_live(
        &self,
        command: impl IntoCommand,
        mut sink: impl FnMut(Chunk<'_>) -> io::Result<()>,
    ) -> Result<Output> {
        let (backend, id) = (self.backend(), self.session_id());
        self.exec_by(command, |command| {
            let mut relay = Relay::new(&mut sink);
            let result = backend.exec_live(id, command, &mut |chunk| relay.pass(chunk));
            let ended = relay.end();
            let result = result.map(|out| relay.describe(out));
            let out = result.map_err(|e| e.map_output(|out| relay.describe(out)))?;
            ended.map(|()| out)
        })
    }
}

/// Passes chunks to the caller's sink. Keeps characters together, and the end of each stream.
struct Relay<'a> {
    sink: &'a mut dyn FnMut(Chunk<'_>) -> io::Result<()>,
    stdout: RelayedStream,
    stderr: RelayedStream,
    failed: bool,
}

#[derive(Default)]
struct RelayedStream {
    /// The start of a character whose rest has not arrived.
    held: Vec<u8>,
    tail: StreamTail,
}

impl<'a> Relay<'a> {
    fn new(sink: &'a mut dyn FnMut(Chunk<'_>) -> io::Result<()>) -> Relay<'a> {
        Relay {
            sink,
            stdout: RelayedStream::default(),
            stderr: RelayedStream::default(),
            failed: false,
        }
    }

    fn pass(&mut self, chunk: Chunk<'_>) -> Result<()> {
        let stream = match chunk.stream() {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        stream.tail.push(chunk.bytes());
        let joined;
        let bytes = if stream.held.is_empty() {
            chunk.bytes()
        } else {
            joined = [&stream.held, chunk.bytes()].concat();
            &joined
        };
        let whole = whole_characters(bytes);
        stream.held = bytes[whole.len()..].to_vec();
        self.send(chunk.stream(), whole)
    }

    fn send(&mut self, stream: Stream, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        (self.sink)(Chunk::new(stream, bytes)).map_err(|e| {
            self.failed = true;
            Error::from_io(e).unwrap_or_else(|e| Error::io("the output sink failed", e))
        })
    }

    /// Passes on incomplete characters at the end of the streams.
    fn end(&mut self) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        let held = [&mut self.stdout, &mut self.stderr].map(|s| std::mem::take(&mut s.held));
        let [stdout, stderr] = held;
        self.send(Stream::Stdout, &stdout)?;
        self.send(Stream::Stderr, &stderr)
    }

    /// Adds the ends of the streams to the output.
    fn describe(&mut self, mut out: Output) -> Output {
        let lost = out.truncated();
        let tails = [&mut self.stdout, &mut self.stderr].map(|s| std::mem::take(&mut s.tail));
        let truncated = lost || tails.iter().any(StreamTail::truncated);
        let [stdout, stderr] = tails.map(StreamTail::into_bytes);
        out.lost = Some(lost);
        out.with_truncated(truncated).with_streams(stdout, stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Passes chunks on. Returns what the sink got, and the output.
    fn relay(chunks: &[(Stream, &[u8])]) -> (Vec<(Stream, Vec<u8>)>, Output) {
        let mut got = Vec::new();
        let mut sink = |chunk: Chunk<'_>| {
            got.push((chunk.stream(), chunk.bytes().to_vec()));
            Ok(())
        };
        let mut relay = Relay::new(&mut sink);
        for (stream, bytes) in chunks {
            relay.pass(Chunk::new(*stream, bytes)).unwrap();
        }
        relay.end().unwrap();
        let out = relay.describe(Output::new(0, "", "", Duration::ZERO));
        (got, out)
    }

    #[test]
    fn characters_are_not_split() {
        let (got, out) = relay(&[
            (Stream::Stdout, b"a\xf0\x9f"),
            (Stream::Stderr, b"\xc3"),
            (Stream::Stdout, b"\x98"),
            (Stream::Stdout, b"\x80b"),
            (Stream::Stderr, b"\xa9"),
            (Stream::Stdout, b"\xff\xe2\x82"),
        ]);
        let expected: [(Stream, &[u8]); 5] = [
            (Stream::Stdout, b"a"),
            (Stream::Stdout, "😀b".as_bytes()),
            (Stream::Stderr, "é".as_bytes()),
            (Stream::Stdout, b"\xff"),
            (Stream::Stdout, b"\xe2\x82"),
        ];
        assert!(got.iter().map(|(s, b)| (*s, &**b)).eq(expected), "{got:?}");
        assert_eq!(out.stdout_bytes(), b"a\xf0\x9f\x98\x80b\xff\xe2\x82");
        assert_eq!((&*out.stderr(), out.truncated()), ("é", false));
    }

    #[test]
    fn output_keeps_the_end_and_says_so() {
        let line = [b'x'; 50_000];
        let (got, out) = relay(&[
            (Stream::Stdout, &line),
            (Stream::Stdout, &line),
            (Stream::Stderr, b"why"),
        ]);
        assert_eq!(got.len(), 3);
        assert_eq!((out.stdout().len(), &*out.stderr()), (64 * 1024, "why"));
        assert!(out.truncated() && !out.lost_output());
    }
}
