//! Starts a holder and waits until its sandbox is ready.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::encoding::Encoding;
use super::holder_program::program_path;
use super::messages;
use super::protocol::{Features, Setup, SetupFds, StartReport};
use super::sandbox::{ConfinedSandbox, HolderProcess, RequestSocket, Resources};
use crate::local::sys;
use crate::os;

/// Maximum time until a sandbox is ready.
const START_WAIT: Duration = Duration::from_secs(10);

/// A failed step of starting a sandbox.
#[derive(Debug)]
pub(super) struct StartError {
    pub(super) step: String,
    pub(super) error: io::Error,
}

impl StartError {
    fn at(step: &str) -> impl FnOnce(io::Error) -> StartError {
        let step = step.to_owned();
        |error| StartError { step, error }
    }
}

/// Starts a holder and returns its sandbox when it is ready. `host_dir` is the directory of the files if
/// the sandbox has no private root.
pub(super) fn start_holder(
    setup: &Setup,
    fds: &SetupFds,
    resources: Resources,
    host_dir: Option<PathBuf>,
) -> Result<ConfinedSandbox, StartError> {
    let (control, theirs) =
        sys::socket_pair().map_err(StartError::at("create a socket for the holder"))?;
    let mut child = spawn(theirs)?;
    let sent = resources
        .cgroup
        .as_ref()
        .map_or(Ok(()), |cgroup| cgroup.add(child.id()))
        .and_then(|()| messages::send(control.as_fd(), &setup.encode(), &fds.list()));
    if let Err(e) = sent {
        let _ = child.kill();
        let _ = child.wait();
        return Err(StartError::at("send the setup to the holder")(e));
    }
    let reports = receive_reports(&control);
    if reports.process.is_none() {
        let _ = child.kill();
    }
    // With namespaces the child ends right after it has reported their first process. If other code
    // of this program has already reaped the child, the wait fails at once.
    if setup.own_namespaces || reports.process.is_none() {
        let _ = child.wait();
    }
    let process = reports.process.map(|(pid, pidfd)| HolderProcess {
        pid,
        pidfd: Arc::new(pidfd),
        user: setup.become_id,
        host_dir,
    });
    let died = || StartError::at("start the holder")(io::ErrorKind::UnexpectedEof.into());
    match (reports.outcome, process) {
        (Some(Ok(features)), Some(process)) => Ok(ConfinedSandbox {
            socket: RequestSocket::Control(control),
            process,
            features,
            resources,
        }),
        (outcome, process) => {
            if let Some(process) = process {
                process.end();
            }
            Err(outcome.and_then(Result::err).unwrap_or_else(died))
        }
    }
}

fn spawn(stdin: OwnedFd) -> Result<Child, StartError> {
    let program = program_path().map_err(StartError::at("write the program of the holder"))?;
    Command::new(program)
        .arg0("noxrunner-sandbox")
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(StartError::at("start the holder"))
}

/// The reports of a holder that starts. They come from two processes, in any order.
struct Reports {
    /// Process id and pidfd of the process that holds the sandbox.
    process: Option<(u32, OwnedFd)>,
    outcome: Option<Result<Features, StartError>>,
}

fn receive_reports(control: &OwnedFd) -> Reports {
    let mut reports = Reports {
        process: None,
        outcome: None,
    };
    let until = Instant::now() + START_WAIT;
    while reports.process.is_none() || reports.outcome.is_none() {
        match receive_report(control, until) {
            Ok((StartReport::Started(pid), pidfd)) => {
                reports.process = pidfd.map(|pidfd| (pid, pidfd));
            }
            Ok((StartReport::Ready(features), _)) => reports.outcome = Some(Ok(features)),
            Ok((StartReport::Failed(step, errno), _)) => {
                let error = io::Error::from_raw_os_error(errno);
                reports.outcome = Some(Err(StartError { step, error }));
            }
            Err(error) => {
                reports
                    .outcome
                    .get_or_insert_with(|| Err(StartError::at("start the holder")(error)));
                break;
            }
        }
    }
    reports
}

fn receive_report(control: &OwnedFd, until: Instant) -> io::Result<(StartReport, Option<OwnedFd>)> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let [ready] = os::poll_readable([Some(control.as_fd())], left)?;
        if ready {
            break;
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    let mut buffer = [0; 4096];
    match messages::receive(control.as_fd(), &mut buffer)? {
        (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        (length, fds) => {
            let report =
                StartReport::decode(&buffer[..length]).ok_or(io::ErrorKind::InvalidData)?;
            Ok((report, fds.into_iter().next()))
        }
    }
}
