//! Messages between the library and the holder, one datagram each. Compiled into both, so both
//! always have the same version.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::encoding::{MessageReader, MessageWriter};

/// Maximum length of a datagram. Longer data is sent as a file.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// User and group id of commands inside the sandbox.
pub(crate) const SANDBOX_ID: u32 = 1000;

/// Settings of a sandbox, from the library. [`SetupFds`] are sent with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Creates private namespaces and a private root. Otherwise commands see the files at their
    /// path on the host.
    pub(crate) own_namespaces: bool,
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
    /// Resource limits of a command: number and value.
    pub(crate) rlimits: Vec<(u32, u64)>,
    /// CPU affinity of commands. Empty for all CPUs.
    pub(crate) cpus: Vec<u32>,
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
    Dir(String),
    File(String, Vec<u8>),
    /// A symbolic link: target, path.
    Link(String, String),
    /// A bind mount of a host path: host path, path.
    Bind(String, String),
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
    Failed {
        step: String,
        errno: i32,
    },
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
    /// Runs a command. [`ExecFds`] are sent with it.
    Exec {
        millis: u64,
        /// `None` if the payload is in a file.
        payload: Option<Payload>,
    },
    /// Returns the directory of the sandbox's files.
    Root,
    /// Restarts the TTL, with a new length in milliseconds if there is one.
    Touch(Option<u64>),
}

/// The descriptors that are sent with [`HolderRequest::Exec`].
#[derive(Debug)]
pub(crate) struct ExecFds {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// A file with the payload, if the message does not contain it.
    pub(crate) payload: Option<OwnedFd>,
}

impl ExecFds {
    /// Returns the descriptors in the order of the message.
    pub(crate) fn list(&self) -> Vec<BorrowedFd<'_>> {
        let streams = [self.stdout.as_fd(), self.stderr.as_fd()];
        let payload = self.payload.as_ref().map(AsFd::as_fd);
        streams.into_iter().chain(payload).collect()
    }

    /// Assigns received descriptors. Returns `None` if one is missing.
    pub(crate) fn from_list(fds: Vec<OwnedFd>) -> Option<ExecFds> {
        let mut fds = fds.into_iter();
        Some(ExecFds {
            stdout: fds.next()?,
            stderr: fds.next()?,
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

impl Setup {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MessageWriter::default();
        out.bool(self.own_namespaces);
        out.bool(self.on_disk);
        out.bool(self.bound_to_host);
        out.bool(self.listens);
        out.option(self.become_id.map(u64::from));
        out.u64(self.ttl_millis);
        out.bytes(self.hostname.as_bytes());
        out.list(&self.steps, |out, step| step.encode(out));
        out.bytes(self.data_options.as_bytes());
        out.list(&self.rules, |out, rule| {
            out.bytes(rule.path.as_bytes());
            out.bool(rule.write);
        });
        out.u32(self.min_landlock);
        out.bytes(&self.filter);
        out.list(&self.rlimits, |out, (resource, value)| {
            out.u32(*resource);
            out.u64(*value);
        });
        out.list(&self.cpus, |out, cpu| out.u32(*cpu));
        out.option(self.watched_memory);
        out.option(self.watched_storage);
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Setup> {
        let input = &mut MessageReader::new(bytes);
        Some(Setup {
            own_namespaces: input.bool()?,
            on_disk: input.bool()?,
            bound_to_host: input.bool()?,
            listens: input.bool()?,
            become_id: match input.option()? {
                Some(id) => Some(u32::try_from(id).ok()?),
                None => None,
            },
            ttl_millis: input.u64()?,
            hostname: input.string()?,
            steps: input.list(Step::decode)?,
            data_options: input.string()?,
            rules: input.list(|input| {
                Some(LandlockRule {
                    path: input.string()?,
                    write: input.bool()?,
                })
            })?,
            min_landlock: input.u32()?,
            filter: input.bytes()?.to_vec(),
            rlimits: input.list(|input| Some((input.u32()?, input.u64()?)))?,
            cpus: input.list(MessageReader::u32)?,
            watched_memory: input.option()?,
            watched_storage: input.option()?,
        })
    }
}

impl Step {
    /// Describes the step in the report of a failure.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Dir(_) => "create a directory of the root",
            Step::File(..) => "write a file of the root",
            Step::Link(..) => "create a link of the root",
            Step::Bind(..) => "bind a directory of the host",
            Step::Seal => "make the root read-only",
            Step::Device(..) => "bind a device",
            Step::Proc(_) => "mount /proc",
            Step::Mask(_) => "cover a file of /proc",
            Step::ReadOnly(_) => "make a part of /proc read-only",
            Step::Tmpfs(..) => "mount a tmpfs",
            Step::Data(..) => "bind the files of the sandbox",
        }
    }

    fn encode(&self, out: &mut MessageWriter) {
        let (tag, first, second): (u32, &[u8], &[u8]) = match self {
            Step::Dir(path) => (0, path.as_bytes(), b""),
            Step::File(path, content) => (1, path.as_bytes(), content),
            Step::Link(target, path) => (2, target.as_bytes(), path.as_bytes()),
            Step::Bind(from, to) => (3, from.as_bytes(), to.as_bytes()),
            Step::Seal => (4, b"", b""),
            Step::Device(from, to) => (5, from.as_bytes(), to.as_bytes()),
            Step::Proc(path) => (6, path.as_bytes(), b""),
            Step::Mask(path) => (7, path.as_bytes(), b""),
            Step::ReadOnly(path) => (8, path.as_bytes(), b""),
            Step::Tmpfs(path, options) => (9, path.as_bytes(), options.as_bytes()),
            Step::Data(name, path) => (10, name.as_bytes(), path.as_bytes()),
        };
        out.u32(tag);
        out.bytes(first);
        out.bytes(second);
    }

    fn decode(input: &mut MessageReader<'_>) -> Option<Step> {
        let tag = input.u32()?;
        let first = input.string()?;
        let content = input.bytes()?.to_vec();
        if tag == 1 {
            return Some(Step::File(first, content));
        }
        let second = String::from_utf8(content).ok()?;
        Some(match tag {
            0 => Step::Dir(first),
            2 => Step::Link(first, second),
            3 => Step::Bind(first, second),
            4 => Step::Seal,
            5 => Step::Device(first, second),
            6 => Step::Proc(first),
            7 => Step::Mask(first),
            8 => Step::ReadOnly(first),
            9 => Step::Tmpfs(first, second),
            10 => Step::Data(first, second),
            _ => return None,
        })
    }
}

impl StartReport {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MessageWriter::default();
        match self {
            StartReport::Started(pid) => {
                out.u32(0);
                out.u32(*pid);
            }
            StartReport::Ready(features) => {
                out.u32(1);
                out.bool(features.proc_mounted);
                out.u32(features.landlock);
            }
            StartReport::Failed { step, errno } => {
                out.u32(2);
                out.bytes(step.as_bytes());
                out.u32(*errno as u32);
            }
        }
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<StartReport> {
        let input = &mut MessageReader::new(bytes);
        Some(match input.u32()? {
            0 => StartReport::Started(input.u32()?),
            1 => StartReport::Ready(Features {
                proc_mounted: input.bool()?,
                landlock: input.u32()?,
            }),
            2 => StartReport::Failed {
                step: input.string()?,
                errno: input.u32()? as i32,
            },
            _ => return None,
        })
    }
}

impl HolderRequest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MessageWriter::default();
        match self {
            HolderRequest::Exec { millis, payload } => {
                out.u32(0);
                out.u64(*millis);
                out.bool(payload.is_some());
                if let Some(payload) = payload {
                    payload.write(&mut out);
                }
            }
            HolderRequest::Root => out.u32(1),
            HolderRequest::Touch(millis) => {
                out.u32(2);
                out.option(*millis);
            }
        }
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<HolderRequest> {
        let input = &mut MessageReader::new(bytes);
        Some(match input.u32()? {
            0 => HolderRequest::Exec {
                millis: input.u64()?,
                payload: if input.bool()? {
                    Some(Payload::read(input)?)
                } else {
                    None
                },
            },
            1 => HolderRequest::Root,
            2 => HolderRequest::Touch(input.option()?),
            _ => return None,
        })
    }
}

impl Payload {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MessageWriter::default();
        self.write(&mut out);
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Payload> {
        Payload::read(&mut MessageReader::new(bytes))
    }

    fn write(&self, out: &mut MessageWriter) {
        out.bytes(self.workdir.as_bytes());
        for list in [&self.args, &self.env, &self.path] {
            out.list(list, |out, text| out.bytes(text.as_bytes()));
        }
    }

    fn read(input: &mut MessageReader<'_>) -> Option<Payload> {
        Some(Payload {
            workdir: input.string()?,
            args: input.list(MessageReader::string)?,
            env: input.list(MessageReader::string)?,
            path: input.list(MessageReader::string)?,
        })
    }
}

impl HolderReply {
    pub(crate) fn encode(self) -> [u8; 8] {
        let (tag, value): (u32, i32) = match self {
            HolderReply::Done => (0, 0),
            HolderReply::Exited(code) => (1, code),
            HolderReply::Signaled(signal) => (2, signal),
            HolderReply::TimedOut => (3, 0),
            HolderReply::NotStarted(stage, errno) => (4 + stage as u32, errno),
        };
        let [a, b, c, d] = tag.to_le_bytes();
        let [e, f, g, h] = value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<HolderReply> {
        let input = &mut MessageReader::new(bytes);
        let (tag, value) = (input.u32()?, input.u32()? as i32);
        Some(match tag {
            0 => HolderReply::Done,
            1 => HolderReply::Exited(value),
            2 => HolderReply::Signaled(value),
            3 => HolderReply::TimedOut,
            4 => HolderReply::NotStarted(StartStage::Fork, value),
            5 => HolderReply::NotStarted(StartStage::Workdir, value),
            6 => HolderReply::NotStarted(StartStage::Lookup, value),
            7 => HolderReply::NotStarted(StartStage::Exec, value),
            _ => return None,
        })
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
            become_id: Some(7),
            ttl_millis: 900_000,
            hostname: "h".to_owned(),
            steps: vec![
                Step::Dir("a".to_owned()),
                Step::File("b".to_owned(), b"\xff\0".to_vec()),
                Step::Link("c".to_owned(), "d".to_owned()),
                Step::Bind("e".to_owned(), "f".to_owned()),
                Step::Seal,
                Step::Device("g".to_owned(), "h".to_owned()),
                Step::Proc("i".to_owned()),
                Step::Mask("j".to_owned()),
                Step::ReadOnly("k".to_owned()),
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
            cpus: vec![0, 3],
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
        let failed = StartReport::Failed {
            step: "s".to_owned(),
            errno: 1,
        };
        for report in [
            StartReport::Started(9),
            StartReport::Ready(features),
            failed,
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
            let exec = HolderRequest::Exec { millis: 5, payload };
            assert_eq!(HolderRequest::decode(&exec.encode()), Some(exec));
        }
        for request in [
            HolderRequest::Root,
            HolderRequest::Touch(None),
            HolderRequest::Touch(Some(3)),
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
        ] {
            assert_eq!(HolderReply::decode(&reply.encode()), Some(reply));
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
