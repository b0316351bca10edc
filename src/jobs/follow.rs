//! Looking at a job again and again: when, for how long, and what of it was seen.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::answers::{Polled, ended};
use super::{Job, JobState, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::{Renewal, third};

/// The shortest pause between two looks, and the longest.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Until so long after the last news, pauses stay at `PROMPT` at most: what says something each second
/// is heard soon.
const LIVELY: Duration = Duration::from_millis(1250);
const PROMPT: Duration = Duration::from_millis(225);

/// How long looks may fail before that is the answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a look may go on after the caller's time is over.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// How often a sandbox of an unknown TTL is touched, and one of a long TTL.
const TOUCH_UNKNOWN: Duration = Duration::from_secs(30);
const TOUCH_LONGEST: Duration = Duration::from_secs(60);

/// How long to wait before the next look, by how long nothing was new.
fn pause_after(idle: Duration) -> Duration {
    let longest = if idle < LIVELY { PROMPT } else { LONGEST };
    (idle * 3).clamp(SHORTEST, longest)
}

/// Looks at a job until something ends that: keeps the sandbox alive, and bears with a backend that
/// is away for a while.
pub(super) struct Watch<'a> {
    job: &'a Job,
    deadline: Option<Instant>,
    pace: Pace,
}

/// What is remembered between two looks.
pub(super) struct Pace {
    news: Instant,
    /// Whether there was a look: one alone touches nothing.
    looked: bool,
    touched: Option<Instant>,
    renewal: Renewal,
}

impl Pace {
    fn new() -> Pace {
        Pace {
            news: Instant::now(),
            looked: false,
            touched: None,
            renewal: Renewal::default(),
        }
    }
}

impl<'a> Watch<'a> {
    pub(super) fn new(job: &'a Job, deadline: Option<Instant>) -> Watch<'a> {
        Watch {
            job,
            deadline,
            pace: Pace::new(),
        }
    }

    pub(super) fn poll(&mut self, from: [Option<u64>; 2]) -> Result<Polled> {
        self.pace.poll(self.job, from, self.deadline)
    }

    /// Waits before the next look; false if the time is over.
    pub(super) fn pause(&mut self) -> bool {
        let pause = self.pace.pause(self.job);
        let left = self
            .deadline
            .map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.unwrap_or(Duration::MAX);
        std::thread::sleep(pause.min(left));
        left > Duration::ZERO
    }
}

impl Pace {
    /// One look, tried again while the backend is away.
    fn poll(
        &mut self,
        job: &Job,
        from: [Option<u64>; 2],
        deadline: Option<Instant>,
    ) -> Result<Polled> {
        if std::mem::replace(&mut self.looked, true) {
            self.keep_alive(job);
        }
        let started = Instant::now();
        let mut pause = SHORTEST;
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            match job.poll(from, left.map(|left| left + LAST_LOOK)) {
                Ok(polled) => {
                    if polled.new.iter().any(|new| !new.is_empty()) {
                        self.news = Instant::now();
                    }
                    return Ok(polled);
                }
                Err(e) => {
                    let over =
                        started.elapsed() >= PATIENCE || left.is_some_and(|left| left < pause);
                    if over || !may_pass(&e) {
                        return Err(e);
                    }
                    log::debug!("job {} in sandbox {:?}: {e}", job.id, job.sandbox.id());
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// How long to wait before the next look.
    fn pause(&self, job: &Job) -> Duration {
        pause_after(self.news.elapsed()).min(touch_every(job))
    }

    /// Touches the sandbox when it is time to. Whether that worked shows in the next look: a backend
    /// may have no such call.
    fn keep_alive(&mut self, job: &Job) {
        let fresh = |touched: Instant| touched.elapsed() < touch_every(job);
        if !self.touched.is_some_and(fresh) {
            self.touched = Some(Instant::now());
            if let Err(e) = self.renewal.renew(&job.sandbox) {
                log::warn!("job {}: {e}", job.id);
            }
        }
    }
}

fn touch_every(job: &Job) -> Duration {
    let ttl = job.sandbox.time_to_live();
    ttl.map_or(TOUCH_UNKNOWN, |ttl| third(ttl).min(TOUCH_LONGEST))
}

/// Whether the same look may get an answer later. It changes nothing, so it may be sent again whatever
/// became of it.
fn may_pass(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Connect
        | ErrorKind::Timeout
        | ErrorKind::OutcomeUnknown
        | ErrorKind::NotReady
        // The script could not be run as it should: a sandbox at its limits.
        | ErrorKind::Io => true,
        ErrorKind::Status => error
            .status()
            .is_some_and(|status| status == 429 || status >= 500),
        _ => false,
    }
}

/// One of a job's outputs, from its first byte, as it comes. Its end is where the job has ended.
///
/// Bytes are as the job wrote them. As text, [`BufReader`](io::BufReader) has lines of it, and
/// [`read_text`](JobOutput::read_text) what there is. Where reading fails, the [`io::Error`] holds an
/// [`Error`].
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
    stream: Stream,
    pace: Pace,
    /// How much was read from the sandbox.
    offset: u64,
    /// Of that, what nobody has taken yet, from `taken` on.
    kept: Vec<u8>,
    taken: usize,
    /// There was no more at the last look.
    caught_up: bool,
    ended: bool,
}

impl JobOutput {
    pub(super) fn new(job: Job, stream: Stream) -> JobOutput {
        JobOutput {
            job,
            stream,
            pace: Pace::new(),
            offset: 0,
            kept: Vec::new(),
            taken: 0,
            caught_up: false,
            ended: false,
        }
    }

    /// The next piece as text, as soon as there is one; none at the end. A character that has come in
    /// part waits for its rest. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// As [`Job::copy_to`].
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
            let bytes = &self.kept[self.taken..];
            let end = match self.ended {
                true => bytes.len(),
                false => whole_characters(bytes),
            };
            if end > 0 {
                let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
                self.taken += end;
                return Ok(Some(text));
            }
            if self.ended {
                return Ok(None);
            }
            self.more()?;
        }
    }

    /// Waits for new bytes, or for the end.
    fn more(&mut self) -> Result<()> {
        self.kept.drain(..self.taken);
        self.taken = 0;
        let job = self.job.clone();
        job.named("follow", || {
            loop {
                if self.caught_up {
                    std::thread::sleep(self.pace.pause(&job));
                }
                let (from, at) = match self.stream {
                    Stream::Stdout => ([Some(self.offset), None], 0),
                    Stream::Stderr => ([None, Some(self.offset)], 1),
                };
                let mut polled = self.pace.poll(&job, from, None)?;
                self.caught_up = polled.is_whole();
                let new = std::mem::take(&mut polled.new[at]);
                self.offset += new.len() as u64;
                self.kept.extend_from_slice(&new);
                if self.caught_up && (new.is_empty() || polled.state != JobState::Lost) {
                    self.ended = ended(polled.state)?.is_some();
                }
                if self.ended || !new.is_empty() {
                    return Ok(());
                }
            }
        })
    }
}

impl Read for JobOutput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.taken == self.kept.len() {
            if self.ended {
                return Ok(0);
            }
            self.more().map_err(Error::into_io)?;
        }
        let got = buf.len().min(self.kept.len() - self.taken);
        buf[..got].copy_from_slice(&self.kept[self.taken..self.taken + got]);
        self.taken += got;
        Ok(got)
    }
}

/// How many bytes are whole characters, or can't become one.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has four bytes at most, so that only the last three can be the beginning of one.
    let start = bytes.len().saturating_sub(3);
    let cut = (start..bytes.len()).find(|at| {
        let needed = match bytes[*at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        bytes.len() - at < needed
            && matches!(std::str::from_utf8(&bytes[*at..]), Err(e) if e.error_len().is_none())
    });
    cut.unwrap_or(bytes.len())
}

impl fmt::Debug for JobOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobOutput")
            .field("job", &self.job.id)
            .field("stream", &self.stream)
            .field(
                "offset",
                &(self.offset - (self.kept.len() - self.taken) as u64),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_follower_asks_seldom_and_a_lively_one_soon() {
        let mut idle = Duration::ZERO;
        let mut looks = 0;
        while idle < Duration::from_secs(60) {
            let pause = pause_after(idle);
            assert!((SHORTEST..=LONGEST).contains(&pause));
            if idle < Duration::from_secs(1) {
                assert!(pause <= Duration::from_millis(225));
            }
            idle += pause;
            looks += 1;
        }
        // With two touches where the TTL is not known.
        assert!(looks <= 38, "{looks} in the first minute");
    }

    #[test]
    fn characters_are_never_split() {
        let text = "aä€𝄞".as_bytes();
        for cut in 0..=text.len() {
            let end = whole_characters(&text[..cut]);
            assert!(std::str::from_utf8(&text[..end]).is_ok(), "{cut}");
            assert!(cut - end <= 3);
        }
        assert_eq!(whole_characters(b"a\xff"), 2);
        assert_eq!(whole_characters(b"a\xc3("), 3);
        assert_eq!(
            whole_characters(b"\xed\xa0"),
            2,
            "no beginning of a character"
        );
    }
}
