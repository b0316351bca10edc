//! Turns the started process into the first process of a sandbox.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::encoding::Encoding;
use crate::guardian::fork_guardian;
use crate::landlock::restrict;
use crate::protocol::{
    Features, LandlockRule, MAX_MESSAGE, SANDBOX_ID, Setup, SetupFds, StartReport, in_step,
};
use crate::root::{create_files, create_root, stage};
use crate::sys::c::RLIMIT_NPROC;
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
pub(crate) fn enter(control: &OwnedFd) -> Result<PreparedSandbox, StartReport> {
    process::close_from(3);
    let (mut setup, fds) = in_step("receive the setup", receive_setup(control))?;
    let signals = in_step("receive the setup", process::take_signals())?;
    if let Some(files_dir) = &fds.files_dir {
        // The mount namespace gets a copy of the directory's mount. Only the working directory leads
        // to the copy.
        let entered = process::change_dir(files_dir.as_fd());
        in_step("enter the directory of the files", entered)?;
    }
    if !setup.staged.is_empty() {
        in_step("open the read-only paths", stage(&setup.staged))?;
    }
    if let Some(id) = setup.become_id {
        in_step("switch to another user", isolation::become_id(id))?;
    }
    // Inside a new user namespace the ids are unknown until they are mapped.
    let ids = isolation::own_ids();
    if setup.own_namespaces {
        in_step(
            "make the namespaces",
            fork_into_namespaces(control, setup.host_network),
        )?;
    } else {
        let forked = fork_guardian(control, &signals, fds.host.as_ref());
        in_step("start the guardian", forked)?;
    }
    let expires = Instant::now() + Duration::from_millis(setup.ttl_millis);
    let (data, proc_mounted) = prepare(&setup, ids)?;
    in_step("limit the resources", limit_resources(&mut setup))?;
    let null = in_step("open /dev/null", File::open("/dev/null"))?;
    let landlock = drop_privileges(&setup, &data)?;
    let ready = StartReport::Ready(Features {
        proc_mounted,
        landlock,
    });
    let sent = messages::send(control.as_fd(), &ready.encode(), &[]);
    in_step("report the start", sent)?;
    // The kernel lets the sender of a message run on. Without a yield the caller would wait for the rest of
    // the start.
    std::thread::yield_now();
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
    process::wait_readable(&[control.as_fd()], process::IDLE_WAIT)?;
    let (length, fds) = messages::receive(control.as_fd(), &mut message)?;
    let setup = Setup::decode(&message[..length]).ok_or(io::ErrorKind::InvalidData)?;
    let fds = SetupFds::from_list(&setup, fds).ok_or(io::ErrorKind::InvalidData)?;
    Ok((setup, fds))
}

/// Forks. The child returns as the first process of new namespaces. This process reports the child and
/// exits.
fn fork_into_namespaces(control: &OwnedFd, host_network: bool) -> io::Result<()> {
    let Some((pid, pidfd)) = process::fork_into_namespaces(host_network)? else {
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
fn prepare(setup: &Setup, ids: (u32, u32)) -> Result<(OwnedFd, bool), StartReport> {
    process::set_umask(0);
    // Detaches from the terminal of the library's process and its signals.
    process::new_session();
    if setup.own_namespaces {
        map_ids(ids)?;
        limit_inotify();
    }
    // When memory is short, the kernel kills the sandbox before the library's process. Raising the
    // score needs no privilege.
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    let prepared = if setup.own_namespaces {
        create_world(setup)?
    } else {
        (create_files(setup)?, true)
    };
    process::set_umask(0o022);
    Ok(prepared)
}

/// Creates the private root, network and host name.
fn create_world(setup: &Setup) -> Result<(OwnedFd, bool), StartReport> {
    let private = isolation::mount("", "/", "", MS_REC | MS_PRIVATE, "");
    in_step("make all mounts private", private)?;
    let data = create_files(setup)?;
    let proc_mounted = create_root(setup, &data)?;
    if !setup.host_network {
        in_step("enable the loopback interface", isolation::loopback_up())?;
    }
    let named = isolation::set_hostname(&setup.hostname);
    in_step("set the host name", named)?;
    Ok((data, proc_mounted))
}

/// Maps one user and one group into the user namespace.
fn map_ids((user, group): (u32, u32)) -> Result<(), StartReport> {
    let write = |name, text| {
        in_step(
            &format!("write {name}"),
            fs::write(format!("/proc/self/{name}"), text),
        )
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{SANDBOX_ID} {user} 1"))?;
    write("gid_map", format!("{SANDBOX_ID} {group} 1"))
}

/// Limits the sandbox's share of the user's inotify instances and watches.
fn limit_inotify() {
    for (name, limit) in [("instances", "16"), ("watches", "8192")] {
        // The file cannot be written in some containers.
        let _ = fs::write(format!("/proc/sys/user/max_inotify_{name}"), limit);
    }
}

/// Sets the limits of this process, and lowers the process limit of commands to the present hard limit.
fn limit_resources(setup: &mut Setup) -> io::Result<()> {
    for (resource, value) in &setup.rlimits {
        process::limit_resource(*resource, *value)?;
    }
    setup.max_processes = process::allowed_limit(RLIMIT_NPROC, setup.max_processes)?;
    Ok(())
}

/// Drops the privileges that commands must not have. Returns the version of Landlock in force.
fn drop_privileges(setup: &Setup, data: &OwnedFd) -> Result<u32, StartReport> {
    isolation::new_keyring();
    if !setup.cpus.is_empty() {
        in_step("set the CPU affinity", isolation::use_cpus(&setup.cpus))?;
    }
    in_step("drop the capabilities", isolation::drop_capabilities())?;
    in_step("set no_new_privs", isolation::no_new_privileges())?;
    let mut rules = setup.rules.clone();
    if setup.own_namespaces && setup.on_disk {
        // For the count of the files. Commands do not have the descriptor.
        rules.push(LandlockRule {
            path: format!("/proc/self/fd/{}/stages", data.as_raw_fd()),
            write: false,
        });
    }
    let restricted = restrict(&rules, setup.min_landlock);
    let landlock = in_step("restrict by Landlock", restricted)?;
    in_step("hide from debuggers", isolation::hide())?;
    let filtered = isolation::filter_calls(&setup.filter);
    in_step("install the seccomp filter", filtered)?;
    Ok(landlock)
}
