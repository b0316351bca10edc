//! The parts of a pod that the backend reads, and what its status means.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::labels::{ID_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL};
use crate::error::one_line;
use crate::session_id::SessionId;

/// Reasons for which a container waits that end the creation of a sandbox at once.
const FAILURES: [&str; 11] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "PostStartHookError",
    "RegistryUnavailable",
    "RunContainerError",
    "CreatePodSandboxError",
];

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) node_name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    reason: String,
    message: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    conditions: Vec<Condition>,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    reason: String,
    message: String,
    exit_code: i32,
    finished_at: Option<String>,
}

/// A stage in the life of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// It may still start, or it runs.
    Alive,
    /// Somebody has deleted it, and its containers may not have ended yet.
    Terminating,
    /// Its containers have ended, for this reason.
    Ended(String),
}

impl Pod {
    /// Returns true if a backend of this crate created the pod for this session id.
    pub(super) fn belongs_to(&self, id: &SessionId) -> bool {
        self.is_managed() && self.annotation(ID_ANNOTATION) == Some(id.as_str())
    }

    fn is_managed(&self) -> bool {
        self.metadata
            .labels
            .get(MANAGED_BY_LABEL)
            .map(String::as_str)
            == Some(MANAGED_BY)
    }

    /// Describes the owner of a pod that belongs to another id.
    pub(super) fn describe_owner(&self) -> String {
        match self.annotation(ID_ANNOTATION).filter(|_| self.is_managed()) {
            Some(id) => format!("belongs to the session id {:?}", one_line(id)),
            None => "was not created by noxrunner".to_owned(),
        }
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(name).map(String::as_str)
    }

    /// Returns the address, which a pod has once a node has prepared its network.
    pub(super) fn address(&self) -> Option<&str> {
        Some(self.status.pod_ip.as_str()).filter(|ip| !ip.is_empty())
    }

    pub(super) fn stage(&self) -> Stage {
        match self.status.phase.as_str() {
            "Succeeded" => Stage::Ended("its TTL expired, or it was stopped".to_owned()),
            "Failed" => Stage::Ended(self.failure()),
            _ if self.metadata.deletion_timestamp.is_some() => Stage::Terminating,
            _ => Stage::Alive,
        }
    }

    /// Returns why the pod failed, in the words of Kubernetes.
    fn failure(&self) -> String {
        if !self.status.reason.is_empty() {
            return words(&self.status.reason, &self.status.message);
        }
        let all = self.status.init_container_statuses.iter();
        let all = all.chain(&self.status.container_statuses);
        let ended = all.filter_map(|one| Some((one, one.state.terminated.as_ref()?)));
        let failed = ended.into_iter().find(|(_, end)| end.exit_code != 0);
        match failed {
            Some((container, end)) => {
                let why = words(&end.reason, &end.message);
                format!(
                    "{why} (exit code {} of container {:?})",
                    end.exit_code, container.name
                )
            }
            None => words("Failed", &self.status.message),
        }
    }

    /// Returns when the last container ended, in ISO 8601.
    pub(super) fn finished_at(&self) -> Option<&str> {
        let all = self.status.container_statuses.iter();
        let all = all.chain(&self.status.init_container_statuses);
        let times = all.filter_map(|one| one.state.terminated.as_ref()?.finished_at.as_deref());
        times.max()
    }

    /// Returns why the pod will not start, in the words of Kubernetes, if that is certain.
    pub(super) fn start_failure(&self) -> Option<String> {
        let all = self.status.init_container_statuses.iter();
        let all = all.chain(&self.status.container_statuses);
        let waiting = all.filter_map(|one| Some((one, one.state.waiting.as_ref()?)));
        let mut failed = waiting.filter(|(_, waiting)| FAILURES.contains(&&*waiting.reason));
        let (container, waiting) = failed.next()?;
        let why = words(&waiting.reason, &waiting.message);
        Some(format!("container {:?}: {why}", container.name))
    }

    /// Returns why no node takes the pod, in the words of Kubernetes.
    pub(super) fn unschedulable(&self) -> Option<String> {
        let scheduled = self.condition("PodScheduled")?;
        let is_refused = scheduled.status == "False" && scheduled.reason == "Unschedulable";
        is_refused.then(|| words(&scheduled.reason, &scheduled.message))
    }

    /// Returns what a pod that has not started is waiting for.
    pub(super) fn progress(&self) -> String {
        let all = self.status.init_container_statuses.iter();
        let all = all.chain(&self.status.container_statuses);
        let waiting = all.filter_map(|one| Some((one, one.state.waiting.as_ref()?)));
        let mut waiting = waiting.filter(|(_, waiting)| !waiting.reason.is_empty());
        match (self.unschedulable(), waiting.next()) {
            (Some(why), _) => why,
            (None, Some((container, waiting))) => {
                let why = words(&waiting.reason, &waiting.message);
                format!("container {:?}: {why}", container.name)
            }
            (None, None) if self.spec.node_name.is_empty() => {
                "no node has taken the pod".to_owned()
            }
            (None, None) => format!("the phase of the pod is {}", one_line(&self.status.phase)),
        }
    }

    /// Returns the reason if a pod that runs does not respond to its node, or its node to the cluster.
    pub(super) fn trouble(&self) -> Option<String> {
        let ready = self
            .condition("Ready")
            .filter(|ready| ready.status != "True")?;
        let why = words(&ready.reason, &ready.message);
        let why = if why.is_empty() {
            "not ready".to_owned()
        } else {
            why
        };
        let node = &self.spec.node_name;
        Some(format!(
            "its pod on node {node:?} is not ready ({why}): the node may be down"
        ))
    }

    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|one| one.kind == kind)
    }
}

/// Joins a reason and a message of Kubernetes.
fn words(reason: &str, message: &str) -> String {
    match (reason.is_empty(), message.is_empty()) {
        (false, false) => one_line(&format!("{reason}: {message}")),
        (false, true) => one_line(reason),
        (true, _) => one_line(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        let metadata = json!({"name": "nox-1", "uid": "u", "resourceVersion": "7"});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    #[test]
    fn ended_pods_say_why() {
        let killed = json!([{"name": "sandbox", "state": {"terminated": {
            "exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-02T03:04:05Z"}}}]);
        let killed = pod(json!({"phase": "Failed", "containerStatuses": killed}));
        let words = "OOMKilled (exit code 137 of container \"sandbox\")";
        assert_eq!(killed.stage(), Stage::Ended(words.to_owned()));
        assert_eq!(killed.finished_at(), Some("2026-01-02T03:04:05Z"));
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on\nmemory"});
        assert_eq!(
            pod(evicted).stage(),
            Stage::Ended("Evicted: low on memory".to_owned())
        );
        assert_eq!(pod(json!({"phase": "Running"})).stage(), Stage::Alive);
        assert!(matches!(
            pod(json!({"phase": "Succeeded"})).stage(),
            Stage::Ended(_)
        ));
    }

    #[test]
    fn only_certain_failures_end_a_start() {
        let waiting = |reason: &str| {
            let state = json!({"waiting": {"reason": reason, "message": "m"}});
            pod(
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "agent", "state": state}]}),
            )
        };
        let failed = waiting("ErrImagePull").start_failure();
        assert_eq!(
            failed.as_deref(),
            Some("container \"agent\": ErrImagePull: m")
        );
        assert_eq!(waiting("PodInitializing").start_failure(), None);
        assert_eq!(
            waiting("PodInitializing").progress(),
            "container \"agent\": PodInitializing: m"
        );
        let refused = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]);
        let refused = pod(json!({"phase": "Pending", "conditions": refused}));
        assert_eq!(
            refused.unschedulable().as_deref(),
            Some("Unschedulable: 0/2 nodes")
        );
    }

    #[test]
    fn pods_of_others_are_recognized() {
        let id = SessionId::new("a").unwrap();
        let pod = |labels: Value, annotations: Value| -> Pod {
            let metadata = json!({"name": "x", "labels": labels, "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let managed = json!({MANAGED_BY_LABEL: MANAGED_BY});
        assert!(pod(managed.clone(), json!({ID_ANNOTATION: "a"})).belongs_to(&id));
        let other = pod(managed, json!({ID_ANNOTATION: "b"}));
        assert!(!other.belongs_to(&id) && other.describe_owner().contains("\"b\""));
        let foreign = pod(json!({}), json!({ID_ANNOTATION: "a"}));
        assert!(!foreign.belongs_to(&id) && foreign.describe_owner().contains("was not created"));
    }
}
