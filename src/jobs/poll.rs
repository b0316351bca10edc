//! Parsing the output of the job scripts.

use std::time::{Duration, UNIX_EPOCH};

use super::info::{JobInfo, JobState, JobStatus};
use super::scripts::BLOCK;
use crate::error::{Error, ErrorKind, Result};
use crate::script::decode_base64_lines;

/// The result of one poll.
pub(super) struct Polled {
    pub(super) state: JobState,
    /// For each stream, the bytes after the requested offset.
    pub(super) new: [Vec<u8>; 2],
    /// The length of each requested stream.
    pub(super) size: [u64; 2],
    /// True for streams without more bytes than that.
    whole: [bool; 2],
}

impl Polled {
    /// Parses the output of the script, or returns `None` if it is truncated.
    pub(super) fn parse(text: &str, from: [Option<u64>; 2], count: u64) -> Option<Polled> {
        // Some backends strip the last newline.
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
            let (size, mut bytes) = (size.trim().parse::<u64>().ok()?, decode_base64_lines(text)?);
            let (got, most) = (bytes.len() as u64, count * BLOCK);
            let wanted = size.saturating_sub(from / BLOCK * BLOCK).min(most);
            if got != wanted {
                return None;
            }
            // Skip the bytes before the offset in its block.
            let known = usize::try_from(from % BLOCK).ok()?.min(bytes.len());
            bytes.drain(..known);
            polled.new[at] = bytes;
            polled.size[at] = size;
            polled.whole[at] = got < most;
        }
        Some(polled)
    }

    /// Returns true if neither stream had more bytes.
    pub(super) fn is_whole(&self) -> bool {
        self.whole == [true, true]
    }
}

fn parse_state(text: &str) -> Option<JobState> {
    Some(match text.trim_end() {
        "running" => JobState::Running,
        "lost" => JobState::Lost,
        text => JobState::Exited(JobStatus::new(text.strip_prefix("exited ")?.parse().ok()?)),
    })
}

/// Returns true for the id of a job: letters and digits.
pub(super) fn is_job_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Parses a list of jobs. Returns the complete ones, and whether these are all.
pub(super) fn parse_list(text: &str) -> (Vec<JobInfo>, bool) {
    let text = text.trim_end();
    let all = text == "." || text.ends_with("-\n.");
    // The last part is the end marker, or a truncated job.
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
    let command = decode_base64_lines(command)?;
    let args = command.strip_suffix(b"\0").unwrap_or(&command);
    Some(JobInfo {
        id: Some(id).filter(|id| is_job_id(id))?.to_owned(),
        command: args
            .split(|b| *b == 0)
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect(),
        started: UNIX_EPOCH.checked_add(Duration::from_secs(started.parse().ok()?))?,
        state: parse_state(state)?,
    })
}

/// Returns the exit code of a job that has finished.
pub(super) fn exit_status(state: JobState) -> Result<Option<JobStatus>> {
    match state {
        JobState::Running => Ok(None),
        JobState::Exited(status) => Ok(Some(status)),
        JobState::Lost => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "the exit code of the job is unknown: the process that waits for it was killed by a limit of the sandbox, by another command, or by a backend that kills what outlives an exec",
        )),
    }
}
