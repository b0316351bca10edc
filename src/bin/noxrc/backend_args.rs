//! Options that choose a backend.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use noxrunner::{Isolation, shell_quote};

use crate::kubernetes_args::KubernetesArgs;
use crate::parse::{header, seconds};

/// The kind of backend that the options choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackendKind {
    Server,
    Local,
    Docker,
    Kubernetes,
}

/// Options that choose a backend. All subcommands have them.
#[derive(clap::Args)]
pub(crate) struct BackendArgs {
    /// URL of the server, or unix:///PATH of its Unix socket
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "NOXRUNNER_BASE_URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub(crate) base_url: String,

    /// Use persistent local sandboxes instead of a server
    #[arg(long, global = true, alias = "local-test")]
    pub(crate) local: bool,

    /// Use containers of Docker or Podman instead of a server [default: DOCKER_HOST, the current
    /// context of docker, or the first engine found]
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        num_args = 0..=1,
        require_equals = true
    )]
    pub(crate) docker: Option<Option<String>>,

    /// Static noxrc to run in containers [default: this program, or the first one on PATH]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,

    /// Runtime of containers, such as runsc for gVisor [default: that of the engine]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) runtime: Option<String>,

    /// Reach containers by a port of the loopback interface, for engines that do not share this
    /// machine's files
    #[arg(long, global = true)]
    pub(crate) docker_port: bool,

    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,

    /// Isolation of local sandboxes
    #[arg(long, global = true, value_name = "TIER", default_value = "namespaces")]
    pub(crate) isolation: Tier,

    /// Show a file or directory of this machine in local sandboxes or containers, read-only (repeatable)
    #[arg(long = "ro", global = true, value_name = "PATH")]
    pub(crate) read_only: Vec<PathBuf>,

    /// Let local sandboxes use this machine's network, including localhost, and containers the network bridge
    #[arg(long, global = true)]
    pub(crate) network: bool,

    /// Timeout for API requests, except exec and transfers [default: 30, and 120 for create]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// Bearer token for the server. Other users can see arguments: prefer the variable or --token-file
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "NOXRUNNER_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,

    /// Read the bearer token from this file (serve: the token that clients need)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Add a header to every request (repeatable; NOXRUNNER_HEADERS has one per line)
    #[arg(long = "header", global = true, value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,

    /// Read headers from this file, one `Name: value` per line
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) header_file: Option<PathBuf>,

    /// Trust these certificates (PEM) for https instead of the default ones
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    Namespaces,
    Landlock,
    None,
}

impl BackendArgs {
    /// Refuses options that exclude each other, or that have no effect. clap does not see those that stand
    /// before a subcommand together with those after it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let kinds = [
            ("--local", self.local),
            ("--docker", self.docker.is_some()),
            ("--kubernetes", self.kubernetes.kubernetes),
        ];
        let mut chosen = kinds.iter().filter(|(_, is_chosen)| *is_chosen);
        if let (Some((first, _)), Some((second, _))) = (chosen.next(), chosen.next()) {
            return Err(format!("{first} cannot be used with {second}"));
        }
        let of_docker = [
            ("--agent", self.agent.is_some()),
            ("--runtime", self.runtime.is_some()),
            ("--docker-port", self.docker_port),
        ];
        let given = of_docker.iter().find(|(_, is_given)| *is_given);
        match (given, self.kubernetes.given_option()) {
            (Some((option, _)), _) if self.docker.is_none() => {
                Err(format!("{option} is for containers only: add --docker"))
            }
            (_, Some(option)) if !self.kubernetes.kubernetes => {
                Err(format!("{option} is for pods only: add --kubernetes"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the kind of backend that these options choose.
    pub(crate) fn kind(&self) -> BackendKind {
        // As for the Python command, an empty URL means local sandboxes as well.
        if self.kubernetes.kubernetes {
            BackendKind::Kubernetes
        } else if self.docker.is_some() {
            BackendKind::Docker
        } else if self.local || self.base_url.is_empty() {
            BackendKind::Local
        } else {
            BackendKind::Server
        }
    }

    /// Returns the options that choose this backend, for a command line that is shown to the user.
    pub(crate) fn chosen_by(&self) -> String {
        match self.kind() {
            BackendKind::Server => format!("--base-url {}", shell_quote(&self.base_url)),
            BackendKind::Local => "--local".to_owned(),
            BackendKind::Kubernetes => self.kubernetes.chosen_by(),
            BackendKind::Docker => match self.docker.as_ref().and_then(Option::as_ref) {
                Some(socket) => format!("--docker={}", shell_quote(socket)),
                None => "--docker".to_owned(),
            },
        }
    }

    /// Returns the token, unless it is empty.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref().filter(|token| !token.is_empty())
    }
}

impl From<Tier> for Isolation {
    fn from(tier: Tier) -> Isolation {
        match tier {
            Tier::Namespaces => Isolation::Namespaces,
            Tier::Landlock => Isolation::Landlock,
            Tier::None => Isolation::None,
        }
    }
}
