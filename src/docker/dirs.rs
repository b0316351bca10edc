//! Directories on the host, one per sandbox, through which the agents are reached.
//!
//! They are private to this user. In each is a directory that the container shares, where the agent creates its
//! socket. Once it has, the socket is moved out of there and the shared directory is removed. The container then
//! has a directory in which nothing can be created, so commands can neither fill the host's disk nor replace the
//! socket.

use std::collections::HashSet;
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind as IoKind, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::engine::name_hash;
use crate::error::{Error, ErrorKind, Result};
use crate::os::{self, effective_uid, random::random_u64, remove_tree::remove_at};

/// File that processes lock while they create containers, so that none of them takes the new directory of
/// another one for a directory that is left behind.
const LOCK: &str = "lock";

/// File with the token of an agent that is reached by a port.
const TOKEN: &str = "token";

/// The directory that a container shares.
const SHARED: &str = "run";

/// Name of the agent's socket.
pub(super) const SOCKET: &str = "agent.sock";

/// The directories of the sandboxes on one engine.
#[derive(Debug)]
pub(super) struct SandboxDirs {
    /// Path of the private directory. It is UTF-8, because the Engine API is JSON.
    path: String,
}

impl SandboxDirs {
    /// Creates the private directory for an engine: by default below the user's runtime directory.
    pub(super) fn open(base: Option<&Path>, socket: &Path) -> Result<SandboxDirs> {
        let base = base.map_or_else(default_base, Path::to_owned);
        create_private(&base)?;
        // Each engine has its own, because an engine knows only its own containers.
        let path = base.join(name_hash(socket.as_os_str().as_encoded_bytes()));
        create_private(&path)?;
        let shown = path.display();
        let not_utf8 = || Error::invalid(format!("directory {shown} is not UTF-8"));
        let path = path.to_str().ok_or_else(not_utf8)?.to_owned();
        Ok(SandboxDirs { path })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Prevents cleanups until the returned file is closed.
    pub(super) fn hold(&self, by: Instant) -> Result<File> {
        let file = self.open_lock().map_err(|e| self.failed("open", e))?;
        while !os::lock_shared(file.as_fd()).map_err(|e| self.failed("lock", e))? {
            if Instant::now() > by {
                return Err(self.failed("lock", IoKind::TimedOut.into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(file)
    }

    fn open_lock(&self) -> io::Result<File> {
        let path = Path::new(&self.path).join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        options.open(path)
    }

    fn failed(&self, operation: &str, e: io::Error) -> Error {
        Error::io(format_args!("cannot {operation} {}/{LOCK}", self.path), e)
    }

    /// Creates the directory of a sandbox, with one in it for the container if `is_shared`.
    pub(super) fn create(&self, is_shared: bool) -> Result<String> {
        let path = format!("{}/{:016x}", self.path, random_u64());
        let created = DirBuilder::new().mode(0o700).create(&path);
        let created = created.and_then(|()| {
            if is_shared {
                create_shared(&shared_dir(&path))
            } else {
                Ok(())
            }
        });
        created.map_err(|e| Error::io(format_args!("cannot create {path}"), e))?;
        Ok(path)
    }

    /// Removes the directories that no container uses. Does nothing if another process creates a container.
    pub(super) fn sweep(&self, used: impl FnOnce() -> Result<Vec<PathBuf>>) -> Result<()> {
        let file = self.open_lock().map_err(|e| self.failed("open", e))?;
        if !os::lock(file.as_fd()).map_err(|e| self.failed("lock", e))? {
            return Ok(());
        }
        let mut left: HashSet<PathBuf> = fs::read_dir(&self.path)
            .map_err(|e| Error::io(format_args!("cannot read {}", self.path), e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| !path.ends_with(LOCK))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        for dir in used()? {
            left.remove(&dir);
        }
        left.iter().for_each(|dir| remove(dir));
        Ok(())
    }

    /// Returns true for the directory of a sandbox of this user.
    pub(super) fn contains(&self, dir: &Path) -> bool {
        // The parent of `PATH/..` is `PATH`, but it has no file name.
        dir.file_name().is_some() && dir.parent() == Some(Path::new(&self.path))
    }
}

/// Returns the path of the directory that a container shares.
pub(super) fn shared_dir(dir: &str) -> String {
    format!("{dir}/{SHARED}")
}

/// Creates a directory in which everybody may create a socket: the user of the image is not known.
fn create_shared(path: &str) -> io::Result<()> {
    DirBuilder::new().create(path)?;
    // Not by the mode of the call above, which the umask applies to.
    fs::set_permissions(path, Permissions::from_mode(0o777))
}

/// Moves the socket of an agent out of the shared directory, and removes that. The agent must have answered: it
/// sets the mode of its socket by the path. Several processes may do this at the same time.
pub(super) fn seal(dir: &Path) -> Result<()> {
    let moved = fs::rename(dir.join(SHARED).join(SOCKET), dir.join(SOCKET));
    let sealed = unless_missing(moved).and_then(|()| {
        let dir = os::open_dir(dir)?;
        unless_missing(remove_at(dir.as_fd(), SHARED.as_bytes()))
    });
    let shown = dir.display();
    sealed.map_err(|e| Error::io(format_args!("cannot move the agent's socket in {shown}"), e))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == IoKind::NotFound => Ok(()),
        result => result,
    }
}

/// Returns the path of an agent's socket, after it was moved or before.
pub(super) fn agent_socket(dir: &Path, is_sealed: bool) -> PathBuf {
    if is_sealed {
        dir.join(SOCKET)
    } else {
        dir.join(SHARED).join(SOCKET)
    }
}

/// Removes the directory of a sandbox. A directory that cannot be removed now is removed by a later sweep.
pub(super) fn remove(dir: &Path) {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return;
    };
    let removed =
        os::open_dir(parent).and_then(|parent| remove_at(parent.as_fd(), name.as_encoded_bytes()));
    if let Err(e) = unless_missing(removed) {
        log::warn!("cannot remove {}: {e}", dir.display());
    }
}

/// Opens an agent's socket. Links to other sockets of the host are not followed. The connection is made through
/// the returned file, so the path may be of any length.
pub(super) fn open_socket(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    // Agents have ports there.
    #[cfg(not(target_os = "linux"))]
    let flags = libc::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.file_type().is_socket() {
        return Ok(file);
    }
    Err(io::Error::new(IoKind::InvalidData, "it is not a socket"))
}

/// Returns the URL of a socket that [`open_socket`] has opened.
pub(super) fn socket_url(socket: &File) -> String {
    format!("unix:///proc/self/fd/{}", socket.as_raw_fd())
}

pub(super) fn write_token(dir: &str, token: &str) -> Result<()> {
    let path = format!("{dir}/{TOKEN}");
    let file = os::create_private_file(Path::new(&path));
    file.and_then(|mut file| file.write_all(token.as_bytes()))
        .map_err(|e| Error::io(format_args!("cannot write {path}"), e))
}

pub(super) fn read_token(dir: &Path) -> Result<String> {
    let path = dir.join(TOKEN);
    fs::read_to_string(&path)
        .map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))
}

/// Returns the directory below which the sandboxes of this user have theirs.
fn default_base() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|dir| dir.is_absolute() && dir.is_dir());
    match (effective_uid(), runtime) {
        // Root's own, also if it was started by `sudo` with another user's environment.
        (0, _) => PathBuf::from("/run/noxrunner"),
        (_, Some(dir)) => dir.join("noxrunner"),
        (uid, None) => env::temp_dir().join(format!("noxrunner-{uid}")),
    }
}

/// Creates a directory, unless it exists, and checks that only this user can use it.
fn create_private(path: &Path) -> Result<()> {
    let failed = |e| Error::io(format_args!("cannot create {}", path.display()), e);
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != IoKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(failed)?;
    let is_private = found.is_dir() && found.uid() == effective_uid() && found.mode() & 0o077 == 0;
    if is_private {
        return Ok(());
    }
    let text = format!(
        "directory {} must be a directory of this user with mode 0700: remove it, or set another one",
        path.display()
    );
    Err(Error::new(ErrorKind::Io, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn dirs() -> (SandboxDirs, tempfile::TempDir) {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().join("base");
        let dirs = SandboxDirs::open(Some(&base), Path::new("/run/docker.sock")).unwrap();
        (dirs, temp)
    }

    #[test]
    fn sweep_removes_what_no_container_uses() {
        let (dirs, _temp) = dirs();
        let (used, left) = (dirs.create(true).unwrap(), dirs.create(true).unwrap());
        fs::write(format!("{left}/file"), "x").unwrap();
        let holder = dirs.hold(Instant::now()).unwrap();
        let second = dirs.hold(Instant::now()).unwrap();
        dirs.sweep(|| unreachable!("another process creates a container"))
            .unwrap();
        drop((holder, second));
        sweep_alone(&dirs, || Ok(vec![PathBuf::from(&used)])).unwrap();
        assert!(Path::new(&used).exists() && !Path::new(&left).exists());
        sweep_alone(&dirs, || Err(Error::invalid("no list"))).unwrap_err();
        assert!(Path::new(&used).exists());
    }

    /// Sweeps once the lock is free. A process that another test starts has it until it runs its program.
    fn sweep_alone(dirs: &SandboxDirs, used: impl Fn() -> Result<Vec<PathBuf>>) -> Result<()> {
        loop {
            let mut has_swept = false;
            let result = dirs.sweep(|| {
                has_swept = true;
                used()
            });
            if has_swept {
                return result;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn private_directories_are_refused_if_others_can_use_them() {
        let (dirs, temp) = dirs();
        let base = temp.path().join("base");
        let open = || SandboxDirs::open(Some(&base), Path::new("/run/docker.sock"));
        open().unwrap();
        fs::set_permissions(&dirs.path, Permissions::from_mode(0o750)).unwrap();
        let error = open().unwrap_err();
        assert!(error.to_string().contains("mode 0700"), "{error}");
    }

    #[test]
    fn nothing_can_be_created_in_a_sealed_directory() {
        let (dirs, _temp) = dirs();
        let dir = dirs.create(true).unwrap();
        let shared = os::open_dir(Path::new(&shared_dir(&dir))).unwrap();
        let dir = Path::new(&dir);
        let _listener = UnixListener::bind(agent_socket(dir, false)).unwrap();
        let socket = open_socket(&agent_socket(dir, false)).unwrap();
        seal(dir).unwrap();
        seal(dir).unwrap();
        assert!(!agent_socket(dir, false).exists());
        for url in [
            socket_url(&socket),
            format!("unix://{}/{SOCKET}", dir.display()),
        ] {
            UnixStream::connect(url.trim_start_matches("unix://")).unwrap();
        }
        let error = os::mkdirat(shared.as_fd(), b"x", 0o777).unwrap_err();
        assert_eq!(error.kind(), IoKind::NotFound);
    }

    #[test]
    fn sockets_are_not_opened_through_links() {
        let (dirs, _temp) = dirs();
        let dir = dirs.create(true).unwrap();
        let path = |name: &str| PathBuf::from(format!("{dir}/{name}"));
        let _listener = UnixListener::bind(path("socket")).unwrap();
        symlink("socket", path("link")).unwrap();
        fs::write(path("file"), "x").unwrap();
        open_socket(&path("socket")).unwrap();
        for name in ["link", "file"] {
            let error = open_socket(&path(name)).unwrap_err();
            assert_eq!(error.to_string(), "it is not a socket", "{name}");
        }
        assert_eq!(
            open_socket(&path("none")).unwrap_err().kind(),
            IoKind::NotFound
        );
    }
}
