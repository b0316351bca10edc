//! One sandbox, as the process that holds it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::super::files::{Files, path_failed};
use super::super::streams::Streams;
use super::super::{KILLED, NOT_EXECUTABLE, NOT_FOUND, TIMED_OUT, not_run};
use super::cgroup::Cgroup;
use super::disk::Disk;
use super::protocol::{Answer, Found, MAX_MESSAGE, Payload, Request, Setup, Stage, Start};
use super::sys as own_sys;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::os;
use crate::output::Output;

/// The program that becomes the first process of a sandbox.
#[cfg(noxrunner_holder)]
const HOLDER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holder"));
#[cfg(not(noxrunner_holder))]
const HOLDER: &[u8] = &[];

/// How long a sandbox may take to be made.
const START_WAIT: Duration = Duration::from_secs(10);

/// How long the holder may take to answer what it can answer at once.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long after its deadline a command's end may take to be told. Then the sandbox is ended.
const END_WAIT: Duration = Duration::from_secs(1);

/// How long a killed sandbox may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What a command gets of this process's environment.
const PASSED_ON: [&str; 4] = ["LANG", "LC_ALL", "LC_CTYPE", "TZ"];

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no sandbox.
#[derive(Debug)]
pub(super) struct NotMade {
    pub(super) step: String,
    pub(super) error: io::Error,
}

pub(super) struct Sandbox {
    reach: Reach,
    pub(super) held: Held,
    pub(super) found: Found,
    _goods: Goods,
}

/// What goes with a sandbox that ends with this process.
#[derive(Default)]
pub(super) struct Goods {
    /// Its files, if they are not in memory.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) disk: Option<Disk>,
    /// Its limits, if they are a cgroup's. After it has ended.
    pub(super) cgroup: Option<Cgroup>,
}

/// What there is of a sandbox, however it is reached.
pub(super) struct Held {
    /// The process with which it is there: the first one of its namespaces, or its guardian.
    pub(super) process: u32,
    pub(super) pidfd: Arc<OwnedFd>,
    /// Whom the files belong to, if not to the user of this process.
    pub(super) user: Option<u32>,
    /// Where its files are also for its commands. None where they have a root of their own.
    pub(super) place: Option<PathBuf>,
}

/// How requests get to the holder.
enum Reach {
    /// With a connection for the answer, over the socket that it was started with.
    Control(OwnedFd),
    /// By the socket that it listens to, in this directory.
    Directory(OwnedFd),
}

impl Sandbox {
    /// Starts a holder and waits until it is ready.
    /// `place` is where its files are, if it has no root of its own.
    pub(super) fn start(
        setup: &Setup,
        fds: &[BorrowedFd<'_>],
        place: Option<PathBuf>,
        goods: Goods,
    ) -> Result<Sandbox, NotMade> {
        let failed = |step: &str| {
            let step = step.to_owned();
            |error| NotMade { step, error }
        };
        let (control, theirs) = own_sys::connection().map_err(failed("make a socket"))?;
        let program = program().map_err(failed("write the holder's program"))?;
        let mut first = process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("noxrunner-sandbox")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start the holder"))?;
        let joined = goods.cgroup.as_ref().map(|cgroup| cgroup.add(first.id()));
        let asked = joined
            .unwrap_or(Ok(()))
            .and_then(|()| own_sys::send(control.as_fd(), &setup.encode(), fds));
        if let Err(e) = asked {
            let _ = first.kill();
            let _ = first.wait();
            return Err(failed("send the setup to the holder")(e));
        }
        // Two processes tell of themselves, and either may be the first.
        let mut born = None;
        let mut outcome = None;
        let until = Instant::now() + START_WAIT;
        while born.is_none() || outcome.is_none() {
            match next_start(&control, until) {
                Ok((Start::Born(process), fd)) => born = fd.map(|pidfd| (process, pidfd)),
                Ok((Start::Ready(found), _)) => outcome = Some(Ok(found)),
                Ok((Start::Failed { step, errno }, _)) => {
                    let error = io::Error::from_raw_os_error(errno);
                    outcome = Some(Err(NotMade { step, error }));
                }
                Err(error) => {
                    outcome.get_or_insert(Err(failed("start the holder")(error)));
                    break;
                }
            }
        }
        if born.is_none() {
            let _ = first.kill();
        }
        // It ends right after it has told of the other one, if that is another. Where somebody else
        // takes in our children, it is gone as well.
        if setup.own_namespaces || born.is_none() {
            let _ = first.wait();
        }
        let held = born.map(|(process, pidfd)| Held {
            process,
            pidfd: Arc::new(pidfd),
            user: setup.become_id,
            place,
        });
        match (outcome, held) {
            (Some(Ok(found)), Some(held)) => Ok(Sandbox {
                reach: Reach::Control(control),
                held,
                found,
                _goods: goods,
            }),
            (outcome, held) => {
                if let Some(held) = held {
                    held.end();
                }
                let died = || failed("start the holder")(io::ErrorKind::UnexpectedEof.into());
                Err(outcome.and_then(Result::err).unwrap_or_else(died))
            }
        }
    }

    /// One that another process has made, with the directory of its socket.
    pub(super) fn of_another(dir: OwnedFd, held: Held) -> Sandbox {
        Sandbox {
            reach: Reach::Directory(dir),
            held,
            found: Found::default(),
            _goods: Goods::default(),
        }
    }

    /// Makes a request, and a connection for its answer.
    fn request(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
        let connect = || match &self.reach {
            Reach::Control(control) => {
                let (ours, theirs) = own_sys::connection()?;
                let mut all = vec![theirs.as_fd()];
                all.extend(fds);
                own_sys::send(control.as_fd(), &request.encode(), &all)?;
                Ok(ours)
            }
            Reach::Directory(dir) => {
                let connection = own_sys::connect(dir.as_fd())?;
                own_sys::send(connection.as_fd(), &request.encode(), fds)?;
                Ok(connection)
            }
        };
        connect().map_err(|e: io::Error| match e.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotFound => gone(),
            io::ErrorKind::WouldBlock => no_answer(),
            _ => Error::io("cannot reach the sandbox", e),
        })
    }

    /// Asks for what the holder can answer at once.
    fn ask(&self, request: &Request) -> Result<Option<OwnedFd>> {
        let connection = self.request(request, &[])?;
        let failed = |e| Error::io("cannot reach the sandbox", e);
        let fds = [Some(connection.as_fd()), None];
        let [answered, _] = os::poll_readable(fds, ANSWER_WAIT).map_err(failed)?;
        if !answered {
            return Err(no_answer());
        }
        let mut buffer = [0; 16];
        match own_sys::receive(connection.as_fd(), &mut buffer) {
            Ok((length, fd)) if Answer::decode(&buffer[..length]) == Some(Answer::Done) => Ok(fd),
            // Its end.
            _ => Err(gone()),
        }
    }

    /// Its time starts again, with another length if there is one.
    pub(super) fn touch(&self, ttl: Option<Duration>) -> Result<()> {
        self.ask(&Request::Touch(ttl.map(super::millis))).map(drop)
    }

    pub(super) fn files(&self) -> Result<Files> {
        let root = self.ask(&Request::Root)?.ok_or_else(gone)?;
        let _user = self.held.user.map(own_sys::FileUser::new);
        let stages = os::open_dir_at(root.as_fd(), b"stages");
        let stages = stages.map_err(|e| Error::io("cannot open the sandbox's files", e))?;
        Ok(Files {
            root,
            stages,
            root_path: None,
            user: self.held.user,
        })
    }

    pub(super) fn exec(&self, command: &Command) -> Result<Output> {
        let started = Instant::now();
        let (connection, mut streams) = self.start_command(command)?;
        let ended = watch(&connection, &mut streams, command, started);
        let ended = ended.map_err(|e| Error::io("cannot watch the command", e))?;
        let code = match ended {
            Ended::Answered(Answer::Exited(code)) => code,
            Ended::Answered(Answer::Signaled(signal)) => 128 + signal,
            Ended::Answered(Answer::TimedOut) => TIMED_OUT,
            Ended::Answered(Answer::NotStarted(stage, errno)) => {
                return not_started(command, stage, errno, started);
            }
            Ended::Answered(Answer::Done) => return Err(gone()),
            Ended::Silent => {
                // Not even the holder could end the command: it was stopped.
                self.end();
                TIMED_OUT
            }
            Ended::Closed if self.ends_within(Duration::from_millis(100)) => {
                let text = "the sandbox ended while the command ran";
                return Err(Error::new(ErrorKind::OutcomeUnknown, text));
            }
            // The command has killed its supervisor, and was killed for it.
            Ended::Closed if started.elapsed() < command.get_timeout() => KILLED,
            Ended::Closed => TIMED_OUT,
        };
        streams.drain();
        let truncated = streams.truncated();
        Ok(
            Output::new(code, streams.out.kept, streams.err.kept, started.elapsed())
                .with_timed_out(
                    code == TIMED_OUT && !matches!(ended, Ended::Answered(Answer::Exited(_))),
                )
                .with_truncated(truncated),
        )
    }

    fn start_command(&self, command: &Command) -> Result<(OwnedFd, Streams)> {
        let failed = |e| Error::io("cannot make a pipe", e);
        let (out, their_out) = own_sys::pipe().map_err(failed)?;
        let (err, their_err) = own_sys::pipe().map_err(failed)?;
        let streams = Streams::new(out, err).map_err(failed)?;
        let millis = u64::try_from(command.get_timeout().as_millis()).unwrap_or(u64::MAX);
        let mut request = Request::Exec {
            millis,
            payload: Some(self.payload(command)?),
        };
        let mut fds = vec![their_out.as_fd(), their_err.as_fd()];
        let file;
        if let (true, Request::Exec { payload, .. }) =
            (request.encode().len() > MAX_MESSAGE, &mut request)
        {
            let bytes = payload.take().map(|payload| payload.encode());
            file = own_sys::sealed_file("payload", &bytes.unwrap_or_default(), false)
                .map_err(|e| Error::io("cannot write the command to memory", e))?;
            fds.push(file.as_fd());
        }
        Ok((self.request(&request, &fds)?, streams))
    }

    fn payload(&self, command: &Command) -> Result<Payload> {
        let workdir = command.get_workdir();
        let Some(place) = &self.held.place else {
            return Ok(payload(command, "", workdir.to_owned()));
        };
        let failed = |e| path_failed("workdir", workdir, e);
        let found = self.files()?.resolve(workdir).map_err(failed)?;
        if !found.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            let shown = path.display();
            text.ok_or_else(|| Error::invalid(format!("{shown} is not UTF-8: choose another path")))
        };
        Ok(payload(command, &text(place)?, text(&found.path)?))
    }

    /// Whether it was running a moment ago.
    pub(super) fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    fn ends_within(&self, time: Duration) -> bool {
        let fds = [Some(self.held.pidfd.as_fd())];
        os::poll_readable(fds, time).is_ok_and(|[ended]| ended)
    }

    /// Ends all its processes; with them go its files.
    pub(super) fn end(&self) {
        self.held.end();
    }
}

impl Held {
    fn end(&self) {
        let pidfd = self.pidfd.as_fd();
        // A guardian ends all else, and then itself.
        let signal = match self.place {
            Some(_) => libc::SIGTERM,
            None => libc::SIGKILL,
        };
        own_sys::kill(pidfd, signal);
        // One that waits for a disk takes its time; nothing could hurry it.
        let _ = os::poll_readable([Some(pidfd)], KILL_WAIT);
        own_sys::reap(pidfd);
    }
}

fn no_answer() -> Error {
    let text = "the sandbox does not answer: delete it";
    Error::new(ErrorKind::Timeout, text)
}

pub(super) fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "no such sandbox")
}

/// The holder's program as a file, made once and kept.
fn program() -> io::Result<&'static OwnedFd> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let made = match own_sys::sealed_file("noxrunner-sandbox", HOLDER, true) {
        Ok(file) if can_run(&file) => file,
        // Where files in memory may not be run.
        _ => unlinked_program()?,
    };
    Ok(PROGRAM.get_or_init(|| made))
}

fn can_run(program: &OwnedFd) -> bool {
    // Without a socket as its stdin it ends at once.
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    let mut command = process::Command::new(path);
    let command = command.env_clear().stdin(Stdio::null());
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.is_ok_and(|mut child| {
        let _ = child.wait();
        true
    })
}

/// A file that only its descriptor leads to.
fn unlinked_program() -> io::Result<OwnedFd> {
    let dir = std::env::temp_dir().join(format!(
        "noxrunner-{:016x}",
        crate::os::random::random_u64()
    ));
    DirBuilder::new().mode(0o700).create(&dir)?;
    let path = dir.join("holder");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o500)
            .open(&path)?;
        file.write_all(HOLDER)?;
        // Nothing that is open for writing can be run.
        drop(file);
        File::open(&path)
    };
    let file = write();
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir(&dir);
    file.map(OwnedFd::from)
}

fn next_start(control: &OwnedFd, until: Instant) -> io::Result<(Start, Option<OwnedFd>)> {
    let left = until.saturating_duration_since(Instant::now());
    let [ready] = os::poll_readable([Some(control.as_fd())], left)?;
    if !ready {
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        return next_start(control, until);
    }
    let mut buffer = [0; 4096];
    match own_sys::receive(control.as_fd(), &mut buffer)? {
        (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        (length, fd) => {
            let start = Start::decode(&buffer[..length]).ok_or(io::ErrorKind::InvalidData)?;
            Ok((start, fd))
        }
    }
}

/// What a command is started with, where the files are at `place`.
fn payload(command: &Command, place: &str, workdir: String) -> Payload {
    let workspace = format!("{place}/workspace");
    let mut env = std::collections::BTreeMap::from([
        ("PATH", PATH.to_owned()),
        ("HOME", workspace.clone()),
        ("TMPDIR", format!("{place}/tmp")),
        ("NOX_WORKSPACE", workspace),
        ("USER", "sandbox".to_owned()),
        ("LOGNAME", "sandbox".to_owned()),
    ]);
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            env.insert(name, value);
        }
    }
    for (name, value) in command.get_envs() {
        env.insert(name, value.clone());
    }
    let path = env.get("PATH").map(String::as_str).unwrap_or_default();
    let absolute = path.split(':').filter(|dir| dir.starts_with('/'));
    Payload {
        workdir,
        args: command.get_args().to_vec(),
        path: absolute.map(str::to_owned).collect(),
        env: env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
    }
}

#[derive(Clone, Copy)]
enum Ended {
    Answered(Answer),
    /// Whoever should have answered is gone.
    Closed,
    /// No answer long after the deadline.
    Silent,
}

/// Waits for the command's own end, not for that of the pipes: a background process may hold them
/// for as long as it likes.
fn watch(
    connection: &OwnedFd,
    streams: &mut Streams,
    command: &Command,
    started: Instant,
) -> io::Result<Ended> {
    let mut until = started + command.get_timeout() + END_WAIT;
    let mut cancelled = match command.get_cancel() {
        Some(cancel) => {
            let (wake, waker) = UnixStream::pair()?;
            // If the other end is gone, so is the command.
            Some((wake, cancel.on_cancel(move || drop((&waker).write(&[0])))))
        }
        None => None,
    };
    loop {
        let fds = [
            Some(connection.as_fd()),
            streams.out.fd(),
            streams.err.fd(),
            cancelled.as_ref().map(|(wake, _)| wake.as_fd()),
        ];
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ended::Silent);
        }
        let [answered, out, err, wake] = os::poll_readable(fds, left)?;
        streams.read(out, err);
        if answered {
            let mut buffer = [0; 16];
            let received = own_sys::receive(connection.as_fd(), &mut buffer);
            let answer = received
                .ok()
                .and_then(|(length, _)| Answer::decode(&buffer[..length]));
            return Ok(answer.map_or(Ended::Closed, Ended::Answered));
        }
        if wake {
            // Any message means that it is to end.
            let _ = own_sys::send(connection.as_fd(), b"e", &[]);
            cancelled = None;
            until = Instant::now() + END_WAIT;
        }
    }
}

fn not_started(command: &Command, stage: Stage, errno: i32, started: Instant) -> Result<Output> {
    let name = command.get_args().first().map_or("", String::as_str);
    let error = io::Error::from_raw_os_error(errno);
    let shown = error.to_string();
    let (code, why) = match (stage, errno) {
        (Stage::Workdir, _) => {
            return Err(path_failed("workdir", command.get_workdir(), error));
        }
        (Stage::Fork, _) => {
            return Err(Error::io("the sandbox can't start another process", error));
        }
        (_, libc::E2BIG) => {
            return Err(Error::invalid(
                "arguments and environment together are too long for this system: write them to a file",
            ));
        }
        (Stage::Lookup, _) => (NOT_FOUND, "command not found"),
        (_, libc::ENOENT | libc::ENOTDIR) if name.contains('/') => {
            (NOT_FOUND, "no such file or interpreter")
        }
        (_, libc::ENOENT | libc::ENOTDIR) => (NOT_FOUND, "command not found"),
        (_, libc::EACCES) => (NOT_EXECUTABLE, "permission denied"),
        (_, libc::ENOEXEC) => (NOT_EXECUTABLE, "not an executable format"),
        (Stage::Exec, _) => (NOT_EXECUTABLE, shown.as_str()),
    };
    Ok(not_run(name, code, why, started.elapsed()))
}
