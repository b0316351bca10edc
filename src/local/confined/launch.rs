//! Starts a holder and waits until its sandbox is ready.

use std::collections::BTreeMap;
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
use crate::error::Result;
use crate::local::errors::setup_failed;
use crate::local::isolation::Isolation;
use crate::local::limits::RequestedLimits;
use crate::local::sys;
use crate::os;

/// Maximum time until a sandbox is ready.
const START_WAIT: Duration = Duration::from_secs(10);

/// Starts a holder and returns its sandbox when it is ready. `host_dir` is the directory of the files if
/// the sandbox has no private root.
pub(super) fn start_holder(
    isolation: Isolation,
    setup: &Setup,
    fds: &SetupFds,
    resources: Resources,
    host_dir: Option<PathBuf>,
) -> Result<ConfinedSandbox> {
    let (control, theirs) = sys::socket_pair()
        .map_err(|e| setup_failed(isolation, "create a socket for the holder", e))?;
    let mut child = spawn(isolation, theirs)?;
    let sent = resources
        .cgroup
        .as_ref()
        .map_or(Ok(()), |cgroup| cgroup.add(child.id()))
        .and_then(|()| messages::send(control.as_fd(), &setup.encode(), &fds.list()));
    if let Err(e) = sent {
        let _ = child.kill();
        let _ = child.wait();
        return Err(setup_failed(isolation, "send the setup to the holder", e));
    }
    let reports = receive_reports(isolation, &control);
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
    let died = || {
        let error = io::ErrorKind::UnexpectedEof.into();
        setup_failed(isolation, "start the holder", error)
    };
    match (reports.outcome, process) {
        (Some(Ok(features)), Some(process)) => Ok(ConfinedSandbox {
            socket: RequestSocket::Control(control),
            process,
            features,
            limits: RequestedLimits::default(),
            env: BTreeMap::new(),
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

fn spawn(isolation: Isolation, stdin: OwnedFd) -> Result<Child> {
    let program = program_path()
        .map_err(|e| setup_failed(isolation, "write the program of the holder", e))?;
    Command::new(program)
        .arg0("noxrunner-sandbox")
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| setup_failed(isolation, "start the holder", e))
}

/// The reports of a holder that starts. They come from two processes, in any order.
#[derive(Default)]
struct Reports {
    /// Process id and pidfd of the process that holds the sandbox.
    process: Option<(u32, OwnedFd)>,
    outcome: Option<Result<Features>>,
}

fn receive_reports(isolation: Isolation, control: &OwnedFd) -> Reports {
    let mut reports = Reports::default();
    let until = Instant::now() + START_WAIT;
    while reports.process.is_none() || reports.outcome.is_none() {
        match receive_report(control, until) {
            Ok((StartReport::Started(pid), pidfd)) => {
                reports.process = pidfd.map(|pidfd| (pid, pidfd));
            }
            Ok((StartReport::Ready(features), _)) => reports.outcome = Some(Ok(features)),
            Ok((StartReport::Failed(step, errno), _)) => {
                let error = io::Error::from_raw_os_error(errno);
                reports.outcome = Some(Err(setup_failed(isolation, &step, error)));
            }
            Err(e) => {
                let failed = || Err(setup_failed(isolation, "start the holder", e));
                reports.outcome.get_or_insert_with(failed);
                break;
            }
        }
    }
    reports
}

fn receive_report(control: &OwnedFd, until: Instant) -> io::Result<(StartReport, Option<OwnedFd>)> {
    let left = until.saturating_duration_since(Instant::now());
    let [ready] = os::poll_readable([Some(control.as_fd())], left)?;
    if !ready {
        return Err(io::ErrorKind::TimedOut.into());
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
