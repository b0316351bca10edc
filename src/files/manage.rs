//! Files and directories within a sandbox: whether they exist, removing and creating them.

use std::path::Path;

use crate::command::Command;
use crate::error::Result;
use crate::sandbox::Sandbox;
use crate::sandbox_path::SandboxPath;
use crate::script::Script;

/// Prints `exists` if `$1` does. An exit code would not do, because some servers hide it.
const EXISTS: Script = Script {
    feature: "exists",
    source: r#"
if [ -e "$1" ]; then echo exists; fi
"#,
    failures: &[],
};

/// Removes `$1`. Prints `removed` if it existed.
const REMOVE: Script = Script {
    feature: "remove",
    source: r#"
if [ -e "$1" ] || [ -L "$1" ]; then rm -rf -- "$1" && echo removed; fi
"#,
    failures: &[],
};

impl Sandbox {
    /// Returns whether a path exists in the sandbox. A symbolic link exists if its target does. Sends
    /// one exec. Needs `sh` in the sandbox.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a path with `..`;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the sandbox has no `sh`; otherwise the same as for
    /// [`exec`](Sandbox::exec).
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        self.context("check a path in", || {
            let path = SandboxPath::new("path", path)?;
            let (workdir, argument) = path.relative()?;
            let command = EXISTS.command(&[&argument]).workdir(workdir);
            let out = EXISTS.run(self, &command, &path.display())?;
            Ok(out.stdout().trim() == "exists")
        })
    }

    /// Creates a directory and its parents. It may exist already. Sends one exec of `mkdir -p`.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a path with `..`;
    /// [`Command`](crate::ErrorKind::Command) if the directory cannot be created; otherwise the same as for
    /// [`exec`](Sandbox::exec).
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        self.context("create a directory in", || {
            let path = SandboxPath::new("path", path)?;
            let (workdir, path) = path.relative()?;
            let mkdir = Command::from(["mkdir", "-p", "--", &path]);
            self.run(mkdir.workdir(workdir)).map(drop)
        })
    }

    /// Removes a file, or a directory with everything below it, and returns whether it existed. A
    /// symbolic link is removed, not its target. Sends one exec. Needs `sh` and `rm` in the sandbox.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a path with `..`, `/` and `/workspace`;
    /// [`Io`](crate::ErrorKind::Io) if something cannot be removed; otherwise the same as for
    /// [`exec`](Sandbox::exec).
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<bool> {
        self.context("remove from", || {
            let path = SandboxPath::file(path)?;
            let (workdir, argument) = path.relative()?;
            let command = REMOVE.command(&[&argument]).workdir(workdir);
            let out = REMOVE.run(self, &command, &path.display())?;
            Ok(out.stdout().trim() == "removed")
        })
    }
}
