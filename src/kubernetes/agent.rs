//! Connections to the agents in pods.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::api::Api;
use super::labels::{NONCE_ANNOTATION, TOKEN_HASH_ANNOTATION};
use super::pod::Pod;
use super::pod_spec::PORT;
use super::token::{Key, Token};
use crate::backend::wire::TOKEN;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{HttpBackend, Retry};
use crate::session_id::SessionId;

/// Maximum time of making a connection to a pod. Its network is near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The way that calls take to the agents in pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PodAccess {
    /// By the address of the pod. This is the fastest way. It needs a process in the cluster's network.
    Address,
    /// Through the API server's proxy for pods. This works wherever `kubectl` works.
    ApiServer,
}

/// Timeouts of the calls to an agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct AgentTimeouts {
    pub(super) timeout: Duration,
    pub(super) transfer: Option<Duration>,
}

/// The agent in one pod.
pub(super) struct Agent {
    /// The v1 server, which knows the sandbox by the name of its pod.
    pub(super) http: HttpBackend,
    pub(super) id: SessionId,
    pub(super) uid: String,
    /// The number of the API server's session that `http` belongs to.
    pub(super) session: u64,
    pod: Pod,
}

/// Settings of the connections to agents.
pub(super) struct Dialer {
    pub(super) key: Key,
    pub(super) access: PodAccess,
    pub(super) timeouts: AgentTimeouts,
}

impl Dialer {
    /// Returns a connection for calls. Sends nothing.
    pub(super) fn connect(&self, api: &Api, pod: &Pod) -> Result<Agent> {
        self.open(api, pod, self.timeouts, Retry::default())
    }

    /// Returns a connection for a call that is sent once and must not take long.
    pub(super) fn connect_once(&self, api: &Api, pod: &Pod, timeout: Duration) -> Result<Agent> {
        let timeouts = AgentTimeouts {
            timeout,
            transfer: None,
        };
        self.open(api, pod, timeouts, Retry::none())
    }

    /// Returns the connection to the same pod with the current credentials of the API server.
    pub(super) fn reconnect(&self, api: &Api, agent: &Agent) -> Result<Agent> {
        self.connect(api, &agent.pod)
    }

    fn open(&self, api: &Api, pod: &Pod, timeouts: AgentTimeouts, retry: Retry) -> Result<Agent> {
        let token = self.token(api.namespace(), pod)?.as_str().to_owned();
        // The proxy of the API server removes `Authorization`.
        let headers = [(TOKEN.to_owned(), token)];
        let name = &pod.metadata.name;
        let session = api.session()?;
        let http = match self.access {
            PodAccess::ApiServer => {
                let path = api.proxy_path(name, PORT);
                let AgentTimeouts { timeout, transfer } = timeouts;
                HttpBackend::over(&session.rest, &path, &headers, timeout, transfer, retry)?
            }
            PodAccess::Address => {
                let [(header, token)] = headers;
                let mut builder = HttpBackend::builder(url(pod)?)
                    .no_proxy()
                    .header(header, token);
                if let Some(timeout) = timeouts.transfer {
                    builder = builder.transfer_timeout(timeout);
                }
                let builder = builder
                    .timeout(timeouts.timeout)
                    .connect_timeout(CONNECT_TIMEOUT.min(timeouts.timeout));
                builder.retry(retry).build()?
            }
        };
        Ok(Agent {
            http,
            id: SessionId::new(name)?,
            uid: pod.metadata.uid.clone(),
            session: session.number,
            pod: pod.clone(),
        })
    }

    /// Returns the token of the agent in a pod.
    fn token(&self, namespace: &str, pod: &Pod) -> Result<Token> {
        let nonce = pod.annotation(NONCE_ANNOTATION).unwrap_or_default();
        let token = self.key.token(namespace, &pod.metadata.name, nonce);
        if pod.annotation(TOKEN_HASH_ANNOTATION) == Some(&token.hash()) {
            return Ok(token);
        }
        let name = &pod.metadata.name;
        Err(Error::new(
            ErrorKind::Unauthorized,
            format!("pod {name} was created with another key: use the same key() in all processes"),
        ))
    }
}

fn url(pod: &Pod) -> Result<String> {
    let address = pod.address().ok_or_else(|| not_started(pod))?;
    let ip: IpAddr = address.parse().map_err(|_| {
        let text = format!("the address {address:?} of the pod is not an IP address");
        Error::new(ErrorKind::Protocol, text)
    })?;
    Ok(format!("http://{}", SocketAddr::new(ip, PORT)))
}

/// Returns the error of a call to a sandbox whose pod has not started.
pub(super) fn not_started(pod: &Pod) -> Error {
    let text = format!("the sandbox has not started: {}", pod.progress());
    Error::new(ErrorKind::NotReady, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_have_an_ip_address() {
        let url_of = |address: &str| {
            let metadata = json!({"name": "nox-1", "uid": "u", "resourceVersion": "7"});
            let pod = json!({"metadata": metadata, "spec": {}, "status": {"podIP": address}});
            url(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(url_of("10.0.0.7").unwrap(), "http://10.0.0.7:8080");
        assert_eq!(url_of("fd00::7").unwrap(), "http://[fd00::7]:8080");
        assert_eq!(url_of("").unwrap_err().kind(), ErrorKind::NotReady);
        for bad in ["evil.example/x", "127.0.0.1:9000/", "10.0.0.7 "] {
            assert_eq!(
                url_of(bad).unwrap_err().kind(),
                ErrorKind::Protocol,
                "{bad}"
            );
        }
    }
}
