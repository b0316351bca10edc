//! Fuzz target for the answers of the job scripts.

use super::info::{JobState, JobStatus};
use super::poll::{Polled, is_job_id, parse_list};
use super::scripts::BLOCK;
use crate::fuzz::input::Input;
use crate::fuzz::printed::base64_lines;

/// Parses an answer. The first byte chooses the kind of answer.
pub fn job_answers(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => any_poll(&mut input),
        1 => valid_poll(&mut input),
        2 => any_list(&String::from_utf8_lossy(input.0)),
        _ => valid_list(&mut input),
    }
}

/// A poll returns at most what was requested.
fn any_poll(input: &mut Input<'_>) {
    let (from, count) = request(input);
    let text = String::from_utf8_lossy(input.0);
    let Some(polled) = Polled::parse(&text, from, count) else {
        return;
    };
    for (at, new) in polled.new.iter().enumerate() {
        assert!(new.len() as u64 <= count * BLOCK);
        assert!(from[at].is_some() || new.is_empty());
    }
}

/// An answer as the script prints it returns the output. One that lacks a part returns nothing.
fn valid_poll(input: &mut Input<'_>) {
    let (from, count) = request(input);
    let (state, shown) = state(input);
    let cut = usize::from(input.u16());
    let streams = from.map(|from| Some(PolledStream::new(from?, count, input)));
    let text = poll_text(&shown, &streams);
    let polled = Polled::parse(&text, from, count).expect("the answer is complete");
    assert_eq!(polled.state, state);
    for (new, stream) in polled.new.iter().zip(&streams) {
        let expected = stream.as_ref().map_or(&[][..], PolledStream::new_bytes);
        assert_eq!(new, expected);
    }
    let cut = cut % (text.len() - 1);
    assert!(Polled::parse(&text[..cut], from, count).is_none(), "{cut}");
    for at in 0..2 {
        let mut streams = streams.clone();
        if streams[at].as_mut().and_then(|s| s.bytes.pop()).is_some() {
            let text = poll_text(&shown, &streams);
            assert!(Polled::parse(&text, from, count).is_none(), "{text}");
        }
    }
}

/// A stream in the answer to a poll.
#[derive(Clone)]
struct PolledStream {
    size: u64,
    /// The blocks that were requested.
    bytes: Vec<u8>,
    /// The number of bytes before the offset in its block.
    known: usize,
}

impl PolledStream {
    fn new(from: u64, count: u64, input: &mut Input<'_>) -> PolledStream {
        let start = from / BLOCK * BLOCK;
        let known = usize::try_from(from - start).unwrap_or(0);
        let mut bytes = vec![input.byte(); known];
        bytes.extend_from_slice(input.short_bytes());
        let size = start + bytes.len() as u64;
        bytes.truncate(usize::try_from(count * BLOCK).unwrap_or(usize::MAX));
        PolledStream { size, bytes, known }
    }

    fn new_bytes(&self) -> &[u8] {
        self.bytes.get(self.known..).unwrap_or_default()
    }
}

/// Returns what the script prints.
fn poll_text(state: &str, streams: &[Option<PolledStream>; 2]) -> String {
    let mut text = format!("{state}\n");
    for stream in streams {
        if let Some(stream) = stream {
            text.push_str(&format!("{}\n", stream.size));
            text.push_str(&base64_lines(&stream.bytes));
        }
        text.push_str("-\n");
    }
    text + ".\n"
}

/// Returns the offset in each stream that is requested, and the number of blocks.
fn request(input: &mut Input<'_>) -> ([Option<u64>; 2], u64) {
    let flags = input.byte();
    let mut offset = |wanted: bool| wanted.then(|| input.u64() >> 20);
    let from = [offset(flags & 1 != 0), offset(flags & 2 != 0)];
    (from, (flags >> 2).into())
}

fn state(input: &mut Input<'_>) -> (JobState, String) {
    let code = i32::from(input.byte());
    let state = match input.byte() % 3 {
        0 => JobState::Running,
        1 => JobState::Lost,
        _ => JobState::Exited(JobStatus::new(code)),
    };
    (state, state.to_string())
}

fn any_list(text: &str) {
    let (jobs, _) = parse_list(text);
    assert!(jobs.iter().all(|job| is_job_id(job.id())));
}

/// A list as the script prints it returns all jobs; a truncated one returns the first jobs.
fn valid_list(input: &mut Input<'_>) {
    let cut = input.u16();
    let mut text = String::new();
    let mut commands = Vec::new();
    while !input.is_empty() {
        let (_, state) = state(input);
        let started = input.u64() >> 20;
        let command = String::from_utf8_lossy(input.short_bytes()).into_owned();
        let id = format!("j{}", commands.len());
        text.push_str(&format!("{id} {started} {state}\n"));
        text.push_str(&base64_lines(format!("{command}\0").as_bytes()));
        text.push_str("-\n");
        commands.push(command.split('\0').map(str::to_owned).collect::<Vec<_>>());
    }
    text.push_str(".\n");
    let (jobs, complete) = parse_list(&text);
    assert!(complete);
    assert!(jobs.iter().map(|job| job.command()).eq(&commands));

    let cut = usize::from(cut) % (text.len() - 1);
    let (first, complete) = parse_list(&text[..cut]);
    assert!(!complete);
    assert_eq!(first, jobs[..first.len()]);
}
