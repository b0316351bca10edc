//! Options that open sandboxes: paths of the host, the host's network, environment variables.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::command::check_env;
use crate::error::{Error, ErrorKind, Result};

/// Directories that every sandbox has. No path of the host can be mounted on, above or below them.
const OWN_DIRS: [&str; 9] = [
    "/dev",
    "/etc",
    "/proc",
    "/sys",
    "/tmp",
    "/var/run",
    "/var/tmp",
    "/workspace",
    "/run",
];

/// Options of a backend, as the caller has set them.
#[derive(Debug, Clone, Default)]
pub(super) struct SandboxOptions {
    pub(super) read_only: Vec<PathBuf>,
    pub(super) network: bool,
    pub(super) env: BTreeMap<String, String>,
    pub(super) delegated_cgroup: bool,
}

/// A path of the host that sandboxes see at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SharedPath {
    pub(super) path: String,
    /// The path without links in it.
    pub(super) target: PathBuf,
}

impl SharedPath {
    /// Returns true if every user may search the directories that lead to the path.
    pub(super) fn is_reachable_by_all(&self) -> bool {
        use std::os::unix::fs::PermissionsExt;
        let mut parents = self.target.ancestors().skip(1);
        parents.all(|dir| fs::metadata(dir).is_ok_and(|dir| dir.permissions().mode() & 1 == 1))
    }
}

impl SandboxOptions {
    /// Checks the environment variables.
    pub(super) fn check(&self) -> Result<()> {
        self.env.iter().try_for_each(check_env)
    }

    /// Checks the paths of the host. Leaves out those below another one.
    pub(super) fn shared_paths(&self) -> Result<Vec<SharedPath>> {
        let checked: Result<Vec<SharedPath>> = self
            .read_only
            .iter()
            .map(|path| shared_path(path))
            .collect();
        let mut paths = checked?;
        paths.sort_by(|a, b| Path::new(&a.path).cmp(Path::new(&b.path)));
        paths.dedup_by(|next, kept| Path::new(&next.path).starts_with(&kept.path));
        Ok(paths)
    }
}

fn shared_path(path: &Path) -> Result<SharedPath> {
    let shown = path.display();
    let refused = |reason: &str| Error::invalid(format!("read-only path {shown} {reason}"));
    if !path.is_absolute() {
        return Err(refused("is not absolute"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(refused("contains \"..\""));
    }
    // Without repeated and trailing slashes.
    let path: PathBuf = path.components().collect();
    let text = path.to_str().filter(|text| !text.contains('\0'));
    let text = text.ok_or_else(|| refused("is not UTF-8 without NUL bytes"))?;
    for own in OWN_DIRS {
        if path.starts_with(own) || Path::new(own).starts_with(&path) {
            return Err(refused(&format!(
                "would hide {own} of the sandbox: choose a path that is neither above nor below it"
            )));
        }
    }
    let target = path.canonicalize().map_err(|e| {
        let text = format!("cannot open the read-only path {shown}");
        Error::new(ErrorKind::InvalidInput, text).with_source(e)
    })?;
    if target == Path::new("/") || ["/proc", "/sys"].iter().any(|dir| target.starts_with(dir)) {
        let target = target.display();
        return Err(refused(&format!("leads to {target}")));
    }
    Ok(SharedPath {
        path: text.to_owned(),
        target,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(paths: &[&Path]) -> SandboxOptions {
        SandboxOptions {
            read_only: paths.iter().map(|path| path.to_path_buf()).collect(),
            ..SandboxOptions::default()
        }
    }

    #[test]
    fn paths_that_cannot_be_shared_are_refused() {
        for (path, reason) in [
            ("opt", "is not absolute"),
            ("", "is not absolute"),
            ("/opt/../etc", "contains \"..\""),
            ("/", "would hide /dev"),
            ("//", "would hide /dev"),
            ("/var", "would hide /var/run"),
            ("/tmp/x", "would hide /tmp"),
            ("/workspace", "would hide /workspace"),
            ("/proc/self", "would hide /proc"),
            ("/etc/ssh/", "would hide /etc"),
            ("/dev/kvm", "would hide /dev"),
            ("/var/tmp/x", "would hide /var/tmp"),
            (
                "/no/such/path",
                "cannot open the read-only path /no/such/path",
            ),
        ] {
            let error = options(&[Path::new(path)]).shared_paths().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}");
            assert!(format!("{error:#}").contains(reason), "{path}: {error:#}");
        }
    }

    #[test]
    fn paths_below_others_are_left_out() {
        let all = ["/usr/lib/", "/usr", "/usr/bin", "/var/lib"].map(Path::new);
        let shared = options(&all).shared_paths().unwrap();
        let paths: Vec<&str> = shared.iter().map(|shared| &*shared.path).collect();
        assert_eq!(paths, ["/usr", "/var/lib"]);
        assert!(shared.iter().all(SharedPath::is_reachable_by_all));
    }
}
