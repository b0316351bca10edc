//! Sources of the credentials for the API server.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::credentials::Credentials;
use super::kubectl;
use crate::error::{Error, ErrorKind, Result};

/// The directory where Kubernetes mounts the credentials of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Source of the credentials, which is read again when they may have expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The service account of the pod that this process runs in.
    InCluster { dir: PathBuf, server: String },
    /// The configuration of `kubectl`.
    Kubectl {
        kubeconfig: Option<PathBuf>,
        context: Option<String>,
    },
    /// A URL that needs no credentials, such as that of `kubectl proxy`.
    Url(String),
}

impl Source {
    /// Returns the source for a process with this environment: the service account if it runs in a cluster,
    /// and else `kubectl`.
    pub(super) fn detect(kubeconfig: Option<PathBuf>, context: Option<String>) -> Source {
        let is_chosen = kubeconfig.is_some() || context.is_some();
        let dir = PathBuf::from(SERVICE_ACCOUNT);
        match in_cluster_server(|name| env::var(name).ok()) {
            Some(server) if !is_chosen && dir.join("token").exists() => {
                Source::InCluster { dir, server }
            }
            _ => Source::Kubectl {
                kubeconfig,
                context,
            },
        }
    }

    pub(super) fn is_in_cluster(&self) -> bool {
        matches!(self, Source::InCluster { .. })
    }

    /// Reads the credentials.
    pub(super) fn load(&self) -> Result<Credentials> {
        match self {
            Source::InCluster { dir, server } => of_service_account(dir, server),
            Source::Kubectl {
                kubeconfig,
                context,
            } => kubectl::credentials(kubeconfig.as_deref(), context.as_deref()),
            Source::Url(url) => Ok(Credentials {
                server: url.clone(),
                ..Credentials::default()
            }),
        }
    }
}

/// Returns the URL of the API server from the variables that Kubernetes sets in every pod.
fn in_cluster_server(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = variable("KUBERNETES_SERVICE_PORT").filter(|port| !port.is_empty())?;
    // An address of version 6.
    if host.contains(':') {
        return Some(format!("https://[{host}]:{port}"));
    }
    Some(format!("https://{host}:{port}"))
}

fn of_service_account(dir: &Path, server: &str) -> Result<Credentials> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read(&path).map_err(|e| {
            let text = format!("cannot read the service account's {}", path.display());
            Error::new(ErrorKind::Io, text).with_source(e)
        })
    };
    let text = |name: &str| {
        let bytes = read(name)?;
        Ok::<_, Error>(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    Ok(Credentials {
        server: server.to_owned(),
        namespace: text("namespace").ok(),
        ca_pem: Some(read("ca.crt")?),
        identity_pem: None,
        token: Some(text("token")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_accounts_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let source = Source::InCluster {
            dir: dir.path().to_owned(),
            server: "https://10.0.0.1:443".to_owned(),
        };
        let missing = source.load().err().unwrap();
        assert!(missing.to_string().contains("ca.crt"), "{missing}");
        write("ca.crt", "CA");
        write("namespace", "team\n");
        write("token", "one\n");
        let first = source.load().unwrap();
        assert_eq!(first.token.as_deref(), Some("one"));
        assert_eq!(first.namespace.as_deref(), Some("team"));
        write("token", "two");
        assert_eq!(source.load().unwrap().token.as_deref(), Some("two"));
    }

    #[test]
    fn addresses_of_version_6_have_brackets() {
        let server = |host: &'static str| {
            let is_host = |name: &str| name.ends_with("HOST");
            in_cluster_server(|name| Some(["443", host][usize::from(is_host(name))].to_owned()))
        };
        assert_eq!(
            server("10.96.0.1").as_deref(),
            Some("https://10.96.0.1:443")
        );
        assert_eq!(server("fd00::1").as_deref(), Some("https://[fd00::1]:443"));
        assert_eq!(in_cluster_server(|_| None), None);
    }
}
