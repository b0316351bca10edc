//! Creating the JSON of a sandbox's pod.

use std::time::Duration;

use serde_json::{Value, json};

use super::labels::{
    HASH_LABEL, ID_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL, NONCE_ANNOTATION, SPEC_ANNOTATION,
    TOKEN_HASH_ANNOTATION,
};
use super::merge::merge;
use super::token::Token;
use crate::backend::wire::CreateRequest;
use crate::engine::initial_ttl;
use crate::error::{Error, Result};
use crate::os::time::whole_seconds;
use crate::quantity::{MIN_MEMORY, MIN_STORAGE, parse_bytes, parse_cpu};
use crate::sandbox_path::WORKSPACE;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;

/// Port of the agent.
pub(super) const PORT: u16 = 8080;

/// Name of the container that runs the agent and the commands.
const CONTAINER: &str = "sandbox";

/// Directory of the agent's program in the pod.
const AGENT_DIR: &str = "/noxrunner";

/// User and group of the agent and the commands, unless the template sets others.
const USER: u32 = 1000;

/// Time from SIGTERM to SIGKILL, if others delete the pod.
const GRACE_SECONDS: u32 = 1;

/// Settings of all pods.
#[derive(Debug, Clone)]
pub(super) struct PodSettings {
    pub(super) image: Option<String>,
    pub(super) cpu: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) storage: String,
    pub(super) agent_image: String,
    pub(super) template: Option<Value>,
    pub(super) max_lifetime: Duration,
}

/// The identity of a new pod.
pub(super) struct Identity<'a> {
    pub(super) id: &'a SessionId,
    pub(super) name: &'a str,
    pub(super) nonce: &'a str,
    pub(super) token: &'a Token,
}

impl PodSettings {
    /// Returns the JSON of the pod of a new sandbox.
    pub(super) fn pod(&self, identity: &Identity<'_>, spec: &SandboxSpec) -> Result<Value> {
        self.check_lifetime(spec)?;
        let image = spec.get_image().or(self.image.as_deref()).ok_or_else(|| {
            Error::invalid(
                "no image: set one in the spec (noxrc: --image), or a default for all sandboxes",
            )
        })?;
        let limits = self.limits(spec)?;
        let storage = spec.get_storage().unwrap_or(&self.storage);
        let mut pod = json!({
            "spec": {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": whole_seconds(self.max_lifetime),
                "terminationGracePeriodSeconds": GRACE_SECONDS,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "initContainers": [self.installer()],
                "containers": [container(identity, spec, image, &limits)],
                "volumes": [
                    {"name": "agent", "emptyDir": {}},
                    {"name": "workspace", "emptyDir": {"sizeLimit": storage}},
                    {"name": "tmp", "emptyDir": {"sizeLimit": storage}},
                ],
            },
        });
        if let Some(template) = &self.template {
            merge(&mut pod, template.clone());
        }
        merge(&mut pod, metadata(identity, spec)?);
        Ok(pod)
    }

    fn check_lifetime(&self, spec: &SandboxSpec) -> Result<()> {
        if spec.get_ttl() <= self.max_lifetime {
            return Ok(());
        }
        let (ttl, max) = (spec.get_ttl().as_secs(), self.max_lifetime.as_secs());
        Err(Error::invalid(format!(
            "the TTL of {ttl} s is longer than the maximum lifetime of a pod, which is {max} s: set a longer one with max_lifetime()"
        )))
    }

    /// Returns the limits of the container, as they were given.
    fn limits(&self, spec: &SandboxSpec) -> Result<Value> {
        let mut limits = serde_json::Map::new();
        if let Some(cpu) = spec.get_cpu().or(self.cpu.as_deref()) {
            parse_cpu(cpu)?;
            limits.insert("cpu".to_owned(), cpu.into());
        }
        if let Some(memory) = spec.get_memory().or(self.memory.as_deref()) {
            parse_bytes("memory limit", memory, MIN_MEMORY)?;
            limits.insert("memory".to_owned(), memory.into());
        }
        let storage = spec.get_storage().unwrap_or(&self.storage);
        parse_bytes("storage limit", storage, MIN_STORAGE)?;
        limits.insert("ephemeral-storage".to_owned(), storage.into());
        Ok(Value::Object(limits))
    }

    /// Returns the container that copies the agent's program to the volume.
    fn installer(&self) -> Value {
        json!({
            "name": "agent",
            "image": self.agent_image,
            "command": ["/noxrc", "agent", "install", AGENT_DIR],
            "securityContext": container_security(),
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "1Mi"},
                "limits": {"memory": "64Mi"},
            },
            "volumeMounts": [{"name": "agent", "mountPath": AGENT_DIR}],
        })
    }
}

fn container(identity: &Identity<'_>, spec: &SandboxSpec, image: &str, limits: &Value) -> Value {
    let ttl = initial_ttl(spec).to_string();
    json!({
        "name": CONTAINER,
        "image": image,
        "command": [
            format!("{AGENT_DIR}/noxrc"), "agent",
            "--session-id", identity.name,
            "--listen", format!("0.0.0.0:{PORT}"),
            "--token-sha256", identity.token.hash(),
            "--ttl", ttl,
        ],
        "ports": [{"name": "noxrunner", "containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": PORT},
            "periodSeconds": 5,
        },
        "resources": {"limits": limits},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "agent", "mountPath": AGENT_DIR, "readOnly": true},
            {"name": "workspace", "mountPath": WORKSPACE},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    })
}

fn container_security() -> Value {
    json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}})
}

/// Returns what a template cannot change.
fn metadata(identity: &Identity<'_>, spec: &SandboxSpec) -> Result<Value> {
    let json = serde_json::to_string(&CreateRequest::from(spec));
    let spec = json.map_err(|e| Error::invalid("cannot be written as JSON").with_source(e))?;
    let hash = identity.name.trim_start_matches("nox-");
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": identity.name,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, HASH_LABEL: hash},
            "annotations": {
                ID_ANNOTATION: identity.id.as_str(),
                SPEC_ANNOTATION: spec,
                NONCE_ANNOTATION: identity.nonce,
                TOKEN_HASH_ANNOTATION: identity.token.hash(),
            },
        },
        "spec": {"restartPolicy": "Never"},
    }))
}

/// Parses a pod template, which has the form of a pod.
pub(super) fn parse_template(text: &str) -> Result<Value> {
    let parsed: Value = serde_json::from_str(text)
        .map_err(|e| Error::invalid("pod template: not valid JSON").with_source(e))?;
    let fields = parsed.as_object().ok_or_else(|| {
        Error::invalid(
            "pod template: not a JSON object: use for example {\"spec\": {\"nodeSelector\": {…}}}",
        )
    })?;
    let known = ["apiVersion", "kind", "metadata", "spec"];
    let unknown = fields.keys().find(|name| !known.contains(&name.as_str()));
    match unknown {
        Some(name) => Err(Error::invalid(format!(
            "pod template: unknown field {name:?}: a template has the form of a pod, with metadata and spec"
        ))),
        None => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::super::token::Key;
    use super::*;
    use crate::error::ErrorKind;

    fn settings() -> PodSettings {
        PodSettings {
            image: None,
            cpu: None,
            memory: Some("64Mi".to_owned()),
            storage: "1Gi".to_owned(),
            agent_image: "agent:1".to_owned(),
            template: None,
            max_lifetime: Duration::from_secs(3600),
        }
    }

    fn pod(settings: &PodSettings, spec: &SandboxSpec) -> Result<Value> {
        let token = Key::new(b"0123456789abcdef")
            .unwrap()
            .token("ns", "nox-1", "n");
        let id = SessionId::new("a/b").unwrap();
        let (name, nonce) = ("nox-1", "n");
        let identity = Identity {
            id: &id,
            name,
            nonce,
            token: &token,
        };
        settings.pod(&identity, spec)
    }

    #[test]
    fn limits_are_verbatim_and_the_token_is_not_in_the_pod() {
        let spec = SandboxSpec::new()
            .image("busybox:1")
            .cpu("1500m")
            .storage("2Gi");
        let pod = pod(&settings(), &spec).unwrap();
        let container = &pod["spec"]["containers"][0];
        let limits = json!({"cpu": "1500m", "memory": "64Mi", "ephemeral-storage": "2Gi"});
        assert_eq!(container["resources"]["limits"], limits);
        assert_eq!(pod["spec"]["volumes"][1]["emptyDir"]["sizeLimit"], "2Gi");
        assert_eq!(pod["metadata"]["annotations"][ID_ANNOTATION], "a/b");
        let token = Key::new(b"0123456789abcdef")
            .unwrap()
            .token("ns", "nox-1", "n");
        let text = pod.to_string();
        assert!(text.contains(&token.hash()) && !text.contains(token.as_str()));
    }

    #[test]
    fn templates_cannot_change_the_identity() {
        let template = json!({
            "metadata": {"name": "x", "labels": {MANAGED_BY_LABEL: "me", "team": "a"}},
            "spec": {"restartPolicy": "Always", "runtimeClassName": "gvisor",
                "containers": [{"name": "sandbox", "env": [{"name": "A", "value": "1"}]}]},
        });
        let settings = PodSettings {
            template: Some(template),
            ..settings()
        };
        let pod = pod(&settings, &SandboxSpec::new().image("i")).unwrap();
        assert_eq!(pod["metadata"]["name"], "nox-1");
        assert_eq!(pod["metadata"]["labels"][MANAGED_BY_LABEL], MANAGED_BY);
        assert_eq!(pod["metadata"]["labels"]["team"], "a");
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        assert_eq!(pod["spec"]["runtimeClassName"], "gvisor");
        let containers = pod["spec"]["containers"].as_array().unwrap();
        assert_eq!(
            (containers.len(), &containers[0]["env"][0]["value"]),
            (1, &json!("1"))
        );
    }

    #[test]
    fn invalid_specs_and_templates_name_the_problem() {
        let new = SandboxSpec::new;
        for (spec, text) in [
            (new(), "no image"),
            (new().image("i").memory("512m"), "did you mean \"512Mi\"?"),
            (new().image("i").cpu("half"), "cpu limit \"half\""),
            (new().image("i").storage("1"), "storage limit \"1\""),
            (
                new().image("i").ttl(Duration::from_secs(3601)),
                "longer than the maximum lifetime",
            ),
        ] {
            let error = pod(&settings(), &spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(text), "{error}");
        }
        for (template, text) in [
            ("{", "not valid JSON"),
            ("[]", "not a JSON object"),
            ("{\"nodeSelector\": {}}", "unknown field \"nodeSelector\""),
        ] {
            let error = parse_template(template).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
