//! The settings of all sandboxes of a backend, and the limits of one.

use std::fs;
use std::io;
use std::path::{Component, Path};

use crate::error::{Error, Result};
use crate::quantity::{
    DEFAULT_MEMORY, DEFAULT_STORAGE, MIN_MEMORY, MIN_STORAGE, parse_bytes, parse_cpu,
};
use crate::spec::SandboxSpec;

/// Directory in the container with the agent's program and its socket.
const AGENT_DIR: &str = "/.noxrunner";

/// Default of the maximum number of processes and threads of a sandbox.
const DEFAULT_PIDS: u32 = 512;

/// Settings of all sandboxes. The spec of a sandbox takes precedence where it has the same setting.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) image: Option<String>,
    pub(super) cpu: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) storage: Option<String>,
    pub(super) pids: u32,
    pub(super) runtime: Option<String>,
    pub(super) network: Option<String>,
    pub(super) user: Option<String>,
    pub(super) mounts: Vec<Mount>,
}

/// A file or directory of the host in the sandboxes.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    pub(super) host: String,
    pub(super) container: String,
    pub(super) read_only: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            image: None,
            cpu: None,
            memory: None,
            storage: None,
            pids: DEFAULT_PIDS,
            runtime: None,
            network: None,
            user: None,
            mounts: Vec::new(),
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        self.limits(&SandboxSpec::new())?;
        if self.pids == 0 {
            return Err(Error::invalid("the limit of processes is zero"));
        }
        let texts = [
            ("the image", &self.image),
            ("the runtime", &self.runtime),
            ("the network", &self.network),
            ("the user", &self.user),
        ];
        for (name, text) in texts {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return Err(Error::invalid(format!("{name} is empty")));
            }
        }
        self.mounts.iter().try_for_each(Mount::check)
    }

    /// Returns the image of a sandbox.
    pub(super) fn image<'a>(&'a self, spec: &'a SandboxSpec) -> Result<&'a str> {
        match spec.get_image().or(self.image.as_deref()) {
            Some(image) if image.trim().is_empty() => Err(Error::invalid("the image is empty")),
            Some(image) => Ok(image),
            None => Err(Error::invalid(
                "no image: set the spec's image(), or the backend's default with DockerBackendBuilder::image() (noxrc: --image)",
            )),
        }
    }

    /// Returns the limits of a sandbox as numbers.
    pub(super) fn limits(&self, spec: &SandboxSpec) -> Result<Limits> {
        let cpu = spec.get_cpu().or(self.cpu.as_deref());
        let memory = match spec.get_memory().or(self.memory.as_deref()) {
            Some(text) => parse_bytes("memory limit", text, MIN_MEMORY)?,
            None => DEFAULT_MEMORY,
        };
        let in_memory = memory / 2;
        let storage = match spec.get_storage().or(self.storage.as_deref()) {
            Some(text) => Some(parse_bytes("storage limit", text, MIN_STORAGE)?),
            None => None,
        };
        Ok(Limits {
            cpu_millis: cpu.map(parse_cpu).transpose()?,
            memory,
            on_disk: storage.is_some_and(|storage| storage > in_memory),
            storage: storage.unwrap_or(DEFAULT_STORAGE).min(in_memory),
            // Both directories together leave memory to the processes.
            tmp: storage.unwrap_or(DEFAULT_STORAGE).min(in_memory / 2),
        })
    }
}

/// The limits of a sandbox as numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limits {
    pub(super) cpu_millis: Option<u64>,
    pub(super) memory: u64,
    /// The size of `/workspace` in memory.
    pub(super) storage: u64,
    /// The size of `/tmp`, which is always in memory.
    pub(super) tmp: u64,
    /// More storage was asked for than fits into the memory, so `/workspace` is on the engine's disk.
    pub(super) on_disk: bool,
}

impl Mount {
    fn check(&self) -> Result<()> {
        let invalid = |why: &str| {
            let (host, container) = (&self.host, &self.container);
            Err(Error::invalid(format!(
                "mount {host:?} at {container:?}: {why}"
            )))
        };
        if !self.host.starts_with('/') || !self.container.starts_with('/') {
            return invalid("both paths must be absolute");
        }
        let path = Path::new(&self.container);
        if path.components().any(|c| c == Component::ParentDir) {
            return invalid("the path in the container has a \"..\" component");
        }
        if path.parent().is_none() || path.starts_with(AGENT_DIR) {
            return invalid("it would hide the sandbox's own files");
        }
        Ok(())
    }

    /// Refuses a path that does not exist on this machine. Podman would create it.
    pub(super) fn check_existence(&self) -> Result<()> {
        match fs::metadata(&self.host) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!("cannot mount {:?}", self.host);
                Err(Error::invalid(text).with_source(e))
            }
            // It may exist, but not for this user.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_takes_precedence_over_defaults() {
        let options = Options {
            image: Some("a:1".into()),
            memory: Some("64Mi".into()),
            ..Options::default()
        };
        let spec = SandboxSpec::new();
        assert_eq!(options.image(&spec).unwrap(), "a:1");
        let limits = options.limits(&spec).unwrap();
        assert_eq!((limits.memory, limits.storage), (64 << 20, 32 << 20));
        assert_eq!(limits.tmp, 16 << 20);
        assert!(!limits.on_disk);
        let spec = spec.image("b:2").memory("1Gi").storage("100Mi").cpu("500m");
        assert_eq!(options.image(&spec).unwrap(), "b:2");
        let limits = options.limits(&spec).unwrap();
        assert_eq!((limits.memory, limits.storage), (1 << 30, 100 << 20));
        assert_eq!(limits.tmp, 100 << 20);
        assert_eq!(limits.cpu_millis, Some(500));
        let limits = options.limits(&spec.storage("10Gi")).unwrap();
        assert!(limits.on_disk);
    }

    #[test]
    fn invalid_options_are_refused_by_name() {
        let mount = |host: &str, container: &str| Options {
            mounts: vec![Mount {
                host: host.into(),
                container: container.into(),
                read_only: true,
            }],
            ..Options::default()
        };
        for (options, text) in [
            (mount("data", "/data"), "must be absolute"),
            (mount("/data", "data"), "must be absolute"),
            (mount("/data", "/a/../b"), "\"..\""),
            (mount("/data", "/"), "would hide"),
            (mount("/data", "/.noxrunner/x"), "would hide"),
            (
                Options {
                    pids: 0,
                    ..Options::default()
                },
                "limit of processes",
            ),
            (
                Options {
                    user: Some(" ".into()),
                    ..Options::default()
                },
                "the user is empty",
            ),
            (
                Options {
                    memory: Some("1".into()),
                    ..Options::default()
                },
                "memory limit",
            ),
            (
                Options {
                    cpu: Some("x".into()),
                    ..Options::default()
                },
                "cpu limit",
            ),
        ] {
            let error = options.check().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        mount("/data", "/data").check().unwrap();
        let error = Options::default().image(&SandboxSpec::new()).unwrap_err();
        assert!(error.to_string().starts_with("no image"), "{error}");
    }
}
