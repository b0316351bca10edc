//! Messages between the library and the holder, one datagram each. Compiled into both, so both
//! always have the same version.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::encoding::{Encoding, encode_enum, encode_struct};

/// Maximum length of a datagram. Longer data is sent as a file.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// User and group id of commands inside the sandbox.
pub(crate) const SANDBOX_ID: u32 = 1000;

/// The directory of [`Setup::staged`], whose entries are named by their index.
pub(crate) const STAGED: &str = "/tmp/staged";

/// Settings of a sandbox, from the library. [`SetupFds`] are sent with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Creates private namespaces and a private root. Otherwise commands see the files at their
    /// path on the host.
    pub(crate) own_namespaces: bool,
    /// Uses the host's network instead of a private one.
    pub(crate) host_network: bool,
    /// Host paths that only root can reach. Before the user is switched, they are bound to
    /// [`STAGED`], in order.
    pub(crate) staged: Vec<String>,
    /// The files are in a directory on the host. Otherwise they are in memory.
    pub(crate) on_disk: bool,
    /// The sandbox ends with the process that created it.
    pub(crate) bound_to_host: bool,
    /// The holder accepts connections from other processes.
    pub(crate) listens: bool,
    /// User and group id to switch to first. Only set by root.
    pub(crate) become_id: Option<u32>,
    pub(crate) ttl_millis: u64,
    pub(crate) hostname: String,
    /// Steps that create the root, in order.
    pub(crate) steps: Vec<Step>,
    /// Mount options of the files, if they are in memory.
    pub(crate) data_options: String,
    pub(crate) rules: Vec<LandlockRule>,
    /// Minimum version of Landlock. 0 if it is optional.
    pub(crate) min_landlock: u32,
    /// The seccomp filter: an array of `struct sock_filter`.
    pub(crate) filter: Vec<u8>,
    /// Resource limits of the holder and of commands: number and value.
    pub(crate) rlimits: Vec<(u32, u64)>,
    /// Maximum number of processes. It limits only commands, so that the holder can always start one.
    pub(crate) max_processes: u64,
    /// CPU affinity of commands. Empty for all CPUs.
    pub(crate) cpus: Vec<u32>,
    /// Number of CPUs that commands may use.
    pub(crate) cpu_count: u64,
    /// Limit of the memory of all processes, if the holder must enforce it.
    pub(crate) watched_memory: Option<u64>,
    /// Limit of the size of all files on disk, if the holder must enforce it.
    pub(crate) watched_storage: Option<u64>,
}

/// The descriptors that are sent with a [`Setup`]. Each is present if its flag is set.
#[derive(Debug, Default)]
pub(crate) struct SetupFds {
    /// The directory for the files (`on_disk`).
    pub(crate) files_dir: Option<OwnedFd>,
    /// A pidfd of the process that the sandbox ends with (`bound_to_host`).
    pub(crate) host: Option<OwnedFd>,
    /// A listening socket (`listens`).
    pub(crate) listener: Option<OwnedFd>,
}

impl SetupFds {
    /// Returns the descriptors in the order of the message.
    pub(crate) fn list(&self) -> Vec<BorrowedFd<'_>> {
        let fds = [&self.files_dir, &self.host, &self.listener];
        fds.into_iter().flatten().map(AsFd::as_fd).collect()
    }

    /// Assigns received descriptors. Returns `None` if one is missing.
    pub(crate) fn from_list(setup: &Setup, fds: Vec<OwnedFd>) -> Option<SetupFds> {
        let mut fds = fds.into_iter();
        let mut next_if = |wanted| {
            if wanted {
                fds.next().map(Some)
            } else {
                Some(None)
            }
        };
        Some(SetupFds {
            files_dir: next_if(setup.on_disk)?,
            host: next_if(setup.bound_to_host)?,
            listener: next_if(setup.listens)?,
        })
    }
}

/// One step of creating the root. Paths in the new root are relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A directory and its parents, unless they exist.
    Dir(String),
    File(String, Vec<u8>),
    /// A symbolic link: target, path.
    Link(String, String),
    /// A bind mount of a host path: host path, path.
    Bind(String, String),
    /// The host's `/etc` below the files that exist in `etc`, without these entries.
    Etc(Vec<String>),
    /// Makes everything so far read-only, without devices and setuid programs.
    Seal,
    /// A bind mount of a device: host path, path.
    Device(String, String),
    /// A `/proc` of the sandbox's processes. The directory stays empty if the kernel refuses the
    /// mount.
    Proc(String),
    /// Covers a file or a directory, if it exists.
    Mask(String),
    /// Makes a path read-only, if it exists.
    ReadOnly(String),
    /// Private pseudo-terminals: path, mount options.
    Terminals(String, String),
    /// A tmpfs: path, mount options.
    Tmpfs(String, String),
    /// A bind mount of a directory of the sandbox's files: its name, path.
    Data(String, String),
}

/// Access to a path and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LandlockRule {
    pub(crate) path: String,
    /// Allows writing, creating and removing files. Reading and executing is always allowed.
    pub(crate) write: bool,
}

/// Report of a holder that starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StartReport {
    /// Process id on the host of the process that holds the sandbox. Sent with a pidfd of it.
    Started(u32),
    Ready(Features),
    /// The failed step and the errno.
    Failed(String, i32),
}

/// Optional features of the machine that the sandbox uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) proc_mounted: bool,
    /// The version of Landlock in force. 0 for none.
    pub(crate) landlock: u32,
}

/// A request to the holder, on a connection for its reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HolderRequest {
    /// Runs a command: timeout in milliseconds, payload, and whether there is a pipe for its stdin. The
    /// timeout is `None` if the caller keeps the time, and the payload if it is in a file. [`ExecFds`] are
    /// sent with it.
    Exec(Option<u64>, Option<Payload>, bool),
    /// Returns the directory of the sandbox's files.
    Root,
    /// Restarts the TTL, with a new length in milliseconds if there is one.
    Touch(Option<u64>),
    /// Counts the files, if their size is watched.
    StorageRoom,
}

/// A request to end a running command, on the connection of its [`HolderRequest::Exec`]. The end of the
/// connection cancels the command as well.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum EndRequest {
    Cancel,
    TimeOut,
}

/// The descriptors that are sent with [`HolderRequest::Exec`].
#[derive(Debug)]
pub(crate) struct ExecFds {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Otherwise stdin is empty.
    pub(crate) stdin: Option<OwnedFd>,
    /// A file with the payload, if the message does not contain it.
    pub(crate) payload: Option<OwnedFd>,
}

impl ExecFds {
    /// Returns the descriptors in the order of the message.
    pub(crate) fn list(&self) -> Vec<BorrowedFd<'_>> {
        let streams = [self.stdout.as_fd(), self.stderr.as_fd()];
        let optional = [&self.stdin, &self.payload].into_iter().flatten();
        streams
            .into_iter()
            .chain(optional.map(AsFd::as_fd))
            .collect()
    }

    /// Assigns received descriptors. Returns `None` if one is missing.
    pub(crate) fn from_list(fds: Vec<OwnedFd>, has_stdin: bool) -> Option<ExecFds> {
        let mut fds = fds.into_iter();
        Some(ExecFds {
            stdout: fds.next()?,
            stderr: fds.next()?,
            stdin: if has_stdin { Some(fds.next()?) } else { None },
            payload: fds.next(),
        })
    }
}

/// A command to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) workdir: String,
    pub(crate) args: Vec<String>,
    /// Variables as `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Absolute directories to search for the program.
    pub(crate) path: Vec<String>,
}

/// A reply of the holder.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum HolderReply {
    Done,
    Exited(i32),
    Signaled(i32),
    TimedOut,
    /// The command could not be started: the failed stage and the errno.
    NotStarted(StartStage, i32),
    /// The storage limit minus the size of all files, in bytes.
    StorageRoom(u64),
}

/// A limit whose excess has killed a process.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum ExceededLimit {
    Memory,
    Storage,
}

/// Resource usage of a command's processes.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub(crate) struct CommandUsage {
    pub(crate) cpu_micros: u64,
    /// Peak memory of the largest process, in bytes.
    pub(crate) peak_memory: u64,
    /// The last limit that has killed a process of the command.
    pub(crate) exceeded: Option<ExceededLimit>,
}

/// A stage of starting a command.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum StartStage {
    Fork,
    Workdir,
    /// The program is not in the path.
    Lookup,
    Exec,
}

/// Turns an error of a step into the report of it.
pub(crate) fn in_step<T>(step: &str, result: io::Result<T>) -> Result<T, StartReport> {
    result.map_err(|e| StartReport::Failed(step.to_owned(), e.raw_os_error().unwrap_or(0)))
}

impl Step {
    /// Describes the step in the report of a failure.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Dir(_) => "create a directory of the root",
            Step::File(..) => "write a file of the root",
            Step::Link(..) => "create a link of the root",
            Step::Bind(..) => "bind a directory of the host",
            Step::Etc(_) => "show /etc of the host",
            Step::Seal => "make the root read-only",
            Step::Device(..) => "bind a device",
            Step::Proc(_) => "mount /proc",
            Step::Mask(_) => "cover a file of /proc",
            Step::ReadOnly(_) => "make a part of /proc read-only",
            Step::Terminals(..) => "mount the pseudo-terminals",
            Step::Tmpfs(..) => "mount a tmpfs",
            Step::Data(..) => "bind the files of the sandbox",
        }
    }
}

encode_struct!(Setup {
    own_namespaces,
    host_network,
    staged,
    on_disk,
    bound_to_host,
    listens,
    become_id,
    ttl_millis,
    hostname,
    steps,
    data_options,
    rules,
    min_landlock,
    filter,
    rlimits,
    max_processes,
    cpus,
    cpu_count,
    watched_memory,
    watched_storage,
});

encode_enum!(Step {
    0 => Dir(path),
    1 => File(path, content),
    2 => Link(target, path),
    3 => Bind(from, to),
    4 => Seal,
    5 => Device(from, to),
    6 => Proc(path),
    7 => Mask(path),
    8 => ReadOnly(path),
    9 => Tmpfs(path, options),
    10 => Data(name, path),
    11 => Etc(hidden),
    12 => Terminals(path, options),
});

encode_struct!(LandlockRule { path, write });

encode_enum!(StartReport {
    0 => Started(pid),
    1 => Ready(features),
    2 => Failed(step, errno),
});

encode_struct!(Features {
    proc_mounted,
    landlock,
});

encode_enum!(HolderRequest {
    0 => Exec(millis, payload, has_stdin),
    1 => Root,
    2 => Touch(millis),
    3 => StorageRoom,
});

encode_enum!(EndRequest {
    0 => Cancel,
    1 => TimeOut,
});

encode_struct!(Payload {
    workdir,
    args,
    env,
    path,
});

/// Length of an encoded reply.
const REPLY: usize = 32;

impl HolderReply {
    /// Encodes the reply without allocating.
    pub(crate) fn encode(self, usage: &CommandUsage) -> [u8; REPLY] {
        let number = |value: i32| u64::from(value as u32);
        let (tag, value): (u32, u64) = match self {
            HolderReply::Done => (0, 0),
            HolderReply::Exited(code) => (1, number(code)),
            HolderReply::Signaled(signal) => (2, number(signal)),
            HolderReply::TimedOut => (3, 0),
            HolderReply::NotStarted(stage, errno) => (4 + stage as u32, number(errno)),
            HolderReply::StorageRoom(size) => (8, size),
        };
        let exceeded: u32 = match usage.exceeded {
            None => 0,
            Some(ExceededLimit::Memory) => 1,
            Some(ExceededLimit::Storage) => 2,
        };
        let mut bytes = [0; REPLY];
        bytes[..4].copy_from_slice(&tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&exceeded.to_le_bytes());
        bytes[8..16].copy_from_slice(&value.to_le_bytes());
        bytes[16..24].copy_from_slice(&usage.cpu_micros.to_le_bytes());
        bytes[24..].copy_from_slice(&usage.peak_memory.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<(HolderReply, CommandUsage)> {
        let (head, numbers) = bytes.split_at_checked(8)?;
        let (tag, exceeded) = <(u32, u32)>::decode(head)?;
        let (value, (cpu_micros, peak_memory)) = <(u64, (u64, u64))>::decode(numbers)?;
        let number = u32::try_from(value).ok().map(|value| value as i32);
        let reply = match tag {
            0 => HolderReply::Done,
            1 => HolderReply::Exited(number?),
            2 => HolderReply::Signaled(number?),
            3 => HolderReply::TimedOut,
            4 => HolderReply::NotStarted(StartStage::Fork, number?),
            5 => HolderReply::NotStarted(StartStage::Workdir, number?),
            6 => HolderReply::NotStarted(StartStage::Lookup, number?),
            7 => HolderReply::NotStarted(StartStage::Exec, number?),
            8 => HolderReply::StorageRoom(value),
            _ => return None,
        };
        let exceeded = match exceeded {
            0 => None,
            1 => Some(ExceededLimit::Memory),
            2 => Some(ExceededLimit::Storage),
            _ => return None,
        };
        let usage = CommandUsage {
            cpu_micros,
            peak_memory,
            exceeded,
        };
        Some((reply, usage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setup() -> Setup {
        Setup {
            on_disk: true,
            bound_to_host: true,
            host_network: true,
            staged: vec!["/root/x".to_owned()],
            become_id: Some(7),
            ttl_millis: 900_000,
            hostname: "h".to_owned(),
            steps: vec![
                Step::Dir("a".to_owned()),
                Step::File("b".to_owned(), b"\xff\0".to_vec()),
                Step::Link("c".to_owned(), "d".to_owned()),
                Step::Bind("e".to_owned(), "f".to_owned()),
                Step::Etc(vec!["e".to_owned()]),
                Step::Seal,
                Step::Device("g".to_owned(), "h".to_owned()),
                Step::Proc("i".to_owned()),
                Step::Mask("j".to_owned()),
                Step::ReadOnly("k".to_owned()),
                Step::Terminals("t".to_owned(), "u".to_owned()),
                Step::Tmpfs("l".to_owned(), "m".to_owned()),
                Step::Data("n".to_owned(), "o".to_owned()),
            ],
            data_options: "size=1m".to_owned(),
            rules: vec![LandlockRule {
                path: "/".to_owned(),
                write: false,
            }],
            filter: vec![6, 0, 0, 0, 0, 0, 255, 127],
            rlimits: vec![(1, u64::MAX)],
            max_processes: 512,
            cpus: vec![0, 3],
            cpu_count: 2,
            watched_memory: Some(1 << 30),
            ..Setup::default()
        }
    }

    #[test]
    fn messages_round_trip() {
        let setup = setup();
        assert_eq!(Setup::decode(&setup.encode()), Some(setup));
        let features = Features {
            proc_mounted: true,
            landlock: 7,
        };
        for report in [
            StartReport::Started(9),
            StartReport::Ready(features),
            StartReport::Failed("s".to_owned(), 1),
        ] {
            assert_eq!(StartReport::decode(&report.encode()), Some(report));
        }
        let payload = || Payload {
            workdir: "/w".to_owned(),
            args: vec!["a".to_owned(), String::new()],
            env: vec!["A=b".to_owned()],
            path: vec!["/bin".to_owned()],
        };
        assert_eq!(Payload::decode(&payload().encode()), Some(payload()));
        for payload in [None, Some(payload())] {
            let exec = HolderRequest::Exec(Some(5), payload, true);
            assert_eq!(HolderRequest::decode(&exec.encode()), Some(exec));
        }
        for request in [
            HolderRequest::Exec(None, None, false),
            HolderRequest::Root,
            HolderRequest::Touch(None),
            HolderRequest::Touch(Some(3)),
            HolderRequest::StorageRoom,
        ] {
            assert_eq!(HolderRequest::decode(&request.encode()), Some(request));
        }
        for reply in [
            HolderReply::Done,
            HolderReply::Exited(3),
            HolderReply::Signaled(9),
            HolderReply::TimedOut,
            HolderReply::NotStarted(StartStage::Fork, 11),
            HolderReply::NotStarted(StartStage::Workdir, 2),
            HolderReply::NotStarted(StartStage::Lookup, 2),
            HolderReply::NotStarted(StartStage::Exec, 13),
            HolderReply::StorageRoom(u64::MAX),
        ] {
            for exceeded in [
                None,
                Some(ExceededLimit::Memory),
                Some(ExceededLimit::Storage),
            ] {
                let usage = CommandUsage {
                    cpu_micros: 5,
                    peak_memory: 1 << 40,
                    exceeded,
                };
                let decoded = HolderReply::decode(&reply.encode(&usage));
                assert_eq!(decoded, Some((reply, usage)));
            }
        }
    }

    #[test]
    fn truncated_messages_are_rejected() {
        let whole = setup().encode();
        for length in 0..whole.len() {
            assert_eq!(Setup::decode(&whole[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Setup::decode(&bytes), HolderRequest::decode(&bytes), StartReport::decode(&bytes));
            let _ = (Payload::decode(&bytes), HolderReply::decode(&bytes));
        }
    }
}
