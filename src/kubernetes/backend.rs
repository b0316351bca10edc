//! The Kubernetes backend.

use std::fmt;
use std::io::Read;
use std::time::Instant;

use super::agent::PodAccess;
use super::pod::Stage;
use super::sandboxes::{CallError, Effect, Sandboxes};
use super::sweep::Sweeper;
use crate::backend::Backend;
use crate::chunk::Chunk;
use crate::command::Command;
use crate::engine::sandbox_name;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// Sandboxes in pods of a Kubernetes cluster.
///
/// Each sandbox is a pod with one container of the spec's [image](SandboxSpec::image). The agent, a static
/// `noxrc`, is its process 1 and runs the commands. It comes from an [agent
/// image](super::KubernetesBackendBuilder::agent_image), so the sandbox's image needs nothing but what the
/// commands use. The backend keeps no state: any number of processes with the same
/// [key](super::KubernetesBackendBuilder::key) can use the same sandboxes at the same time.
///
/// Limits are those of Kubernetes: a container that exceeds its storage limit is evicted, and with it the
/// sandbox ends. What the sandbox's memory limit kills depends on the cluster: a process, or the whole
/// container. The [guide](crate::guide::kubernetes) describes a setup.
///
/// Errors say why a sandbox has ended in the words of Kubernetes, such as `OOMKilled` and `Evicted`. To find
/// that out, a call may take up to 10 s longer than its timeout.
///
/// ```no_run
/// use noxrunner::{Client, KubernetesBackend, SandboxSpec};
///
/// let backend = KubernetesBackend::builder()
///     .namespace("sandboxes")
///     .agent_image("registry.example.com/noxrunner-agent:1")
///     .image("python:3.13-slim")
///     .build()?;
/// let client = Client::with_backend(backend);
/// let sandbox = client.create("demo", SandboxSpec::new().memory("512Mi"))?;
/// assert_eq!(sandbox.run(["python3", "-c", "print(6 * 7)"])?.stdout(), "42\n");
/// assert!(sandbox.delete()?);
/// # Ok::<_, noxrunner::Error>(())
/// ```
pub struct KubernetesBackend {
    pub(super) sandboxes: Sandboxes,
    pub(super) sweeper: Sweeper,
}

impl KubernetesBackend {
    /// Returns the URL of the API server.
    #[must_use]
    pub fn server(&self) -> String {
        self.sandboxes.creator.api.server()
    }

    /// Returns the namespace of the pods.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.sandboxes.creator.api.namespace()
    }

    /// Returns how calls reach the pods.
    #[must_use]
    pub fn pod_access(&self) -> PodAccess {
        self.sandboxes.creator.dialer.access
    }
}

impl Backend for KubernetesBackend {
    /// Lists pods, which checks the address, the credentials and the role.
    fn health(&self) -> Result<()> {
        let end = Instant::now() + self.sandboxes.timeout;
        self.sandboxes.creator.api.list("", 1, end).map(drop)
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        spec.check()?;
        self.sweeper.sweep_if_due(&self.sandboxes.creator.api);
        let (info, agent) = self.sandboxes.creator.create(id, spec)?;
        self.sandboxes.cache.insert(id, agent);
        Ok(info)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.sandboxes.call(id, Effect::Idempotent, |agent| {
            agent.http.touch(&agent.id).map_err(CallError::repeatable)
        })
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        self.sandboxes.call(id, Effect::Exec, |agent| {
            agent
                .http
                .exec(&agent.id, command)
                .map_err(CallError::repeatable)
        })
    }

    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        self.sandboxes.call(id, Effect::Exec, |agent| {
            let mut sink_failed = false;
            let mut sink = |chunk: Chunk<'_>| sink(chunk).inspect_err(|_| sink_failed = true);
            let done = agent.http.exec_live(&agent.id, command, &mut sink);
            done.map_err(|error| CallError::unless_final(error, sink_failed))
        })
    }

    fn upload(&self, id: &SessionId, dest: &str, mut archive: Upload<'_>) -> Result<()> {
        self.sandboxes.call(id, Effect::Idempotent, |agent| {
            let sent = agent.http.upload(&agent.id, dest, archive.reborrow());
            sent.map_err(|error| {
                let rewound = archive.rewind();
                match rewound.map_err(|e| Error::io("cannot read the archive again", e)) {
                    Ok(may_repeat) => CallError::Failed { error, may_repeat },
                    Err(e) => CallError::Final(e),
                }
            })
        })
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        self.sandboxes.call(id, Effect::Idempotent, |agent| {
            agent
                .http
                .download(&agent.id, src)
                .map_err(CallError::repeatable)
        })
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.sandboxes.cache.remove_if(id, |_| true);
        let end = Instant::now() + self.sandboxes.timeout;
        let pod = self.sandboxes.creator.api.get(&sandbox_name(id), end)?;
        let Some(pod) = pod.filter(|pod| pod.belongs_to(id)) else {
            return Ok(false);
        };
        let existed = pod.stage() == Stage::Alive;
        if existed {
            self.sandboxes.creator.end_agent(&pod);
        }
        Ok(self.sandboxes.creator.api.delete(&pod, end)? && existed)
    }
}

impl fmt::Debug for KubernetesBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesBackend")
            .field("server", &self.server())
            .field("namespace", &self.namespace())
            .field("pod_access", &self.pod_access())
            .finish_non_exhaustive()
    }
}
