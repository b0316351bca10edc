//! Settings of the Kubernetes backend.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::agent::{AgentTimeouts, Dialer, PodAccess};
use super::api::Api;
use super::backend::KubernetesBackend;
use super::create::Creator;
use super::key_file;
use super::pod_spec::{PodSettings, parse_template};
use super::sandboxes::Sandboxes;
use super::source::Source;
use super::sweep::Sweeper;
use super::token::Key;
use crate::engine::AgentCache;
use crate::error::{Error, ErrorKind, Result};
use crate::os::state_home::state_home;
use crate::quantity::{MIN_MEMORY, MIN_STORAGE, parse_bytes, parse_cpu};
use crate::validate::check_duration;

/// Default timeout of calls other than exec, create and transfers.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Default timeout of create, in which an image may be pulled.
const DEFAULT_CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Default of how long no node may take a pod.
const DEFAULT_UNSCHEDULABLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Default of how long a pod lives at most: 24 h.
const DEFAULT_MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Default storage limit of a sandbox.
const DEFAULT_STORAGE: &str = "1Gi";

/// Settings of a [`KubernetesBackend`].
///
/// In a pod, the backend uses the pod's service account. Elsewhere it uses the current context of `kubectl`,
/// which must be installed. Credentials that only `kubectl` can use, such as those of exec plugins, work
/// through `kubectl proxy`; see [`api_server`](Self::api_server).
#[derive(Clone)]
#[must_use]
pub struct KubernetesBackendBuilder {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    api_server: Option<String>,
    namespace: Option<String>,
    pod_access: Option<PodAccess>,
    key: Option<Vec<u8>>,
    image: Option<String>,
    agent_image: Option<String>,
    cpu: Option<String>,
    memory: Option<String>,
    storage: Option<String>,
    template: Option<String>,
    timeout: Duration,
    create_timeout: Duration,
    transfer_timeout: Option<Duration>,
    unschedulable_timeout: Duration,
    max_lifetime: Duration,
}

impl KubernetesBackend {
    /// Returns the default settings, to be changed and [built](KubernetesBackendBuilder::build).
    pub fn builder() -> KubernetesBackendBuilder {
        KubernetesBackendBuilder {
            kubeconfig: None,
            context: None,
            api_server: None,
            namespace: None,
            pod_access: None,
            key: None,
            image: None,
            agent_image: None,
            cpu: None,
            memory: None,
            storage: None,
            template: None,
            timeout: DEFAULT_TIMEOUT,
            create_timeout: DEFAULT_CREATE_TIMEOUT,
            transfer_timeout: None,
            unschedulable_timeout: DEFAULT_UNSCHEDULABLE_TIMEOUT,
            max_lifetime: DEFAULT_MAX_LIFETIME,
        }
    }
}

impl KubernetesBackendBuilder {
    /// Sets the kubeconfig file. Defaults to that of `kubectl`: `$KUBECONFIG`, or `~/.kube/config`.
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> KubernetesBackendBuilder {
        self.kubeconfig = Some(path.into());
        self
    }

    /// Sets the context of the kubeconfig. Defaults to its current context.
    pub fn context(mut self, context: impl Into<String>) -> KubernetesBackendBuilder {
        self.context = Some(context.into());
        self
    }

    /// Sets the URL of an API server that needs no credentials, and uses neither the service account nor
    /// `kubectl`. It is usually that of a `kubectl proxy`, which adds the credentials:
    ///
    /// ```sh
    /// kubectl proxy --unix-socket=/tmp/kubectl.sock --reject-paths='^$'
    /// ```
    ///
    /// ```no_run
    /// let backend = noxrunner::KubernetesBackend::builder()
    ///     .api_server("unix:///tmp/kubectl.sock")
    ///     .agent_image("registry.example.com/noxrunner-agent:1")
    ///     .build()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn api_server(mut self, url: impl Into<String>) -> KubernetesBackendBuilder {
        self.api_server = Some(url.into());
        self
    }

    /// Sets the namespace of the pods, which must exist. Defaults to that of the service account or the
    /// context, and else to `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> KubernetesBackendBuilder {
        self.namespace = Some(namespace.into());
        self
    }

    /// Sets how calls reach the pods. Defaults to [`PodAccess::Address`] in a pod of the cluster, and else to
    /// [`PodAccess::ApiServer`].
    pub fn pod_access(mut self, access: PodAccess) -> KubernetesBackendBuilder {
        self.pod_access = Some(access);
        self
    }

    /// Sets the secret that the tokens of the agents are derived from, at least 16 bytes. Space around it,
    /// such as the newline at the end of a file, is removed. All processes that use the same sandboxes need
    /// the same key. Who has it and reaches the pods can run commands in all sandboxes.
    ///
    /// Defaults to a random key of this user, which is created on first use as `kubernetes.key`, with mode
    /// 0600, in `noxrunner` in `$XDG_STATE_HOME` or `~/.local/state`.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> KubernetesBackendBuilder {
        self.key = Some(key.into());
        self
    }

    /// Sets the image of sandboxes whose spec has none. Defaults to none: the spec must have one.
    pub fn image(mut self, image: impl Into<String>) -> KubernetesBackendBuilder {
        self.image = Some(image.into());
        self
    }

    /// Sets the image that the agent comes from: it has a static `noxrc` of this version at `/noxrc`, and
    /// needs nothing else. Has no default.
    pub fn agent_image(mut self, image: impl Into<String>) -> KubernetesBackendBuilder {
        self.agent_image = Some(image.into());
        self
    }

    /// Sets the CPU limit of sandboxes whose spec has none, such as `500m`. Defaults to none: the namespace
    /// may have a `LimitRange`.
    pub fn cpu(mut self, limit: impl Into<String>) -> KubernetesBackendBuilder {
        self.cpu = Some(limit.into());
        self
    }

    /// Sets the memory limit of sandboxes whose spec has none, such as `512Mi`. Defaults to none: the
    /// namespace may have a `LimitRange`.
    pub fn memory(mut self, limit: impl Into<String>) -> KubernetesBackendBuilder {
        self.memory = Some(limit.into());
        self
    }

    /// Sets the storage limit of sandboxes whose spec has none, such as `2Gi`: for `/workspace`, `/tmp` and
    /// what commands write elsewhere together. Defaults to `1Gi`.
    pub fn storage(mut self, limit: impl Into<String>) -> KubernetesBackendBuilder {
        self.storage = Some(limit.into());
        self
    }

    /// Sets a template, JSON in the form of a pod, which is merged into every pod: for example a runtime
    /// class, a node selector, tolerations, pull secrets or requests of resources. Objects are merged field by
    /// field, and null removes a field. Lists whose elements have a name are merged by it: the container of
    /// the sandbox is `sandbox`, the one that installs the agent is `agent`. Other lists are replaced. A
    /// template cannot change the name, our labels and annotations, and the restart policy.
    ///
    /// ```no_run
    /// let backend = noxrunner::KubernetesBackend::builder()
    ///     .agent_image("registry.example.com/noxrunner-agent:1")
    ///     .template(r#"{"spec": {
    ///         "runtimeClassName": "gvisor",
    ///         "containers": [{"name": "sandbox", "resources": {"requests": {"cpu": "50m"}}}]
    ///     }}"#)
    ///     .build()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn template(mut self, json: impl Into<String>) -> KubernetesBackendBuilder {
        self.template = Some(json.into());
        self
    }

    /// Sets the timeout of health, touch and delete, and how long an upload or a download may stall. An exec
    /// uses the timeout of its command instead. Defaults to 30 s.
    pub fn timeout(mut self, timeout: Duration) -> KubernetesBackendBuilder {
        self.timeout = timeout;
        self
    }

    /// Sets the timeout of create, in which a node may pull an image. Defaults to 120 s.
    pub fn create_timeout(mut self, timeout: Duration) -> KubernetesBackendBuilder {
        self.create_timeout = timeout;
        self
    }

    /// Sets the total timeout of an upload or a download. Defaults to none: a transfer may take as long as
    /// bytes keep moving.
    pub fn transfer_timeout(mut self, timeout: Duration) -> KubernetesBackendBuilder {
        self.transfer_timeout = Some(timeout);
        self
    }

    /// Sets how long create waits while no node has room for the pod. Raise it if the cluster adds nodes on
    /// demand. Defaults to 30 s.
    pub fn unschedulable_timeout(mut self, timeout: Duration) -> KubernetesBackendBuilder {
        self.unschedulable_timeout = timeout;
        self
    }

    /// Sets how long a pod lives at most, whatever its TTL and touches. A spec with a longer TTL is refused.
    /// Kubernetes ends the pod at this time even if the agent does not. Defaults to 24 h.
    pub fn max_lifetime(mut self, lifetime: Duration) -> KubernetesBackendBuilder {
        self.max_lifetime = lifetime;
        self
    }

    /// Creates the backend. Reads the credentials, with `kubectl` outside of a cluster. Sends nothing.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for a setting that is invalid or missing, by its
    ///   name, and for a context that does not exist.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) for credentials that only `kubectl` can use. The
    ///   message shows how to use `kubectl proxy`.
    /// - [`Io`](crate::ErrorKind::Io) if `kubectl` cannot be run, or the key cannot be read or created.
    pub fn build(self) -> Result<KubernetesBackend> {
        self.check()?;
        let api = Api::open(self.source()?, self.namespace.clone())?;
        check_namespace(api.namespace())?;
        let pods = self.pods()?;
        let creator = Creator {
            dialer: self.dialer(&api)?,
            api: Arc::new(api),
            pods,
            timeout: self.create_timeout,
            unschedulable: self.unschedulable_timeout,
        };
        Ok(KubernetesBackend {
            sandboxes: Sandboxes {
                creator,
                cache: AgentCache::new(),
                timeout: self.timeout,
            },
            sweeper: Sweeper::default(),
        })
    }

    fn pods(&self) -> Result<PodSettings> {
        let agent_image = self.agent_image.clone().ok_or_else(|| {
            Error::invalid(
                "no agent image: set one with agent_image() (noxrc: --agent-image), it has a static noxrc at /noxrc",
            )
        })?;
        let storage = self.storage.as_deref().unwrap_or(DEFAULT_STORAGE);
        Ok(PodSettings {
            image: self.image.clone(),
            cpu: self.cpu.clone(),
            memory: self.memory.clone(),
            storage: storage.to_owned(),
            agent_image,
            template: self.template.as_deref().map(parse_template).transpose()?,
            max_lifetime: self.max_lifetime,
        })
    }

    fn dialer(&self, api: &Api) -> Result<Dialer> {
        let key = match &self.key {
            Some(key) => Key::new(key)?,
            None => key_file::load_or_create(&state_home().ok_or_else(no_state_home)?)?,
        };
        let default_access = if api.is_in_cluster() {
            PodAccess::Address
        } else {
            PodAccess::ApiServer
        };
        Ok(Dialer {
            key,
            access: self.pod_access.unwrap_or(default_access),
            timeouts: AgentTimeouts {
                timeout: self.timeout,
                transfer: self.transfer_timeout,
            },
        })
    }

    fn source(&self) -> Result<Source> {
        match &self.api_server {
            Some(_) if self.kubeconfig.is_some() || self.context.is_some() => Err(Error::invalid(
                "an API server cannot be combined with a kubeconfig or a context: it is used without credentials",
            )),
            Some(url) => Ok(Source::Url(url.clone())),
            None => Ok(Source::detect(
                self.kubeconfig.clone(),
                self.context.clone(),
            )),
        }
    }

    fn check(&self) -> Result<()> {
        check_duration("the timeout", self.timeout)?;
        check_duration("the create timeout", self.create_timeout)?;
        check_duration("the unschedulable timeout", self.unschedulable_timeout)?;
        check_duration("the maximum lifetime", self.max_lifetime)?;
        if let Some(timeout) = self.transfer_timeout {
            check_duration("the transfer timeout", timeout)?;
        }
        if let Some(cpu) = &self.cpu {
            parse_cpu(cpu)?;
        }
        if let Some(memory) = &self.memory {
            parse_bytes("memory limit", memory, MIN_MEMORY)?;
        }
        if let Some(storage) = &self.storage {
            parse_bytes("storage limit", storage, MIN_STORAGE)?;
        }
        Ok(())
    }
}

/// Checks a name that becomes a part of URLs.
fn check_namespace(name: &str) -> Result<()> {
    let is_valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.is_empty() && name.len() <= 63 && name.chars().all(is_valid) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "namespace {name:?}: not a valid name: use lower-case letters, digits and hyphens"
    )))
}

fn no_state_home() -> Error {
    Error::new(
        ErrorKind::Io,
        "no place for the key, XDG_STATE_HOME and HOME are not absolute paths: set one with key() (noxrc: --key-file)",
    )
}

/// Does not show the key and the template, which may have secrets.
impl fmt::Debug for KubernetesBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesBackendBuilder")
            .field("kubeconfig", &self.kubeconfig)
            .field("context", &self.context)
            .field("api_server", &self.api_server)
            .field("namespace", &self.namespace)
            .field("pod_access", &self.pod_access)
            .field("image", &self.image)
            .field("agent_image", &self.agent_image)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> KubernetesBackendBuilder {
        KubernetesBackend::builder()
            .api_server("http://127.0.0.1:1")
            .key("0123456789abcdef")
            .agent_image("agent:1")
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        let cases: [(KubernetesBackendBuilder, &str); 8] = [
            (builder().namespace("Team_A"), "namespace \"Team_A\""),
            (builder().key("short"), "the key for tokens"),
            (builder().template("[]"), "pod template"),
            (builder().context("c"), "cannot be combined"),
            (builder().memory("512m"), "memory limit \"512m\""),
            (builder().timeout(Duration::ZERO), "the timeout is zero"),
            (
                builder().max_lifetime(Duration::ZERO),
                "the maximum lifetime is zero",
            ),
            (builder().api_server("ftp://h"), "base URL"),
        ];
        for (builder, text) in cases {
            let error = builder.build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(text), "{error}");
        }
        let no_agent = KubernetesBackend::builder()
            .api_server("http://h")
            .key("0123456789abcdef");
        assert!(
            no_agent
                .build()
                .unwrap_err()
                .to_string()
                .contains("no agent image")
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let builder = builder()
            .key("s3cret-s3cret-s3cret")
            .template("{\"spec\": {}}");
        assert!(!format!("{builder:?}").contains("s3cret"));
        let backend = builder.build().unwrap();
        assert_eq!(
            (backend.namespace(), backend.pod_access()),
            ("default", PodAccess::ApiServer)
        );
        assert!(!format!("{backend:?}").contains("s3cret"));
    }
}
