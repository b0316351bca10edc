//! The pipes of a command. Output is read without blocking, and kept up to a cap or passed on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::backend::Sink;
use crate::capped_stream::{CappedStream, STREAM_CAP};
use crate::chunk::{Chunk, Stream};
use crate::error::{Error, Result};
use crate::local::stdin_feed::StdinFeed;
use crate::os;
use crate::output::Output;
use crate::stdin::StdinReader;

/// Length of a read until there is more output. Most commands write less.
const FIRST_READ: usize = 4 * 1024;

const LONGEST_READ: usize = 64 * 1024;

/// The reading ends of a command's stdout and stderr, and what writes to its stdin.
pub(super) struct CommandPipes<'a> {
    stdout: Pipe,
    stderr: Pipe,
    target: OutputTarget<'a>,
    stdin: Option<StdinFeed>,
    /// The error of reading stdin.
    stdin_failure: Option<Error>,
    /// The sink or stdin has failed, and the command was not ended yet.
    must_end: bool,
    buffer: Vec<u8>,
}

/// Destination of the output.
enum OutputTarget<'a> {
    Kept {
        stdout: CappedStream,
        stderr: CappedStream,
    },
    Live(LiveOutput<'a>),
}

struct LiveOutput<'a> {
    sink: &'a mut Sink<'a>,
    /// Time spent in the sink.
    in_sink: Duration,
    /// The sink's error. The sink is not called again after that.
    failure: Option<Error>,
}

impl<'a> CommandPipes<'a> {
    /// Passes the output to `sink` if there is one. Otherwise the output is kept.
    pub(super) fn new(
        stdout: OwnedFd,
        stderr: OwnedFd,
        sink: Option<&'a mut Sink<'a>>,
    ) -> io::Result<CommandPipes<'a>> {
        let target = match sink {
            Some(sink) => OutputTarget::Live(LiveOutput {
                sink,
                in_sink: Duration::ZERO,
                failure: None,
            }),
            None => OutputTarget::Kept {
                stdout: CappedStream::default(),
                stderr: CappedStream::default(),
            },
        };
        Ok(CommandPipes {
            stdout: Pipe::new(stdout)?,
            stderr: Pipe::new(stderr)?,
            target,
            stdin: None,
            stdin_failure: None,
            must_end: false,
            buffer: vec![0; FIRST_READ],
        })
    }

    /// Writes the command's stdin to a pipe.
    pub(super) fn feed_stdin(&mut self, reader: StdinReader, pipe: OwnedFd) -> io::Result<()> {
        self.stdin = Some(StdinFeed::start(reader, pipe)?);
        Ok(())
    }

    /// Returns the descriptors to poll.
    pub(super) fn fds(&self) -> [Option<BorrowedFd<'_>>; 3] {
        let stdin = self.stdin.as_ref().map(StdinFeed::fd);
        [self.stdout.fd(), self.stderr.fd(), stdin]
    }

    /// Handles the descriptors that a poll reported as readable. Reads once from each pipe.
    pub(super) fn handle(&mut self, [stdout, stderr, stdin_ended]: [bool; 3]) {
        if stdout {
            self.read_some(Stream::Stdout);
        }
        if stderr {
            self.read_some(Stream::Stderr);
        }
        if stdin_ended {
            self.stdin_ended();
        }
    }

    fn stdin_ended(&mut self) {
        match self.stdin.as_ref().and_then(StdinFeed::failure) {
            // The pipe stays open until the command has been ended.
            Some(failure) => {
                self.stdin_failure = Some(failure);
                self.must_end = true;
            }
            None => self.stdin = None,
        }
    }

    /// Reads once. Returns false if no more data is available now.
    fn read_some(&mut self, stream: Stream) -> bool {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        match pipe.read(&mut self.buffer) {
            ReadResult::Bytes(count) => {
                let is_full = count == self.buffer.len();
                let taken = self.target.add(Chunk::new(stream, &self.buffer[..count]));
                self.must_end |= !taken;
                if is_full {
                    self.buffer.resize(LONGEST_READ, 0);
                }
                true
            }
            ReadResult::Again => true,
            ReadResult::Nothing => false,
        }
    }

    /// Returns the time that does not count against the command's timeout.
    pub(super) fn time_in_sink(&self) -> Duration {
        match &self.target {
            OutputTarget::Kept { .. } => Duration::ZERO,
            OutputTarget::Live(live) => live.in_sink,
        }
    }

    pub(super) fn are_live(&self) -> bool {
        matches!(self.target, OutputTarget::Live(_))
    }

    /// Returns true if the command has to be ended, because the sink or stdin has failed.
    pub(super) fn must_end(&self) -> bool {
        self.must_end
    }

    /// Reads the data that is already in the pipes, without waiting for more.
    fn drain(&mut self) {
        // A background process can write as fast as this loop reads, so the loop is bounded by the
        // capacity of a pipe, which is 1 MiB at most.
        for _ in 0..(2 * STREAM_CAP / LONGEST_READ) {
            let more = [Stream::Stdout, Stream::Stderr].map(|stream| self.read_some(stream));
            if more == [false, false] {
                return;
            }
        }
    }

    /// Reads the rest of the output and returns the result of a command that has ended. Its streams are
    /// what was kept, and `notice`, a line about the command for the end of its stderr. Fails if the sink
    /// or stdin has failed.
    pub(super) fn into_output(
        mut self,
        code: i32,
        started: Instant,
        timed_out: bool,
        notice: &str,
    ) -> Result<Output> {
        self.drain();
        let duration = started.elapsed();
        let (stdout, mut stderr, truncated) = self.target.into_kept()?;
        if let Some(failure) = self.stdin_failure {
            return Err(failure);
        }
        stderr.extend_from_slice(notice.as_bytes());
        Ok(Output::new(code, stdout, stderr, duration)
            .with_timed_out(timed_out)
            .with_truncated(truncated))
    }
}

impl OutputTarget<'_> {
    /// Returns false if the sink has failed.
    fn add(&mut self, chunk: Chunk<'_>) -> bool {
        match (self, chunk.stream()) {
            (OutputTarget::Kept { stdout, .. }, Stream::Stdout) => stdout.push(chunk.bytes()),
            (OutputTarget::Kept { stderr, .. }, Stream::Stderr) => stderr.push(chunk.bytes()),
            (OutputTarget::Live(live), _) => return live.add(chunk),
        }
        true
    }

    /// Returns the kept streams, and whether one of them was truncated.
    fn into_kept(self) -> Result<(Vec<u8>, Vec<u8>, bool)> {
        match self {
            OutputTarget::Kept { stdout, stderr } => {
                let truncated = stdout.truncated() || stderr.truncated();
                Ok((stdout.into_bytes(), stderr.into_bytes(), truncated))
            }
            OutputTarget::Live(live) => match live.failure {
                Some(failure) => Err(failure),
                None => Ok((Vec::new(), Vec::new(), false)),
            },
        }
    }
}

impl LiveOutput<'_> {
    fn add(&mut self, chunk: Chunk<'_>) -> bool {
        if self.failure.is_none() {
            let started = Instant::now();
            self.failure = (self.sink)(chunk).err();
            self.in_sink += started.elapsed();
        }
        self.failure.is_none()
    }
}

/// The reading end of a pipe. `None` after its end.
struct Pipe(Option<File>);

enum ReadResult {
    Bytes(usize),
    /// Interrupted before anything was read.
    Again,
    /// No data is available now, or the stream has ended.
    Nothing,
}

impl Pipe {
    fn new(pipe: OwnedFd) -> io::Result<Pipe> {
        os::set_nonblocking(pipe.as_fd())?;
        Ok(Pipe(Some(pipe.into())))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    fn read(&mut self, buffer: &mut [u8]) -> ReadResult {
        let Some(pipe) = &mut self.0 else {
            return ReadResult::Nothing;
        };
        match pipe.read(buffer) {
            Ok(0) => self.0 = None,
            Ok(count) => return ReadResult::Bytes(count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return ReadResult::Again,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.0 = None,
        }
        ReadResult::Nothing
    }
}
