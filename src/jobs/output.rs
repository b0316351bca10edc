//! Reading the output of a job as it is written.

use std::fmt;
use std::io::{self, Read};

use super::info::JobState;
use super::job::Job;
use super::poll::exit_status;
use super::poller::Poller;
use crate::error::{Error, Result};

/// An output stream of a job, from its first byte, as it is written. It ends when the job has finished.
///
/// Use a [`BufReader`](io::BufReader) for lines, or [`read_text`](JobOutput::read_text) for pieces of
/// text. If reading fails, the [`io::Error`] contains an [`Error`].
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use std::io::{BufRead, BufReader};
///
/// let job = sandbox.spawn(["seq", "3"])?;
/// let lines: Vec<String> = BufReader::new(job.stdout()).lines().collect::<Result<_, _>>()?;
/// assert_eq!(lines, ["1", "2", "3"]);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct JobOutput {
    job: Job,
    stream: JobStream,
    poller: Poller,
    /// Number of bytes that were read from the sandbox.
    offset: u64,
    /// The bytes among them that the caller has not read, from `consumed` on.
    buffer: Vec<u8>,
    consumed: usize,
    /// The last poll returned everything.
    caught_up: bool,
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JobStream {
    Stdout,
    Stderr,
}

impl Job {
    /// Returns the standard output from its beginning, as it is written.
    #[must_use]
    pub fn stdout(&self) -> JobOutput {
        JobOutput::new(self.clone(), JobStream::Stdout)
    }

    /// Returns the standard error from its beginning, as it is written.
    #[must_use]
    pub fn stderr(&self) -> JobOutput {
        JobOutput::new(self.clone(), JobStream::Stderr)
    }
}

impl JobOutput {
    fn new(job: Job, stream: JobStream) -> JobOutput {
        JobOutput {
            job,
            stream,
            poller: Poller::new(),
            offset: 0,
            buffer: Vec::new(),
            consumed: 0,
            caught_up: false,
            finished: false,
        }
    }

    /// Reads the next piece of text as soon as there is one. Returns `None` at the end. An incomplete
    /// character waits for its remaining bytes. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// The same as for [`Job::copy_to`].
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
    /// let job = sandbox.spawn(["sh", "-c", r"printf '\303'; sleep 0.3; printf '\244'"])?;
    /// let mut stdout = job.stdout();
    /// assert_eq!(stdout.read_text()?.as_deref(), Some("ä"));
    /// assert_eq!(stdout.read_text()?, None);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn read_text(&mut self) -> Result<Option<String>> {
        loop {
            let bytes = &self.buffer[self.consumed..];
            let end = if self.finished {
                bytes.len()
            } else {
                complete_characters(bytes)
            };
            if end > 0 {
                let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
                self.consumed += end;
                return Ok(Some(text));
            }
            if self.finished {
                return Ok(None);
            }
            self.fill()?;
        }
    }

    /// Waits for more bytes or the end.
    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        let job = self.job.clone();
        job.context("follow", || {
            while !self.poll()? {}
            Ok(())
        })
    }

    /// Polls the job. Returns true if there are more bytes or this is the end.
    fn poll(&mut self) -> Result<bool> {
        if self.caught_up {
            self.poller.pause(&self.job, None);
        }
        let at = self.stream as usize;
        let mut offsets = [None; 2];
        offsets[at] = Some(self.offset);
        let mut polled = self.poller.poll(&self.job, offsets, None)?;
        self.caught_up = polled.is_whole();
        let new = std::mem::take(&mut polled.new[at]);
        self.offset += new.len() as u64;
        self.buffer.extend_from_slice(&new);
        // The output of a lost job is returned before the error.
        if self.caught_up && (new.is_empty() || polled.state != JobState::Lost) {
            self.finished = exit_status(polled.state)?.is_some();
        }
        Ok(self.finished || !new.is_empty())
    }
}

impl Read for JobOutput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.consumed == self.buffer.len() {
            if self.finished {
                return Ok(0);
            }
            self.fill().map_err(Error::into_io)?;
        }
        let count = (&self.buffer[self.consumed..]).read(buf)?;
        self.consumed += count;
        Ok(count)
    }
}

/// Returns the number of leading bytes that do not end in an incomplete character.
fn complete_characters(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let invalid = last.map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(invalid) {
        Err(e) if e.error_len().is_none() => bytes.len() - invalid.len(),
        _ => bytes.len(),
    }
}

impl fmt::Debug for JobOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unread = self.buffer.len() - self.consumed;
        f.debug_struct("JobOutput")
            .field("job", &self.job.id())
            .field("stream", &self.stream)
            .field("offset", &(self.offset - unread as u64))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_split() {
        let text = "aä€𝄞".as_bytes();
        for cut in 0..=text.len() {
            let end = complete_characters(&text[..cut]);
            assert!(std::str::from_utf8(&text[..end]).is_ok(), "{cut}");
            assert!(cut - end <= 3);
        }
        assert_eq!(complete_characters(b"a\xff"), 2);
        assert_eq!(complete_characters(b"a\xc3("), 3);
        assert_eq!(
            complete_characters(b"\xed\xa0"),
            2,
            "not a start of a character"
        );
    }
}
