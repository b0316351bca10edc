//! What the library and the holder say to each other, one datagram each. Compiled into both, so
//! they never disagree.

/// The longest datagram. What is longer travels in a file.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// The user and the group that commands run as, by their numbers inside.
pub(crate) const SANDBOX_ID: u32 = 1000;

/// What a holder is to make of itself. Its descriptors come with it, in the order of the flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    /// In namespaces of its own, with a root of its own. Else its files are where they are on the
    /// machine.
    pub(crate) own_namespaces: bool,
    /// With a directory for the files of the sandbox; else they are in memory.
    pub(crate) on_disk: bool,
    /// With a pidfd of the process that the sandbox ends with.
    pub(crate) tied: bool,
    /// With a listening socket, for other processes.
    pub(crate) listens: bool,
    /// The id to become before anything else; for root.
    pub(crate) become_id: Option<u32>,
    pub(crate) ttl_millis: u64,
    pub(crate) hostname: String,
    /// How the root is made, in order.
    pub(crate) steps: Vec<Step>,
    /// Mount options of the files in memory.
    pub(crate) data_options: String,
    /// What Landlock lets a command do, by path.
    pub(crate) rules: Vec<Rule>,
    /// The first version of Landlock that will do; 0 if it is not needed.
    pub(crate) least_landlock: u32,
    /// Struct `sock_filter`s.
    pub(crate) filter: Vec<u8>,
    /// Resource limits of a command: number and value.
    pub(crate) rlimits: Vec<(u32, u64)>,
    /// The only CPUs of a command, if not all.
    pub(crate) cpus: Vec<u32>,
    /// How much memory all processes may hold together, where the holder has to watch it.
    pub(crate) watched_memory: Option<u64>,
    /// How much the files may take on disk, where the holder has to watch it.
    pub(crate) watched_storage: Option<u64>,
}

/// One step of making the root. Paths of the new root are relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Dir(String),
    File(String, Vec<u8>),
    /// A symbolic link: its target, its path.
    Link(String, String),
    /// Something of the machine: its path there, its path here.
    Bind(String, String),
    /// All so far becomes read-only, with no devices and no setuid programs.
    Seal,
    /// As Bind, for a device.
    Device(String, String),
    /// Processes of the sandbox; may be refused, then it stays empty.
    Proc(String),
    /// Covers a file or an empties a directory, where there is one.
    Mask(String),
    /// Can be read only from here on, where there is one.
    ReadOnly(String),
    /// Files in memory: the path, the mount options.
    Tmpfs(String, String),
    /// A directory of the sandbox's files: its name among them, its path here.
    Data(String, String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) path: String,
    /// Files may be written, made and removed; else only read and run.
    pub(crate) write: bool,
}

/// What the holder says of its start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With a pidfd: this is the sandbox's first process, by its number out here.
    Born(u32),
    Ready(Found),
    Failed {
        step: String,
        errno: i32,
    },
}

/// What the machine has of that which a sandbox can do without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) proc_mounted: bool,
    /// The Landlock version in force, 0 for none.
    pub(crate) landlock: u32,
}

/// What is asked of a holder, on a connection of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// With the descriptors for stdout and stderr; and if the payload is not in the message, with
    /// a file that holds it.
    Exec {
        millis: u64,
        payload: Option<Payload>,
    },
    /// The directory of the sandbox's files.
    Root,
    /// The time to live starts again; with another length, in milliseconds, if there is one.
    Touch(Option<u64>),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) workdir: String,
    pub(crate) args: Vec<String>,
    /// `NAME=value`, as execve takes it.
    pub(crate) env: Vec<String>,
    /// Absolute directories to look for the program in.
    pub(crate) path: Vec<String>,
}

/// What comes back.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Answer {
    Done,
    Exited(i32),
    Signaled(i32),
    TimedOut,
    /// The command could not be started: where, and the errno.
    NotStarted(Stage, i32),
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Stage {
    Fork,
    Workdir,
    /// The program was not found in the path.
    Lookup,
    Exec,
}

impl Setup {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bool(self.own_namespaces);
        out.bool(self.on_disk);
        out.bool(self.tied);
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
        out.u32(self.least_landlock);
        out.bytes(&self.filter);
        out.list(&self.rlimits, |out, (resource, value)| {
            out.u32(*resource);
            out.u64(*value);
        });
        out.list(&self.cpus, |out, cpu| out.u32(*cpu));
        out.option(self.watched_memory);
        out.option(self.watched_storage);
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Setup> {
        let input = &mut Reader(bytes);
        Some(Setup {
            own_namespaces: input.bool()?,
            on_disk: input.bool()?,
            tied: input.bool()?,
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
                Some(Rule {
                    path: input.string()?,
                    write: input.bool()?,
                })
            })?,
            least_landlock: input.u32()?,
            filter: input.bytes()?.to_vec(),
            rlimits: input.list(|input| Some((input.u32()?, input.u64()?)))?,
            cpus: input.list(Reader::u32)?,
            watched_memory: input.option()?,
            watched_storage: input.option()?,
        })
    }
}

impl Step {
    /// For the report of a failure.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Dir(_) => "make a directory of the root",
            Step::File(..) => "write a file of the root",
            Step::Link(..) => "make a link of the root",
            Step::Bind(..) => "bind a directory of the machine",
            Step::Seal => "make the root read-only",
            Step::Device(..) => "bind a device",
            Step::Proc(_) => "mount /proc",
            Step::Mask(_) => "cover a file of /proc",
            Step::ReadOnly(_) => "make a part of /proc read-only",
            Step::Tmpfs(..) => "mount a tmpfs",
            Step::Data(..) => "bind the files of the sandbox",
        }
    }

    fn encode(&self, out: &mut Writer) {
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

    fn decode(input: &mut Reader<'_>) -> Option<Step> {
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

impl Start {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Start::Born(pid) => {
                out.u32(0);
                out.u32(*pid);
            }
            Start::Ready(found) => {
                out.u32(1);
                out.bool(found.proc_mounted);
                out.u32(found.landlock);
            }
            Start::Failed { step, errno } => {
                out.u32(2);
                out.bytes(step.as_bytes());
                out.u32(*errno as u32);
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Start> {
        let input = &mut Reader(bytes);
        Some(match input.u32()? {
            0 => Start::Born(input.u32()?),
            1 => Start::Ready(Found {
                proc_mounted: input.bool()?,
                landlock: input.u32()?,
            }),
            2 => Start::Failed {
                step: input.string()?,
                errno: input.u32()? as i32,
            },
            _ => return None,
        })
    }
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Request::Exec { millis, payload } => {
                out.u32(0);
                out.u64(*millis);
                out.bool(payload.is_some());
                if let Some(payload) = payload {
                    payload.write(&mut out);
                }
            }
            Request::Root => out.u32(1),
            Request::Touch(millis) => {
                out.u32(2);
                out.option(*millis);
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Request> {
        let input = &mut Reader(bytes);
        Some(match input.u32()? {
            0 => Request::Exec {
                millis: input.u64()?,
                payload: match input.bool()? {
                    true => Some(Payload::read(input)?),
                    false => None,
                },
            },
            1 => Request::Root,
            2 => Request::Touch(input.option()?),
            _ => return None,
        })
    }
}

impl Payload {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.write(&mut out);
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Payload> {
        Payload::read(&mut Reader(bytes))
    }

    fn write(&self, out: &mut Writer) {
        out.bytes(self.workdir.as_bytes());
        for list in [&self.args, &self.env, &self.path] {
            out.list(list, |out, text| out.bytes(text.as_bytes()));
        }
    }

    fn read(input: &mut Reader<'_>) -> Option<Payload> {
        Some(Payload {
            workdir: input.string()?,
            args: input.list(Reader::string)?,
            env: input.list(Reader::string)?,
            path: input.list(Reader::string)?,
        })
    }
}

impl Answer {
    pub(crate) fn encode(self) -> [u8; 8] {
        let (tag, value): (u32, i32) = match self {
            Answer::Done => (0, 0),
            Answer::Exited(code) => (1, code),
            Answer::Signaled(signal) => (2, signal),
            Answer::TimedOut => (3, 0),
            Answer::NotStarted(stage, errno) => (4 + stage as u32, errno),
        };
        let [a, b, c, d] = tag.to_le_bytes();
        let [e, f, g, h] = value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Answer> {
        let input = &mut Reader(bytes);
        let (tag, value) = (input.u32()?, input.u32()? as i32);
        Some(match tag {
            0 => Answer::Done,
            1 => Answer::Exited(value),
            2 => Answer::Signaled(value),
            3 => Answer::TimedOut,
            4 => Answer::NotStarted(Stage::Fork, value),
            5 => Answer::NotStarted(Stage::Workdir, value),
            6 => Answer::NotStarted(Stage::Lookup, value),
            7 => Answer::NotStarted(Stage::Exec, value),
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn option(&mut self, value: Option<u64>) {
        self.bool(value.is_some());
        self.u64(value.unwrap_or(0));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Writer, &T)) {
        self.u64(items.len() as u64);
        items.iter().for_each(|item| each(self, item));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn bool(&mut self) -> Option<bool> {
        self.take(1).map(|byte| byte == [1])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn option(&mut self) -> Option<Option<u64>> {
        let there = self.bool()?;
        let value = self.u64()?;
        Some(there.then_some(value))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u64()?).ok()?;
        self.take(length)
    }

    fn string(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn list<T>(&mut self, mut each: impl FnMut(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u64()?;
        // No more is set aside than the message can hold.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(each(self)?);
        }
        Some(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setup() -> Setup {
        Setup {
            on_disk: true,
            tied: true,
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
            rules: vec![Rule {
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
    fn what_is_written_is_what_is_read() {
        let setup = setup();
        assert_eq!(Setup::decode(&setup.encode()), Some(setup));
        let found = Found {
            proc_mounted: true,
            landlock: 7,
        };
        let failed = Start::Failed {
            step: "s".to_owned(),
            errno: 1,
        };
        for start in [Start::Born(9), Start::Ready(found), failed] {
            assert_eq!(Start::decode(&start.encode()), Some(start));
        }
        let payload = || Payload {
            workdir: "/w".to_owned(),
            args: vec!["a".to_owned(), String::new()],
            env: vec!["A=b".to_owned()],
            path: vec!["/bin".to_owned()],
        };
        assert_eq!(Payload::decode(&payload().encode()), Some(payload()));
        for payload in [None, Some(payload())] {
            let exec = Request::Exec { millis: 5, payload };
            assert_eq!(Request::decode(&exec.encode()), Some(exec));
        }
        for request in [Request::Root, Request::Touch(None), Request::Touch(Some(3))] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for answer in [
            Answer::Done,
            Answer::Exited(3),
            Answer::Signaled(9),
            Answer::TimedOut,
            Answer::NotStarted(Stage::Fork, 11),
            Answer::NotStarted(Stage::Workdir, 2),
            Answer::NotStarted(Stage::Lookup, 2),
            Answer::NotStarted(Stage::Exec, 13),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn a_message_that_is_cut_is_none() {
        let whole = setup().encode();
        for length in 0..whole.len() {
            assert_eq!(Setup::decode(&whole[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Setup::decode(&bytes), Request::decode(&bytes), Start::decode(&bytes));
            let _ = (Payload::decode(&bytes), Answer::decode(&bytes));
        }
    }
}
