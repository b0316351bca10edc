//! The System V objects of the sandbox. They use memory even after the processes that created them have
//! ended.

use std::fs;

use crate::sys::process::{remove_message_queue, remove_segment, remove_semaphores};

/// Memory that the kernel needs for an object, a message or a semaphore, in bytes.
const QUEUE: u64 = 256;
const MESSAGE: u64 = 64;
const SEMAPHORE: u64 = 64;

/// Returns the memory of all objects, in bytes.
pub(crate) fn size() -> u64 {
    let [segments, queues, semaphores] = ["shm", "msg", "sem"].map(read_table);
    let queue_size = |queue: &Table<'_>| {
        let messages = queue.column("cbytes") + queue.column("qnum") * MESSAGE;
        messages + queue.rows() * QUEUE
    };
    let segments = Table::parse(&segments).column("rss");
    let semaphores = Table::parse(&semaphores).column("nsems") * SEMAPHORE;
    segments + queue_size(&Table::parse(&queues)) + semaphores
}

/// Removes all objects. Memory that a process has attached is freed when it ends.
pub(crate) fn remove_all() {
    let ids = |table, column| {
        let ids = Table::parse(&read_table(table)).values(column).into_iter();
        ids.filter_map(|id| i32::try_from(id).ok())
            .collect::<Vec<_>>()
    };
    ids("shm", "shmid").into_iter().for_each(remove_segment);
    ids("msg", "msqid")
        .into_iter()
        .for_each(remove_message_queue);
    ids("sem", "semid").into_iter().for_each(remove_semaphores);
}

fn read_table(name: &str) -> String {
    fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap_or_default()
}

/// A table of `/proc/sysvipc`: a line of names, then a line per object.
struct Table<'a> {
    names: Vec<&'a str>,
    lines: Vec<&'a str>,
}

impl Table<'_> {
    fn parse(text: &str) -> Table<'_> {
        let mut lines = text.lines();
        Table {
            names: lines
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect(),
            lines: lines.collect(),
        }
    }

    fn rows(&self) -> u64 {
        self.lines.len() as u64
    }

    fn values(&self, name: &str) -> Vec<u64> {
        let Some(column) = self.names.iter().position(|found| *found == name) else {
            return Vec::new();
        };
        let fields = self
            .lines
            .iter()
            .filter_map(|line| line.split_whitespace().nth(column));
        fields.filter_map(|field| field.parse().ok()).collect()
    }

    /// Returns the sum of a column.
    fn column(&self, name: &str) -> u64 {
        self.values(name).iter().sum()
    }
}
