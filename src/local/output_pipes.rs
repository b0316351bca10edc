//! The output pipes of a command, read without blocking. The output is kept up to a cap, or passed on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::backend::Sink;
use crate::capped_stream::{CappedStream, STREAM_CAP};
use crate::chunk::{Chunk, Stream};
use crate::error::{Error, Result};
use crate::os;
use crate::output::Output;

/// The reading ends of a command's stdout and stderr.
pub(super) struct OutputPipes<'a> {
    stdout: Pipe,
    stderr: Pipe,
    target: OutputTarget<'a>,
    buffer: Vec<u8>,
}

/// Where the output goes.
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
    /// The failure was not taken notice of yet.
    failed_now: bool,
}

impl<'a> OutputPipes<'a> {
    /// Passes the output to `sink` if there is one. Otherwise the output is kept.
    pub(super) fn new(
        stdout: OwnedFd,
        stderr: OwnedFd,
        sink: Option<&'a mut Sink<'a>>,
    ) -> io::Result<OutputPipes<'a>> {
        let target = match sink {
            Some(sink) => OutputTarget::Live(LiveOutput {
                sink,
                in_sink: Duration::ZERO,
                failure: None,
                failed_now: false,
            }),
            None => OutputTarget::Kept {
                stdout: CappedStream::default(),
                stderr: CappedStream::default(),
            },
        };
        Ok(OutputPipes {
            stdout: Pipe::new(stdout)?,
            stderr: Pipe::new(stderr)?,
            target,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Returns the descriptors of stdout and stderr, or `None` after the end of the stream.
    pub(super) fn fds(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [self.stdout.fd(), self.stderr.fd()]
    }

    /// Reads once from each pipe that a poll reported as readable.
    pub(super) fn read(&mut self, stdout: bool, stderr: bool) {
        if stdout {
            self.read_some(Stream::Stdout);
        }
        if stderr {
            self.read_some(Stream::Stderr);
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
                self.target.add(Chunk::new(stream, &self.buffer[..count]));
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

    /// Returns true once if the sink has failed, so that the command has to be ended.
    pub(super) fn take_sink_failed(&mut self) -> bool {
        match &mut self.target {
            OutputTarget::Kept { .. } => false,
            OutputTarget::Live(live) => std::mem::take(&mut live.failed_now),
        }
    }

    /// Reads the data that is already in the pipes, without waiting for more.
    fn drain(&mut self) {
        // A background process can write as fast as this loop reads, so the loop is bounded by the
        // capacity of a pipe, which is 1 MiB at most.
        for _ in 0..(2 * STREAM_CAP / self.buffer.len()) {
            let more = [Stream::Stdout, Stream::Stderr].map(|stream| self.read_some(stream));
            if more == [false, false] {
                return;
            }
        }
    }

    /// Reads the rest of the output and returns the result of a command that has ended. Its streams are
    /// what was kept, and `notice`, a line about the command for the end of its stderr. Fails if the sink
    /// has failed.
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
        stderr.extend_from_slice(notice.as_bytes());
        Ok(Output::new(code, stdout, stderr, duration)
            .with_timed_out(timed_out)
            .with_truncated(truncated))
    }
}

impl OutputTarget<'_> {
    fn add(&mut self, chunk: Chunk<'_>) {
        match (self, chunk.stream()) {
            (OutputTarget::Kept { stdout, .. }, Stream::Stdout) => stdout.push(chunk.bytes()),
            (OutputTarget::Kept { stderr, .. }, Stream::Stderr) => stderr.push(chunk.bytes()),
            (OutputTarget::Live(live), _) if live.failure.is_none() => {
                let started = Instant::now();
                live.failure = (live.sink)(chunk).err();
                live.failed_now = live.failure.is_some();
                live.in_sink += started.elapsed();
            }
            (OutputTarget::Live(_), _) => {}
        }
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
