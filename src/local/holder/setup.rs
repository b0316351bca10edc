//! Turns the started process into the first process of a sandbox.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::encoding::Encoding;
use crate::guardian::fork_guardian;
use crate::landlock::restrict;
use crate::protocol::{Features, MAX_MESSAGE, SANDBOX_ID, Setup, SetupFds, StartReport};
use crate::root::{create_files, create_root};
use crate::sys::isolation::{self, MS_PRIVATE, MS_REC};
use crate::sys::{messages, process};

/// The sandbox that this process is the first process of.
pub(crate) struct PreparedSandbox {
    pub(crate) setup: Setup,
    /// The directory with the files of the sandbox.
    pub(crate) data: OwnedFd,
    /// A pidfd of the process that the sandbox ends with.
    pub(crate) host: Option<OwnedFd>,
    pub(crate) listener: Option<OwnedFd>,
    pub(crate) signals: OwnedFd,
    /// The stdin of every command.
    pub(crate) null: File,
    pub(crate) expires: Instant,
}

/// Sets up the sandbox. Returns only in its first process, not in the process that was started.
/// `progress` names the current step for the report of a failure.
pub(crate) fn enter(control: &OwnedFd, progress: &mut &'static str) -> io::Result<PreparedSandbox> {
    *progress = "receive the setup";
    process::close_from(3);
    let (setup, fds) = receive_setup(control)?;
    let signals = process::take_signals()?;
    if let Some(files_dir) = &fds.files_dir {
        // The mount namespace gets a copy of the directory's mount. Only the working directory leads
        // to the copy.
        *progress = "enter the directory of the files";
        process::change_dir(files_dir.as_fd())?;
    }
    if let Some(id) = setup.become_id {
        *progress = "switch to another user";
        isolation::become_id(id)?;
    }
    // Inside a new user namespace the ids are unknown until they are mapped.
    let ids = isolation::own_ids();
    if setup.own_namespaces {
        *progress = "make the namespaces";
        fork_into_namespaces(control)?;
    } else {
        *progress = "start the guardian";
        fork_guardian(control, &signals, fds.host.as_ref())?;
    }
    let expires = Instant::now() + Duration::from_millis(setup.ttl_millis);
    let (data, proc_mounted) = prepare(&setup, ids, progress)?;
    *progress = "open /dev/null";
    let null = File::open("/dev/null")?;
    let landlock = drop_privileges(&setup, progress)?;
    let ready = StartReport::Ready(Features {
        proc_mounted,
        landlock,
    });
    *progress = "report the start";
    messages::send(control.as_fd(), &ready.encode(), &[])?;
    Ok(PreparedSandbox {
        setup,
        data,
        host: fds.host,
        listener: fds.listener,
        signals,
        null,
        expires,
    })
}

fn receive_setup(control: &OwnedFd) -> io::Result<(Setup, SetupFds)> {
    let mut message = vec![0; MAX_MESSAGE];
    let (length, fds) = messages::wait_and_receive(control.as_fd(), &mut message)?;
    let setup = Setup::decode(&message[..length]).ok_or(io::ErrorKind::InvalidData)?;
    let fds = SetupFds::from_list(&setup, fds).ok_or(io::ErrorKind::InvalidData)?;
    Ok((setup, fds))
}

/// Forks. The child returns as the first process of new namespaces. This process reports the child and
/// exits.
fn fork_into_namespaces(control: &OwnedFd) -> io::Result<()> {
    let Some((pid, pidfd)) = process::fork_into_namespaces()? else {
        return Ok(());
    };
    let started = StartReport::Started(pid).encode();
    let sent = messages::send(control.as_fd(), &started, &[pidfd.as_fd()]);
    if sent.is_err() {
        process::kill_by_fd(pidfd.as_fd());
    }
    process::exit(0)
}

/// Prepares the process and creates the files. Returns their directory, and whether `/proc` is
/// mounted.
fn prepare(
    setup: &Setup,
    ids: (u32, u32),
    progress: &mut &'static str,
) -> io::Result<(OwnedFd, bool)> {
    process::set_umask(0);
    // Detaches from the terminal of the library's process and its signals.
    process::new_session();
    if setup.own_namespaces {
        map_ids(ids, progress)?;
    }
    // When memory is short, the kernel kills the sandbox before the library's process. Raising the
    // score needs no privilege.
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    let prepared = if setup.own_namespaces {
        create_world(setup, progress)?
    } else {
        (create_files(setup, progress)?, true)
    };
    process::set_umask(0o022);
    Ok(prepared)
}

/// Creates the private root, network and host name.
fn create_world(setup: &Setup, progress: &mut &'static str) -> io::Result<(OwnedFd, bool)> {
    *progress = "make all mounts private";
    isolation::mount("", "/", "", MS_REC | MS_PRIVATE, "")?;
    let data = create_files(setup, progress)?;
    let proc_mounted = create_root(&setup.steps, &data, progress)?;
    *progress = "enable the loopback interface";
    isolation::loopback_up()?;
    *progress = "set the host name";
    isolation::set_hostname(&setup.hostname)?;
    Ok((data, proc_mounted))
}

/// Maps one user and one group into the user namespace.
fn map_ids((user, group): (u32, u32), progress: &mut &'static str) -> io::Result<()> {
    *progress = "write setgroups";
    fs::write("/proc/self/setgroups", "deny")?;
    *progress = "write uid_map";
    fs::write("/proc/self/uid_map", format!("{SANDBOX_ID} {user} 1"))?;
    *progress = "write gid_map";
    fs::write("/proc/self/gid_map", format!("{SANDBOX_ID} {group} 1"))
}

/// Drops the privileges that commands must not have. Returns the version of Landlock in force.
fn drop_privileges(setup: &Setup, progress: &mut &'static str) -> io::Result<u32> {
    isolation::new_keyring();
    if !setup.cpus.is_empty() {
        *progress = "set the CPU affinity";
        isolation::use_cpus(&setup.cpus)?;
    }
    *progress = "drop the capabilities";
    isolation::drop_capabilities()?;
    *progress = "set no_new_privs";
    isolation::no_new_privileges()?;
    *progress = "restrict by Landlock";
    let landlock = restrict(&setup.rules, setup.min_landlock)?;
    *progress = "hide from debuggers";
    isolation::hide()?;
    *progress = "install the seccomp filter";
    isolation::filter_calls(&setup.filter)?;
    Ok(landlock)
}
