//! The storage limit of files on disk. A child process counts their size.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mapping::Mapping;
use crate::memory_use::{has_memory, sum_of_mapped};
use crate::processes::{parent, read_proc, sandbox_processes, stat_fields, thread_dirs};
use crate::sys::isolation::file_system_space;
use crate::sys::process::{continue_process, exit, fork, pipe, stop_process};

/// Minimum time between two counts, and maximum time between two counts of few files.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A fall of the free space that is never a reason to count.
const NOISE: u64 = 16 << 20;

/// Maximum length of a counter's result, in bytes. Pipes pass so much at once.
const MAX_RESULT: usize = 4096;

/// Number of counts after which a process that cannot be inspected is not one that just starts.
const MIN_CONCEALED: u32 = 3;

pub(crate) struct DiskWatch {
    limit: u64,
    /// The size that the files may have: the limit, or what they had when processes were killed. So
    /// files can be removed from a sandbox that has exceeded the limit.
    allowed: u64,
    /// The size at the last count.
    used: u64,
    /// Most free bytes of the file system since the last count. The files cannot have grown by more
    /// than the difference to the present value.
    most_free: u64,
    counted: Instant,
    /// Duration of the last count.
    cost: Duration,
    concealment: Concealment,
    counter: Option<Counter>,
    /// A count that was asked for while another one ran.
    again: bool,
}

/// A running count.
struct Counter {
    process: u32,
    result: File,
    started: Instant,
    free_before: u64,
    /// Processes that were stopped, because the files could exceed the limit before the count ends.
    stopped: Option<Vec<u32>>,
}

/// Files without a name that the counter cannot see: their process cannot be inspected, or their descriptors are
/// in the queue of a socket. Their size is estimated by the free space of the file system.
struct Concealment {
    /// Free space and size of the files at the last count without such processes.
    free: u64,
    used: u64,
    /// Number of counts since then. A process that starts a program looks the same for a moment.
    counts: u32,
    /// Most that the files can have grown unseen since then.
    unseen: u64,
}

impl Concealment {
    fn none(free: u64, used: u64) -> Concealment {
        Concealment {
            free,
            used,
            counts: 0,
            unseen: 0,
        }
    }

    fn update(&mut self, free: u64, used: u64, is_possible: bool) {
        if !is_possible {
            *self = Concealment::none(free, used);
            return;
        }
        self.counts += 1;
        let written = self.free.saturating_sub(free);
        self.unseen = written.saturating_sub(used.saturating_sub(self.used));
    }
}

/// The result of a count.
pub(crate) struct Counted {
    /// The limit minus the size of the files.
    pub(crate) room: u64,
    /// The files exceed the limit, or a command has killed the counter. All processes must be killed.
    pub(crate) exceeds: bool,
    /// Processes that must be killed, because the files that they conceal may exceed the limit.
    pub(crate) concealing: Vec<u32>,
}

impl DiskWatch {
    pub(crate) fn new(limit: u64, data: &OwnedFd) -> DiskWatch {
        let free = free_space(data);
        DiskWatch {
            limit,
            allowed: limit,
            used: 0,
            most_free: free,
            concealment: Concealment::none(free, 0),
            counted: Instant::now(),
            cost: Duration::ZERO,
            counter: None,
            again: false,
        }
    }

    /// Returns the time until the next check: until the room could be used up.
    pub(crate) fn pause(&self) -> Duration {
        const BYTES_PER_MILLI: u64 = 4_000_000;
        let millis = self.room() / BYTES_PER_MILLI;
        Duration::from_millis(millis.clamp(10, 250))
    }

    fn room(&self) -> u64 {
        let room = self.allowed.saturating_sub(self.used);
        room.saturating_sub(self.concealment.unseen)
    }

    /// Starts a count if the free space has fallen by half of the room, or after some time. If a count
    /// takes too long for that, stops all processes until it ends, except the supervisors.
    pub(crate) fn check(&mut self, data: &OwnedFd, supervisors: &[u32]) {
        let free = free_space(data);
        self.most_free = self.most_free.max(free);
        let room = self.room();
        if let Some(counter) = &mut self.counter {
            let written = counter.free_before.saturating_sub(free);
            if counter.stopped.is_none() && written > room.max(NOISE) {
                let mut pids = sandbox_processes();
                pids.retain(|pid| *pid != counter.process && !supervisors.contains(pid));
                pids.iter().copied().for_each(stop_process);
                counter.stopped = Some(pids);
            }
            return;
        }
        let since = self.counted.elapsed();
        let fallen = self.most_free.saturating_sub(free);
        let pause = if fallen > (room / 2).max(NOISE) {
            MIN_PAUSE.max(self.cost * 2)
        } else {
            MAX_PAUSE.max(self.cost * 20)
        };
        if since >= pause {
            self.count(data, supervisors);
        }
    }

    /// Starts a count. If one runs already, another one follows.
    pub(crate) fn count(&mut self, data: &OwnedFd, supervisors: &[u32]) {
        self.again = self.counter.is_some();
        if self.again {
            return;
        }
        let free_before = free_space(data);
        // Fails if the process limit is reached. The next check tries again.
        if let Ok((process, result)) = start_counter(data, supervisors) {
            self.most_free = free_before;
            self.counter = Some(Counter {
                process,
                result,
                started: Instant::now(),
                free_before,
                stopped: None,
            });
        }
    }

    /// Returns the descriptor that is readable when a count has ended.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.counter.as_ref().map(|counter| counter.result.as_fd())
    }

    /// Takes the result of a count that has ended. Starts the next one if it was asked for.
    pub(crate) fn take(&mut self, data: &OwnedFd, supervisors: &[u32]) -> Option<Counted> {
        let mut counter = self.counter.take()?;
        let (size, concealing) = read_count(&mut counter.result);
        self.counted = Instant::now();
        self.cost = self.counted - counter.started;
        if size <= self.allowed {
            let stopped = counter.stopped.into_iter().flatten();
            stopped.for_each(continue_process);
        }
        if std::mem::take(&mut self.again) {
            self.count(data, supervisors);
        }
        let exceeds = size > self.allowed;
        // The size is unknown if the counter was killed.
        self.used = if size == u64::MAX { self.used } else { size };
        self.allowed = self.limit.max(self.used);
        let is_possible = !concealing.is_empty();
        self.concealment
            .update(counter.free_before, self.used, is_possible);
        let is_full = self.concealment.counts >= MIN_CONCEALED
            && self.concealment.unseen > self.allowed - self.used;
        Some(Counted {
            room: self.limit.saturating_sub(self.used),
            exceeds,
            concealing: if is_full { concealing } else { Vec::new() },
        })
    }
}

fn free_space(data: &OwnedFd) -> u64 {
    file_system_space(data.as_fd()).map_or(u64::MAX, |space| space.free)
}

/// Forks a process that counts the files. It writes their size to a pipe, and then the ids of the processes
/// that may conceal files.
fn start_counter(data: &OwnedFd, supervisors: &[u32]) -> io::Result<(u32, File)> {
    let (reader, writer) = pipe()?;
    let pids = sandbox_processes();
    if let Some(process) = fork()? {
        return Ok((process, reader.into()));
    }
    let mut count = FileCount::default();
    let dirs = ["workspace", "tmp"].map(|dir| count.add_dir(dir.into()));
    // Uploads. Without namespaces they cannot be read.
    let _ = count.add_dir(format!("/proc/self/fd/{}/stages", data.as_raw_fd()).into());
    count.add_unlinked(&pids, supervisors);
    // A directory that cannot be read may hide files.
    let readable = dirs.iter().all(io::Result::is_ok);
    let size = if readable { count.size } else { u64::MAX };
    let pids = count.concealing.iter().flat_map(|pid| pid.to_le_bytes());
    let result = size.to_le_bytes().into_iter().chain(pids);
    let result: Vec<u8> = result.take(MAX_RESULT).collect();
    let _ = File::from(writer).write_all(&result);
    exit(0)
}

/// Reads the result of a counter. The size is `u64::MAX` if it was killed.
fn read_count(result: &mut File) -> (u64, Vec<u32>) {
    let mut bytes = [0; MAX_RESULT];
    // Not to the end of the pipe, because a command can stop the counter.
    let length = result.read(&mut bytes).unwrap_or(0);
    let Some((size, pids)) = bytes[..length].split_first_chunk() else {
        return (u64::MAX, Vec::new());
    };
    let pids = pids.chunks_exact(4);
    let pids = pids.filter_map(|pid| Some(u32::from_le_bytes(pid.try_into().ok()?)));
    (u64::from_le_bytes(*size), pids.collect())
}

/// The size of files, each counted once.
#[derive(Default)]
struct FileCount {
    size: u64,
    /// Device and inode of the files that have several names, or none.
    seen: HashSet<(u64, u64)>,
    /// Processes that may have files that cannot be seen.
    concealing: Vec<u32>,
}

impl FileCount {
    fn add(&mut self, file: &Metadata) {
        // Empty files take space too.
        const MIN_FILE: u64 = 4096;
        let is_new =
            file.nlink() == 1 || file.is_dir() || self.seen.insert((file.dev(), file.ino()));
        if is_new {
            self.size += (file.blocks() * 512).max(MIN_FILE);
        }
    }

    /// Adds everything below a directory.
    fn add_dir(&mut self, dir: PathBuf) -> io::Result<()> {
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            match read_any_dir(&dir) {
                Ok(entries) => dirs.extend(self.add_entries(entries)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Adds the entries of a directory, and returns the directories among them.
    fn add_entries(&mut self, entries: fs::ReadDir) -> Vec<PathBuf> {
        let mut dirs = Vec::new();
        // A file may have been removed.
        let found = entries
            .flatten()
            .filter_map(|e| Some((e.metadata().ok()?, e)));
        for (metadata, entry) in found {
            self.add(&metadata);
            if metadata.is_dir() {
                dirs.push(entry.path());
            }
        }
        dirs
    }

    /// Adds files without a name that a thread has open. Returns true if it may conceal others.
    fn add_open(&mut self, thread: &str) -> bool {
        let fds = match fs::read_dir(format!("{thread}/fd")) {
            Ok(fds) => fds.flatten(),
            // A process that ends has no memory any more.
            Err(e) => return e.kind() == io::ErrorKind::PermissionDenied && has_memory(thread),
        };
        let mut conceals = false;
        for fd in fds {
            let Ok(file) = fs::metadata(fd.path()) else {
                continue;
            };
            if file.is_file() && file.nlink() == 0 {
                self.add(&file);
            }
            if file.file_type().is_socket() {
                conceals |= has_queued_descriptors(thread, &fd.file_name());
            }
        }
        conceals
    }

    /// Adds files without a name that a process has open or mapped.
    fn add_unlinked(&mut self, pids: &[u32], supervisors: &[u32]) {
        let mut mapped: HashMap<u64, u64> = HashMap::new();
        // Neither a supervisor nor the new process of its command can be inspected. Once that has executed its
        // program, the supervisor sleeps until a child ends.
        let is_starting =
            |pid: &&u32| stat_fields(**pid).is_some_and(|stat| !stat.starts_with('S'));
        let starting: Vec<u32> = supervisors.iter().filter(is_starting).copied().collect();
        for pid in pids.iter().filter(|pid| !supervisors.contains(pid)) {
            // Threads can have descriptors of their own, and outlive the first one with its memory.
            let threads = thread_dirs(*pid);
            let conceals = threads.iter().filter(|dir| self.add_open(dir)).count();
            if conceals > 0 && !parent(*pid).is_some_and(|parent| starting.contains(&parent)) {
                self.concealing.push(*pid);
            }
            let maps = threads
                .iter()
                .filter_map(|dir| read_proc(format!("{dir}/maps")).ok());
            let maps = maps.into_iter().find(|maps| !maps.is_empty());
            let maps = maps.unwrap_or_default();
            for (inode, end) in maps.lines().filter_map(unlinked_mapping) {
                let largest = mapped.entry(inode).or_default();
                *largest = (*largest).max(end);
            }
        }
        let open: HashSet<u64> = self.seen.iter().map(|(_, inode)| *inode).collect();
        let mapped = mapped.into_iter();
        let closed = mapped.filter(|(inode, _)| !open.contains(inode));
        let size = sum_of_mapped(closed.map(|(_, end)| end));
        self.size = self.size.saturating_add(size);
    }
}

/// Returns true if descriptors that were sent to a Unix socket have not been received. Old kernels do not show
/// their number.
fn has_queued_descriptors(thread: &str, fd: &OsStr) -> bool {
    let info = read_proc(format!("{thread}/fdinfo/{}", fd.to_string_lossy()));
    let info = info.unwrap_or_default();
    let count = info.lines().find_map(|line| line.strip_prefix("scm_fds:"));
    count.is_some_and(|count| count.trim() != "0")
}

/// Parses a line of `/proc/PID/maps`. Returns the inode of a file without a name, and the position in it
/// where the mapping ends.
fn unlinked_mapping(line: &str) -> Option<(u64, u64)> {
    let mapping = Mapping::parse(line)?;
    let path = mapping.path.strip_suffix(" (deleted)")?;
    // The memory limit covers shared memory without a file.
    let is_memory = ["/dev/", "/SYSV", "/memfd:"];
    let is_memory = is_memory.iter().any(|start| path.starts_with(start));
    (!is_memory).then_some((mapping.inode, mapping.end))
}

/// Reads a directory, after restoring its owner's permissions if necessary.
fn read_any_dir(dir: &Path) -> io::Result<fs::ReadDir> {
    fs::read_dir(dir).or_else(|_| {
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
        fs::read_dir(dir)
    })
}
