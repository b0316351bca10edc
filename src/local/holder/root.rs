//! The files of the sandbox and its private root.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};

use crate::etc::show_etc;
use crate::protocol::{SANDBOX_ID, STAGED, Setup, StartReport, Step, in_step};
use crate::sys::c::EPERM;
use crate::sys::isolation::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_READ_ONLY, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID,
    MS_REC, mount, open_path, own_mounts, pivot_to_current_dir, set_mount_attributes,
};
use crate::sys::process::set_umask;

/// A directory that exists on every system, to mount on until the new root covers it.
const MOUNT_POINT: &str = "/tmp";

/// The same if the read-only paths were staged in the other one.
const MOUNT_POINT_BESIDE_STAGED: &str = "/tmp/root";

/// An empty directory of the root.
const EMPTY_DIR: &str = "run";

fn mount_point(setup: &Setup) -> &'static str {
    if setup.staged.is_empty() {
        MOUNT_POINT
    } else {
        MOUNT_POINT_BESIDE_STAGED
    }
}

/// Binds host paths to a directory that every user can search, because the sandbox's user may not be
/// able to reach the paths themselves.
pub(crate) fn stage(paths: &[String]) -> io::Result<()> {
    own_mounts()?;
    // Opened before the mount, which covers some paths.
    let opened: io::Result<Vec<OwnedFd>> = paths.iter().map(|path| open_path(path)).collect();
    mount(
        "tmpfs",
        MOUNT_POINT,
        "tmpfs",
        MS_NOSUID | MS_NODEV,
        "size=1m,mode=755",
    )?;
    set_umask(0o022);
    fs::create_dir(MOUNT_POINT_BESIDE_STAGED)?;
    fs::create_dir(STAGED)?;
    for (index, path) in opened?.iter().enumerate() {
        let from = format!("/proc/self/fd/{}", path.as_raw_fd());
        let to = format!("{STAGED}/{index}");
        if fs::metadata(&from)?.is_dir() {
            fs::create_dir(&to)?;
        } else {
            File::create_new(&to)?;
        }
        bind(&from, &to)?;
    }
    Ok(())
}

/// Creates the directories of the sandbox's files, in memory or in the current directory.
pub(crate) fn create_files(setup: &Setup) -> Result<OwnedFd, StartReport> {
    let path = if setup.on_disk {
        "."
    } else {
        let flags = MS_NOSUID | MS_NODEV;
        let path = mount_point(setup);
        let mounted = mount("tmpfs", path, "tmpfs", flags, &setup.data_options);
        in_step("mount a tmpfs for the files", mounted)?;
        path
    };
    let created = create_dirs(path, setup.on_disk);
    in_step("create the directories of the files", created)
}

fn create_dirs(path: &str, on_disk: bool) -> io::Result<OwnedFd> {
    let data = File::open(path)?;
    for (name, mode) in [("workspace", 0o755), ("tmp", 0o1777), ("stages", 0o700)] {
        let path = format!("{path}/{name}");
        DirBuilder::new().mode(mode).create(&path)?;
        // The umask is 0, but the directory on disk may have a default access control list.
        if on_disk {
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
    }
    Ok(data.into())
}

/// Creates the root and changes to it. Returns true if `/proc` is mounted.
pub(crate) fn create_root(setup: &Setup, data: &OwnedFd) -> Result<bool, StartReport> {
    let options = "size=1m,nr_inodes=1k,mode=755";
    let path = mount_point(setup);
    let entered =
        mount("tmpfs", path, "tmpfs", 0, options).and_then(|()| std::env::set_current_dir(path));
    in_step("mount a tmpfs for the root", entered)?;
    let mut proc_mounted = false;
    for step in &setup.steps {
        match (step, take_step(step, data)) {
            // The kernel refuses the mount if the host's /proc is partly covered, as in a container.
            (Step::Proc(_), Err(e)) if e.raw_os_error() == Some(EPERM) => {}
            (Step::Proc(_), Ok(())) => proc_mounted = true,
            // Some kernels do not have the file.
            (Step::Mask(_) | Step::ReadOnly(_), Err(e)) if e.kind() == io::ErrorKind::NotFound => {}
            (_, result) => in_step(step.name(), result)?,
        }
    }
    in_step("change the root", pivot_to_current_dir())?;
    Ok(proc_mounted)
}

fn take_step(step: &Step, data: &OwnedFd) -> io::Result<()> {
    match step {
        Step::Dir(path) => DirBuilder::new().recursive(true).mode(0o755).create(path),
        Step::File(path, content) => {
            let mut file = OpenOptions::new();
            let mut file = file.write(true).create_new(true).mode(0o644).open(path)?;
            file.write_all(content)
        }
        Step::Link(target, path) => symlink(target, path),
        Step::Bind(from, to) => bind(from, to),
        Step::Etc(hidden) => show_etc(hidden),
        Step::Seal => {
            let attributes = ATTR_READ_ONLY | ATTR_NOSUID | ATTR_NODEV;
            set_mount_attributes(".", attributes, true)
        }
        Step::Device(from, to) => {
            bind(from, to)?;
            set_mount_attributes(to, ATTR_READ_ONLY | ATTR_NOSUID | ATTR_NOEXEC, false)
        }
        Step::Proc(path) => mount("proc", path, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
        Step::Mask(path) => mask(path),
        Step::ReadOnly(path) => {
            fs::symlink_metadata(path)?;
            bind(path, path)?;
            set_mount_attributes(path, ATTR_READ_ONLY, true)
        }
        Step::Terminals(path, options) => {
            mount("devpts", path, "devpts", MS_NOSUID | MS_NOEXEC, options)
        }
        Step::Tmpfs(path, options) => mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options),
        Step::Data(name, path) => {
            let from = format!("/proc/self/fd/{}/{name}", data.as_raw_fd());
            bind(&from, path)?;
            set_mount_attributes(path, ATTR_NOSUID | ATTR_NODEV, false)
        }
    }
}

fn bind(from: &str, to: &str) -> io::Result<()> {
    mount(from, to, "", MS_BIND | MS_REC, "")
}

/// Covers a directory with an empty one of the root, or a file with `/dev/null`. Both are read-only. Leaves a
/// file of the host's root that no other user can open.
fn mask(path: &str) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    let is_dir = found.is_dir();
    if !is_dir && found.uid() != SANDBOX_ID && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    bind(if is_dir { EMPTY_DIR } else { "dev/null" }, path)
}
