//! Options for sandboxes in pods.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use noxrunner::{KubernetesBackend, KubernetesBackendBuilder, PodAccess, Result, shell_quote};

use crate::file_error::file_error;

#[derive(clap::Args)]
pub(crate) struct KubernetesArgs {
    /// Use pods of a Kubernetes cluster instead of a server
    #[arg(long, global = true)]
    pub(crate) kubernetes: bool,

    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,

    /// Path of the kubeconfig [default: that of kubectl]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// URL of an API server that needs no credentials, such as unix:///PATH of a kubectl proxy
    #[arg(
        long,
        global = true,
        value_name = "URL",
        conflicts_with_all = ["context", "kubeconfig"]
    )]
    api_server: Option<String>,

    /// Namespace of the pods [default: that of the context or the service account]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,

    /// Image with a static noxrc at /noxrc, which pods get the agent from
    #[arg(
        long,
        global = true,
        value_name = "IMAGE",
        env = "NOXRUNNER_AGENT_IMAGE"
    )]
    pub(crate) agent_image: Option<String>,

    /// File with JSON that is merged into every pod
    #[arg(long, global = true, value_name = "FILE")]
    pod_template: Option<PathBuf>,

    /// Connection to pods [default: address in a pod of the cluster, else api-server]
    #[arg(long, global = true, value_name = "WAY")]
    pod_access: Option<Access>,

    /// File with the secret that protects the agents [default: one of this user, created on first use]
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Maximum time that create waits for a node with room for the pod [default: 30]
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        value_parser = crate::parse::seconds
    )]
    unschedulable_timeout: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Access {
    /// By the address of the pod
    Address,
    /// Through the API server's proxy
    ApiServer,
}

impl From<Access> for PodAccess {
    fn from(access: Access) -> PodAccess {
        match access {
            Access::Address => PodAccess::Address,
            Access::ApiServer => PodAccess::ApiServer,
        }
    }
}

impl KubernetesArgs {
    /// Returns an option that has an effect on pods only, if there is one.
    pub(crate) fn given_option(&self) -> Option<&'static str> {
        let options = [
            ("--context", self.context.is_some()),
            ("--kubeconfig", self.kubeconfig.is_some()),
            ("--api-server", self.api_server.is_some()),
            ("--pod-template", self.pod_template.is_some()),
            ("--pod-access", self.pod_access.is_some()),
            ("--key-file", self.key_file.is_some()),
            (
                "--unschedulable-timeout",
                self.unschedulable_timeout.is_some(),
            ),
        ];
        let given = options.into_iter().find(|(_, is_given)| *is_given);
        given.map(|(option, _)| option)
    }

    /// Returns the settings of the backend.
    pub(crate) fn builder(&self, timeout: Option<Duration>) -> Result<KubernetesBackendBuilder> {
        let mut builder = KubernetesBackend::builder();
        if let Some(context) = &self.context {
            builder = builder.context(context);
        }
        if let Some(path) = &self.kubeconfig {
            builder = builder.kubeconfig(path);
        }
        if let Some(url) = &self.api_server {
            builder = builder.api_server(url);
        }
        if let Some(namespace) = &self.namespace {
            builder = builder.namespace(namespace);
        }
        if let Some(image) = self.agent_image.as_ref().filter(|image| !image.is_empty()) {
            builder = builder.agent_image(image);
        }
        if let Some(access) = self.pod_access {
            builder = builder.pod_access(access.into());
        }
        if let Some(limit) = self.unschedulable_timeout {
            builder = builder.unschedulable_timeout(limit);
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout).create_timeout(timeout);
        }
        self.with_files(builder)
    }

    /// Returns the options that choose this backend, for a command line that is shown to the user.
    pub(crate) fn chosen_by(&self) -> String {
        let mut options = "--kubernetes".to_owned();
        let texts = [
            ("--context", &self.context),
            ("--api-server", &self.api_server),
            ("--namespace", &self.namespace),
            ("--agent-image", &self.agent_image),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                options.push_str(&format!(" {name} {}", shell_quote(value)));
            }
        }
        options
    }

    fn with_files(
        &self,
        mut builder: KubernetesBackendBuilder,
    ) -> Result<KubernetesBackendBuilder> {
        if let Some(path) = &self.pod_template {
            let json = fs::read_to_string(path);
            let json = json.map_err(|e| file_error("cannot read --pod-template", path, e))?;
            builder = builder.template(json);
        }
        if let Some(path) = &self.key_file {
            let key = fs::read(path).map_err(|e| file_error("cannot read --key-file", path, e))?;
            builder = builder.key(key);
        }
        Ok(builder)
    }
}
