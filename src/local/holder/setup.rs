//! From a plain process to the locked-up first process of a sandbox.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use crate::confine::{
    self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_READ_ONLY, MS_BIND, MS_NODEV, MS_NOEXEC,
    MS_NOSUID, MS_PRIVATE, MS_REC,
};
use crate::guardian;
use crate::protocol::{Found, MAX_MESSAGE, Rule, SANDBOX_ID, Setup, Start, Step};
use crate::sys;

/// The sandbox that this process is the first one of.
pub(crate) struct Sandbox {
    pub(crate) setup: Setup,
    /// The directory with the files of the sandbox.
    pub(crate) data: OwnedFd,
    /// Of the process that the sandbox ends with.
    pub(crate) host: Option<OwnedFd>,
    pub(crate) listener: Option<OwnedFd>,
    pub(crate) signals: OwnedFd,
    /// The stdin of every command.
    pub(crate) null: File,
    pub(crate) expires: Instant,
}

/// Does not return in the process that was started, but in the first one of the sandbox. `stage`
/// names the step that an error belongs to.
pub(crate) fn enter(control: &OwnedFd, stage: &mut &'static str) -> io::Result<Sandbox> {
    *stage = "receive the setup";
    sys::close_from(3);
    let mut message = vec![0; MAX_MESSAGE];
    let received = sys::receive(control.as_fd(), &mut message, true)?;
    let (length, fds) = received.ok_or(io::ErrorKind::Interrupted)?;
    let setup = Setup::decode(&message[..length]).ok_or(io::ErrorKind::InvalidData)?;
    let mut fds = fds.into_iter();
    let mut next = |wanted: bool| match (wanted, wanted.then(|| fds.next()).flatten()) {
        (true, None) => Err(io::Error::from(io::ErrorKind::InvalidData)),
        (_, fd) => Ok(fd),
    };
    let disk = next(setup.on_disk)?;
    let host = next(setup.tied)?;
    let listener = next(setup.listens)?;
    let signals = sys::take_signals()?;
    if let Some(disk) = &disk {
        // The new mount namespace has a copy of this mount, which only the working directory
        // leads to.
        *stage = "enter the directory of the files";
        sys::change_dir(disk.as_fd())?;
    }
    if let Some(id) = setup.become_id {
        *stage = "become another user";
        confine::become_id(id)?;
    }
    let ids = confine::own_ids();
    if setup.own_namespaces {
        *stage = "make the namespaces";
        if let Some((pid, pidfd)) = sys::fork_into_namespaces()? {
            let born = Start::Born(pid).encode();
            let sent = sys::send(control.as_fd(), &born, Some(pidfd.as_fd()));
            if sent.is_err() {
                sys::kill_by_fd(pidfd.as_fd());
            }
            sys::exit(0);
        }
    } else {
        *stage = "leave a guardian";
        guardian::stand_by(control, &signals, host.as_ref())?;
    }
    let expires = Instant::now() + Duration::from_millis(setup.ttl_millis);
    sys::set_umask(0);
    // Away from the terminal of whoever made this, and from the signals that come with it.
    sys::new_session();
    if setup.own_namespaces {
        map_ids(ids, stage)?;
    }
    // When memory is short, the sandbox goes before what runs it. Raising it needs no right.
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    let (data, proc_mounted) = match setup.own_namespaces {
        true => make_world(&setup, stage)?,
        false => (make_data(&setup, stage)?, true),
    };
    sys::set_umask(0o022);
    *stage = "open /dev/null";
    let null = File::open("/dev/null")?;
    let landlock = lock_up(&setup, stage)?;
    let ready = Start::Ready(Found {
        proc_mounted,
        landlock,
    });
    *stage = "answer";
    sys::send(control.as_fd(), &ready.encode(), None)?;
    Ok(Sandbox {
        setup,
        data,
        host,
        listener,
        signals,
        null,
        expires,
    })
}

/// Files, network and name of its own. Answers with the directory of the files, and whether there
/// is a /proc.
fn make_world(setup: &Setup, stage: &mut &'static str) -> io::Result<(OwnedFd, bool)> {
    *stage = "make all mounts private";
    confine::mount("", "/", "", MS_REC | MS_PRIVATE, "")?;
    let data = make_data(setup, stage)?;
    let proc_mounted = make_root(&setup.steps, &data, stage)?;
    *stage = "switch the loopback interface on";
    confine::loopback_up()?;
    *stage = "set the host name";
    confine::set_hostname(&setup.hostname)?;
    Ok((data, proc_mounted))
}

/// One user and one group are known inside.
fn map_ids((user, group): (u32, u32), stage: &mut &'static str) -> io::Result<()> {
    *stage = "write setgroups";
    fs::write("/proc/self/setgroups", "deny")?;
    *stage = "write uid_map";
    fs::write("/proc/self/uid_map", format!("{SANDBOX_ID} {user} 1"))?;
    *stage = "write gid_map";
    fs::write("/proc/self/gid_map", format!("{SANDBOX_ID} {group} 1"))
}

/// Any directory that is always there, to mount on until the new root takes the place of all.
const MOUNT_POINT: &str = "/tmp";

fn make_data(setup: &Setup, stage: &mut &'static str) -> io::Result<OwnedFd> {
    let path = if setup.on_disk {
        "."
    } else {
        *stage = "mount a tmpfs for the files";
        let flags = MS_NOSUID | MS_NODEV;
        confine::mount("tmpfs", MOUNT_POINT, "tmpfs", flags, &setup.data_options)?;
        MOUNT_POINT
    };
    *stage = "make the directories of the files";
    let data = File::open(path)?;
    let inside = |name| format!("/proc/self/fd/{}/{name}", data.as_raw_fd());
    for (name, mode) in [("workspace", 0o755), ("tmp", 0o1777), ("stages", 0o700)] {
        let path = inside(name);
        DirBuilder::new().mode(mode).create(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    Ok(data.into())
}

/// Says whether there is a /proc.
fn make_root(steps: &[Step], data: &OwnedFd, stage: &mut &'static str) -> io::Result<bool> {
    *stage = "mount a tmpfs for the root";
    confine::mount(
        "tmpfs",
        MOUNT_POINT,
        "tmpfs",
        0,
        "size=1m,nr_inodes=1k,mode=755",
    )?;
    std::env::set_current_dir(MOUNT_POINT)?;
    let mut proc_mounted = false;
    for step in steps {
        *stage = step.name();
        let done = take_step(step, data);
        match step {
            // Refused where the machine's own /proc has hidden parts, as in a container.
            Step::Proc(_) => match done {
                Err(e) if e.raw_os_error() == Some(sys::EPERM) => {}
                result => proc_mounted = result.map(|()| true)?,
            },
            // Not every kernel has all of them.
            Step::Mask(_) | Step::ReadOnly(_) => match done {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            },
            _ => done?,
        }
    }
    *stage = "change the root";
    confine::pivot_here()?;
    Ok(proc_mounted)
}

fn take_step(step: &Step, data: &OwnedFd) -> io::Result<()> {
    let bind = |from: &str, to: &str| confine::mount(from, to, "", MS_BIND | MS_REC, "");
    match step {
        Step::Dir(path) => DirBuilder::new().mode(0o755).create(path),
        Step::File(path, content) => {
            let mut file = OpenOptions::new();
            let mut file = file.write(true).create_new(true).mode(0o644).open(path)?;
            file.write_all(content)
        }
        Step::Link(target, path) => symlink(target, path),
        Step::Bind(from, to) => bind(from, to),
        Step::Seal => {
            let attributes = ATTR_READ_ONLY | ATTR_NOSUID | ATTR_NODEV;
            confine::set_mount_attributes(".", attributes, true)
        }
        Step::Device(from, to) => {
            bind(from, to)?;
            confine::set_mount_attributes(to, ATTR_READ_ONLY | ATTR_NOSUID | ATTR_NOEXEC, false)
        }
        Step::Proc(path) => {
            confine::mount("proc", path, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "")
        }
        Step::Mask(path) => {
            if fs::symlink_metadata(path)?.is_dir() {
                confine::mount(
                    "tmpfs",
                    path,
                    "tmpfs",
                    MS_NOSUID,
                    "size=4k,nr_inodes=1,mode=555",
                )?;
                confine::set_mount_attributes(path, ATTR_READ_ONLY, false)
            } else {
                bind("dev/null", path)
            }
        }
        Step::ReadOnly(path) => {
            fs::symlink_metadata(path)?;
            bind(path, path)?;
            confine::set_mount_attributes(path, ATTR_READ_ONLY, true)
        }
        Step::Tmpfs(path, options) => {
            confine::mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options)
        }
        Step::Data(name, path) => {
            let from = format!("/proc/self/fd/{}/{name}", data.as_raw_fd());
            bind(&from, path)?;
            confine::set_mount_attributes(path, ATTR_NOSUID | ATTR_NODEV, false)
        }
    }
}

/// Gives up all that a command must not have. Answers with the Landlock version.
fn lock_up(setup: &Setup, stage: &mut &'static str) -> io::Result<u32> {
    confine::new_keyring();
    if !setup.cpus.is_empty() {
        *stage = "choose the CPUs";
        confine::use_cpus(&setup.cpus)?;
    }
    *stage = "drop the capabilities";
    confine::drop_capabilities()?;
    *stage = "set no_new_privs";
    confine::no_new_privileges()?;
    *stage = "restrict by Landlock";
    let landlock = restrict(&setup.rules, setup.least_landlock)?;
    *stage = "hide from debuggers";
    confine::hide()?;
    *stage = "filter the system calls";
    confine::filter_calls(&setup.filter)?;
    Ok(landlock)
}

/// What Landlock can watch over, by its version; reading and running come first.
const READ: u64 = 0b1101;
const WRITE: u64 = 0b1_1111_1111_0010;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const DEVICE_IOCTL: u64 = 1 << 15;
/// Of rights to a directory, those that make sense for a file.
const OF_FILES: u64 = 0b111 | TRUNCATE | DEVICE_IOCTL;
fn restrict(rules: &[Rule], least: u32) -> io::Result<u32> {
    let version = confine::landlock_version();
    if version < least {
        return Err(io::Error::from_raw_os_error(sys::EOPNOTSUPP));
    }
    // The first version forbids every rename from one directory to another.
    if version < 2 {
        return Ok(0);
    }
    let mut handled = READ | WRITE | REFER;
    if version >= 3 {
        handled |= TRUNCATE;
    }
    if version >= 5 {
        handled |= DEVICE_IOCTL;
    }
    let scopes = if version >= 6 { confine::SCOPES } else { 0 };
    let ruleset = confine::landlock_ruleset(handled, scopes, version)?;
    for rule in rules {
        let path = match confine::open_path(&rule.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            result => result?,
        };
        let mut allowed = if rule.write { handled } else { READ };
        if !fs::metadata(&rule.path)?.is_dir() {
            allowed &= OF_FILES;
        }
        confine::landlock_allow(ruleset.as_fd(), path.as_fd(), allowed & handled)?;
    }
    confine::landlock_enforce(ruleset.as_fd())?;
    Ok(version)
}
