//! The container of a sandbox: its configuration, and what the engine says about it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::dirs::{SOCKET, shared_dir};
use super::options::{Limits, Options};
use crate::engine::initial_ttl;
use crate::error::one_line;
use crate::lenient_json::known;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;

/// Label with the session id. Only containers with this label belong to this crate.
pub(super) const ID_LABEL: &str = "noxrunner.session-id";

/// Label with the directory of the sandbox on the host.
pub(super) const DIR_LABEL: &str = "noxrunner.directory";

/// Label with the settings that the sandbox was created with, as JSON.
pub(super) const SPEC_LABEL: &str = "noxrunner.spec";

/// Path of the agent's program in the container.
pub(super) const AGENT_PROGRAM: &str = "/.noxrunner/noxrc";
const SOCKET_DIR: &str = "/.noxrunner/run";

/// Port of the agent, if it has no socket.
const PORT: &str = "8080/tcp";

/// The connection to the agent.
pub(super) enum Access<'a> {
    /// By a socket in a shared directory. The program is shared too.
    Socket { program: &'a str },
    /// By a port on the loopback interface of the host. The program is copied into the container.
    Port { token_hash: &'a str },
}

/// Describes a container to create.
pub(super) struct NewContainer<'a> {
    pub(super) id: &'a SessionId,
    pub(super) spec: &'a SandboxSpec,
    pub(super) image: &'a str,
    pub(super) options: &'a Options,
    pub(super) limits: &'a Limits,
    /// The directory of the sandbox on the host.
    pub(super) dir: &'a str,
    pub(super) access: Access<'a>,
}

impl NewContainer<'_> {
    /// Returns the request of the Engine API.
    pub(super) fn to_json(&self) -> Value {
        let mut config = json!({
            "Image": self.image,
            "Entrypoint": self.entrypoint(),
            "Cmd": [],
            "WorkingDir": "/",
            "Labels": {
                ID_LABEL: self.id.as_str(),
                DIR_LABEL: self.dir,
                SPEC_LABEL: RequestedSpec::new(self.spec, self.image).to_json(),
            },
            "StopTimeout": 1,
            "HostConfig": self.host_config(),
        });
        if let Some(user) = &self.options.user {
            config["User"] = json!(user);
        }
        if let Access::Port { .. } = self.access {
            config["ExposedPorts"] = json!({PORT: {}});
        }
        config
    }

    fn entrypoint(&self) -> Vec<String> {
        let ttl = initial_ttl(self.spec);
        let mut command = vec![
            AGENT_PROGRAM.to_owned(),
            "agent".to_owned(),
            // The id may begin with a hyphen.
            format!("--session-id={}", self.id.as_str()),
            format!("--ttl={ttl}"),
        ];
        match self.access {
            Access::Socket { .. } => command.push(format!("--unix={SOCKET_DIR}/{SOCKET}")),
            Access::Port { token_hash } => command.extend([
                "--listen=0.0.0.0:8080".to_owned(),
                format!("--token-sha256={token_hash}"),
            ]),
        }
        command
    }

    fn host_config(&self) -> Value {
        let Limits {
            cpu_millis, memory, ..
        } = *self.limits;
        let mut config = json!({
            "AutoRemove": true,
            "Init": false,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "NetworkMode": self.network(),
            "PidsLimit": self.options.pids,
            "Memory": memory,
            // Without swap.
            "MemorySwap": memory,
            "Mounts": self.mounts(),
            "Tmpfs": self.tmpfs(),
        });
        if let Some(millis) = cpu_millis {
            config["NanoCpus"] = json!(millis.saturating_mul(1_000_000));
        }
        if let Some(runtime) = &self.options.runtime {
            config["Runtime"] = json!(runtime);
        }
        if let Access::Port { .. } = self.access {
            config["PortBindings"] = json!({PORT: [{"HostIp": "127.0.0.1", "HostPort": ""}]});
        }
        config
    }

    fn network(&self) -> &str {
        match (&self.options.network, &self.access) {
            (Some(network), _) => network,
            (None, Access::Socket { .. }) => "none",
            // Without a network, no port can be published.
            (None, Access::Port { .. }) => "bridge",
        }
    }

    fn mounts(&self) -> Vec<Value> {
        let bind = |source: &str, target: &str, read_only: bool| json!({"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only});
        let mut mounts = Vec::new();
        if let Access::Socket { program } = self.access {
            mounts.push(bind(program, AGENT_PROGRAM, true));
            mounts.push(bind(&shared_dir(self.dir), SOCKET_DIR, false));
        }
        let own = self.options.mounts.iter();
        mounts.extend(own.map(|mount| bind(&mount.host, &mount.container, mount.read_only)));
        mounts
    }

    /// Returns the directories in memory, with their options. One that the caller mounts is left out.
    fn tmpfs(&self) -> Map<String, Value> {
        let mut dirs = vec![("/tmp", self.limits.tmp)];
        if !self.limits.on_disk {
            dirs.push(("/workspace", self.limits.storage));
        }
        let is_mounted = |dir: &str| self.options.mounts.iter().any(|m| m.container == dir);
        let dirs = dirs.into_iter().filter(|(dir, _)| !is_mounted(dir));
        dirs.map(|(dir, size)| {
            let options = format!("rw,exec,nosuid,nodev,mode=1777,size={size}");
            (dir.to_owned(), json!(options))
        })
        .collect()
    }
}

/// The settings that a sandbox was created with. They stay when a later spec asks for others.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RequestedSpec {
    image: Option<String>,
    cpu: Option<String>,
    memory: Option<String>,
    storage: Option<String>,
}

impl RequestedSpec {
    fn new(spec: &SandboxSpec, image: &str) -> RequestedSpec {
        let owned = |setting: Option<&str>| setting.map(str::to_owned);
        RequestedSpec {
            image: Some(image.to_owned()),
            cpu: owned(spec.get_cpu()),
            memory: owned(spec.get_memory()),
            storage: owned(spec.get_storage()),
        }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the names of the settings that a later spec asks for, but that stay different.
    pub(super) fn ignored(&self, spec: &SandboxSpec) -> Vec<&'static str> {
        let settings = [
            ("image", &self.image, spec.get_image()),
            ("cpu", &self.cpu, spec.get_cpu()),
            ("memory", &self.memory, spec.get_memory()),
            ("storage", &self.storage, spec.get_storage()),
        ];
        let is_ignored =
            |is: &Option<String>, asked: Option<&str>| asked.is_some() && is.as_deref() != asked;
        let ignored = settings
            .into_iter()
            .filter(|(_, is, asked)| is_ignored(is, *asked));
        ignored.map(|(name, ..)| name).collect()
    }
}

/// The engine's description of a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) state: State,
    config: Config,
    host_config: HostConfig,
    #[serde(default, deserialize_with = "known")]
    network_settings: NetworkSettings,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: String,
    pub(super) running: bool,
    #[serde(default, rename = "OOMKilled", deserialize_with = "known")]
    oom_killed: bool,
    #[serde(default, deserialize_with = "known")]
    exit_code: i64,
    #[serde(default, deserialize_with = "known")]
    error: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default, deserialize_with = "known")]
    memory: i64,
    #[serde(default, deserialize_with = "known")]
    nano_cpus: i64,
    #[serde(default, deserialize_with = "known")]
    runtime: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default, deserialize_with = "known")]
    ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    host_port: String,
}

impl Container {
    fn label(&self, name: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Returns the session id, unless the container is someone else's.
    pub(super) fn session_id(&self) -> Option<&str> {
        self.label(ID_LABEL)
    }

    /// Returns the directory of the sandbox on the host.
    pub(super) fn dir(&self) -> PathBuf {
        PathBuf::from(self.label(DIR_LABEL).unwrap_or_default())
    }

    /// Returns the port on the loopback interface that leads to the agent.
    pub(super) fn port(&self) -> Option<u16> {
        let bindings = self.network_settings.ports.as_ref()?.get(PORT)?.as_ref()?;
        bindings
            .iter()
            .find_map(|binding| binding.host_port.parse().ok())
    }

    /// Returns the runtime that the engine uses.
    pub(super) fn runtime(&self) -> &str {
        &self.host_config.runtime
    }

    /// Returns the settings that the sandbox was created with.
    pub(super) fn requested(&self) -> RequestedSpec {
        let requested = self.label(SPEC_LABEL).unwrap_or_default();
        serde_json::from_str(requested).unwrap_or_default()
    }

    /// Returns which limits the engine enforces.
    pub(super) fn enforced(&self) -> EnforcedLimits {
        EnforcedLimits {
            cpu: self.host_config.nano_cpus != 0,
            memory: self.host_config.memory != 0,
        }
    }
}

/// The limits that an engine enforces. Docker discards others with a warning, Podman without one.
#[derive(Debug, Clone, Copy)]
pub(super) struct EnforcedLimits {
    cpu: bool,
    memory: bool,
}

impl EnforcedLimits {
    /// Returns the names of the limits that are not enforced.
    pub(super) fn missing(self, limits: &Limits) -> Vec<&'static str> {
        let mut names = Vec::new();
        if limits.cpu_millis.is_some() && !self.cpu {
            names.push("cpu");
        }
        if !self.memory {
            names.push("memory");
        }
        names
    }
}

impl State {
    pub(super) fn is_paused(&self) -> bool {
        self.status == "paused"
    }

    /// Describes the end of the container, in the words of the engine.
    pub(super) fn end(&self) -> String {
        let status = one_line(&self.status);
        let mut text = format!("container {status}, exit code {}", self.exit_code);
        if self.oom_killed {
            text.push_str(", OOMKilled");
        }
        if !self.error.is_empty() {
            text.push_str(": ");
            text.push_str(&one_line(&self.error));
        }
        text
    }
}
