//! What the scripts of jobs answer.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::scripts::BLOCK;
use super::{JobInfo, JobState, JobStatus, is_id};
use crate::error::{Error, ErrorKind, Result};

/// What one look saw.
pub(super) struct Polled {
    pub(super) state: JobState,
    /// Of each stream, what follows the offset that was asked from.
    pub(super) new: [Vec<u8>; 2],
    /// How long each stream was, if it was asked for.
    pub(super) size: [u64; 2],
    /// Whether each stream has no more than that.
    whole: [bool; 2],
}

impl Polled {
    /// None if the answer is not a whole one.
    pub(super) fn parse(text: &str, from: [Option<u64>; 2], count: u64) -> Option<Polled> {
        // Some backends take the last newline away.
        let text = text.trim_end().strip_suffix("-\n.")?;
        let (state, rest) = text.split_once('\n')?;
        let (stdout, stderr) = rest.split_once("-\n")?;
        let mut polled = Polled {
            state: parse_state(state)?,
            new: Default::default(),
            size: [0, 0],
            whole: [true, true],
        };
        for (at, text) in [stdout, stderr].into_iter().enumerate() {
            let Some(from) = from[at] else { continue };
            let (size, text) = text.split_once('\n')?;
            let (size, mut bytes) = (size.trim().parse::<u64>().ok()?, decode(text)?);
            let (got, most) = (bytes.len() as u64, count * BLOCK);
            let wanted = size.saturating_sub(from / BLOCK * BLOCK).min(most);
            if got != wanted {
                return None;
            }
            // What is before the offset in its block.
            let known = usize::try_from(from % BLOCK).ok()?.min(bytes.len());
            bytes.drain(..known);
            polled.new[at] = bytes;
            polled.size[at] = size;
            polled.whole[at] = got < most;
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

/// The jobs that are whole in it, and whether these are all.
pub(super) fn parse_list(text: &str) -> (Vec<JobInfo>, bool) {
    let text = text.trim_end();
    let all = text == "." || text.ends_with("-\n.");
    // After the last one stands the end, or what was cut.
    let mut parts: Vec<&str> = text.split("-\n").collect();
    parts.pop();
    let jobs: Vec<_> = parts.iter().map_while(|job| parse_job(job)).collect();
    let all = all && jobs.len() == parts.len();
    (jobs, all)
}

fn parse_job(text: &str) -> Option<JobInfo> {
    let (line, command) = text.split_once('\n')?;
    let (id, rest) = line.split_once(' ')?;
    let (started, state) = rest.split_once(' ')?;
    let command = decode(command)?;
    let args = command.strip_suffix(b"\0").unwrap_or(&command);
    Some(JobInfo {
        id: Some(id).filter(|id| is_id(id))?.to_owned(),
        command: args
            .split(|b| *b == 0)
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect(),
        started: UNIX_EPOCH.checked_add(Duration::from_secs(started.parse().ok()?))?,
        state: parse_state(state)?,
    })
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
