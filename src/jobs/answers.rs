//! What the scripts of jobs answer.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::scripts::BLOCK;
use super::{JobInfo, JobState, JobStatus};
use crate::error::{Error, ErrorKind, Result};

/// What one look saw.
pub(super) struct Polled {
    pub(super) state: JobState,
    /// Of each stream, what follows the offset that was asked from.
    pub(super) new: [Vec<u8>; 2],
    /// Whether each stream has no more than that.
    whole: [bool; 2],
}

impl Polled {
    /// None if the answer is not a whole one.
    pub(super) fn parse(text: &str, from: [Option<u64>; 2], count: u64) -> Option<Polled> {
        let text = text.strip_suffix("-\n.\n")?;
        let (state, rest) = text.split_once('\n')?;
        let (stdout, stderr) = rest.split_once("-\n")?;
        let mut polled = Polled {
            state: parse_state(state)?,
            new: [decode(stdout)?, decode(stderr)?],
            whole: [true, true],
        };
        for ((bytes, whole), from) in polled.new.iter_mut().zip(&mut polled.whole).zip(from) {
            let Some(from) = from else { continue };
            *whole = (bytes.len() as u64) < count * BLOCK;
            // What is before the offset in its block.
            let known = usize::try_from(from % BLOCK).ok()?.min(bytes.len());
            bytes.drain(..known);
        }
        Some(polled)
    }

    /// Whether nothing more was there.
    pub(super) fn is_whole(&self) -> bool {
        self.whole == [true, true]
    }

    pub(super) fn write(
        &self,
        at: &mut [u64; 2],
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<()> {
        let put = |writer: &mut dyn Write, bytes: &[u8], at: &mut u64| -> io::Result<()> {
            *at += bytes.len() as u64;
            writer.write_all(bytes)?;
            match bytes {
                [] => Ok(()),
                _ => writer.flush(),
            }
        };
        let [stdout_at, stderr_at] = at;
        put(stdout, &self.new[0], stdout_at)
            .and_then(|()| put(stderr, &self.new[1], stderr_at))
            .map_err(|e| Error::io("cannot write the job's output", e))
    }
}

fn parse_state(text: &str) -> Option<JobState> {
    Some(match text.trim_end() {
        "running" => JobState::Running,
        "lost" => JobState::Lost,
        text => JobState::Exited(JobStatus(text.strip_prefix("exited ")?.parse().ok()?)),
    })
}

/// Base64 in lines.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut joined = Vec::with_capacity(text.len());
    for line in text.lines() {
        joined.extend_from_slice(line.as_bytes());
    }
    STANDARD.decode(joined).ok()
}

pub(super) fn parse_list(text: &str) -> Option<Vec<JobInfo>> {
    let text = text.strip_suffix(".\n")?;
    let jobs = text.split_terminator("-\n").map(|job| {
        let (line, command) = job.split_once('\n').unwrap_or((job, ""));
        let (id, rest) = line.split_once(' ')?;
        let (started, state) = rest.split_once(' ')?;
        let command = decode(command)?;
        let args = command
            .strip_suffix(b"\0")
            .unwrap_or(&command)
            .split(|b| *b == 0);
        Some(JobInfo {
            id: id.to_owned(),
            command: args
                .map(|arg| String::from_utf8_lossy(arg).into_owned())
                .collect(),
            started: UNIX_EPOCH.checked_add(Duration::from_secs(started.parse().ok()?))?,
            state: parse_state(state)?,
        })
    });
    jobs.collect()
}

pub(super) fn ended(state: JobState) -> Result<Option<JobStatus>> {
    match state {
        JobState::Running => Ok(None),
        JobState::Exited(status) => Ok(Some(status)),
        JobState::Lost => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "its keeper was killed, so nobody knows how it ended: by a limit of the sandbox, by another command there, or by a backend that ends what an exec leaves behind",
        )),
    }
}
