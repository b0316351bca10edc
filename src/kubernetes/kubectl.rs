//! Credentials from `kubectl config view`.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::credentials::Credentials;
use crate::error::{Error, ErrorKind, Result, one_line};

/// Maximum time that kubectl may take to print its configuration.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Advice for clusters whose credentials only kubectl can use.
const PROXY_ADVICE: &str = "run `kubectl proxy --unix-socket=/tmp/kubectl.sock --reject-paths='^$'` and use \
    unix:///tmp/kubectl.sock as the API server";

/// The configuration of one context, as `kubectl config view --minify --flatten -o json` prints it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedContext {
    context: Context,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    namespace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedUser {
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// Reads the credentials of a context, or of the current one.
pub(super) fn credentials(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Credentials> {
    let mut kubectl = Command::new("kubectl");
    kubectl.args([
        "config",
        "view",
        "--raw",
        "--minify",
        "--flatten",
        "-o",
        "json",
    ]);
    if let Some(path) = kubeconfig {
        kubectl.arg("--kubeconfig").arg(path);
    }
    if let Some(context) = context {
        kubectl.arg("--context").arg(context);
    }
    parse(&run(kubectl)?)
}

/// Runs kubectl, and returns what it prints.
fn run(mut kubectl: Command) -> Result<Vec<u8>> {
    let kubectl = kubectl
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = kubectl.spawn().map_err(cannot_run)?;
    let (sender, receiver) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let errors = thread::spawn(move || read_all(stderr));
    thread::spawn(move || sender.send(read_all(stdout)));
    let Ok(printed) = receiver.recv_timeout(TIMEOUT) else {
        end(&mut child);
        let text = format!(
            "kubectl config view: timed out after {} s",
            TIMEOUT.as_secs()
        );
        return Err(Error::new(ErrorKind::Timeout, text));
    };
    let status = child.wait().map_err(cannot_run)?;
    if status.success() {
        return Ok(printed);
    }
    let errors = errors.join().unwrap_or_default();
    let errors = one_line(&String::from_utf8_lossy(&errors));
    Err(Error::invalid(format!("kubectl config view: {errors}")))
}

fn read_all(stream: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // The output before an error is more specific than the error.
        let _ = stream.read_to_end(&mut bytes);
    }
    bytes
}

fn end(child: &mut Child) {
    // Fails only if it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn cannot_run(e: io::Error) -> Error {
    let text = "cannot run kubectl, which reads the kubeconfig: install it, or run `kubectl proxy` elsewhere \
        and set its URL as the API server";
    Error::new(ErrorKind::Io, text).with_source(e)
}

fn parse(json: &[u8]) -> Result<Credentials> {
    let config: Config = serde_json::from_slice(json).map_err(|e| {
        Error::new(ErrorKind::Protocol, "kubectl config view: unexpected JSON").with_source(e)
    })?;
    let first = |missing: &str| Error::invalid(format!("kubeconfig: {missing}"));
    let no_cluster =
        || first("it has no cluster for the context: set KUBECONFIG, kubeconfig() or context()");
    let cluster = config
        .clusters
        .unwrap_or_default()
        .into_iter()
        .next()
        .ok_or_else(no_cluster)?
        .cluster;
    let user = config
        .users
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default()
        .user;
    let context = config
        .contexts
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default()
        .context;
    check_supported(&cluster, &user)?;
    let ca_pem = cluster.certificate_authority_data.as_deref();
    let ca_pem = ca_pem
        .map(|data| decode("certificate-authority-data", data))
        .transpose()?;
    Ok(Credentials {
        ca_pem,
        identity_pem: identity(&user)?,
        token: token(&user)?,
        namespace: context.namespace,
        server: cluster.server,
    })
}

/// Refuses settings that only kubectl itself can use.
fn check_supported(cluster: &Cluster, user: &User) -> Result<()> {
    let unsupported = [
        ("an exec plugin for credentials", user.exec.is_some()),
        (
            "an auth-provider, such as OIDC",
            user.auth_provider.is_some(),
        ),
        ("a user name and a password", user.username.is_some()),
        ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify),
        ("tls-server-name", cluster.tls_server_name.is_some()),
        ("proxy-url", cluster.proxy_url.is_some()),
    ];
    match unsupported.iter().find(|(_, is_set)| *is_set) {
        Some((what, _)) => {
            let text = format!("kubeconfig: {what} is not supported: {PROXY_ADVICE}");
            Err(Error::new(ErrorKind::Unsupported, text))
        }
        None => Ok(()),
    }
}

fn identity(user: &User) -> Result<Option<Vec<u8>>> {
    let (Some(certificate), Some(key)) = (&user.client_certificate_data, &user.client_key_data)
    else {
        return Ok(None);
    };
    let mut pem = decode("client-certificate-data", certificate)?;
    pem.push(b'\n');
    pem.extend(decode("client-key-data", key)?);
    Ok(Some(pem))
}

fn token(user: &User) -> Result<Option<String>> {
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|e| Error::io(format_args!("cannot read the token file {path}"), e))?,
        (None, None) => return Ok(None),
    };
    Ok(Some(token.trim().to_owned()))
}

fn decode(name: &str, data: &str) -> Result<Vec<u8>> {
    let invalid = |e| Error::invalid(format!("kubeconfig: {name} is not base64")).with_source(e);
    BASE64.decode(data.trim()).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(cluster: Value, user: Value) -> Result<Credentials> {
        let json = json!({
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "team"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        });
        parse(json.to_string().as_bytes())
    }

    #[test]
    fn certificates_and_tokens_are_read() {
        let cluster =
            json!({"server": "https://h:6443", "certificate-authority-data": BASE64.encode("CA")});
        let found = config(cluster.clone(), json!({"token": "t\n"})).unwrap();
        assert_eq!(
            (found.server.as_str(), found.namespace.as_deref()),
            ("https://h:6443", Some("team"))
        );
        assert_eq!(
            (found.ca_pem.as_deref(), found.token.as_deref()),
            (Some(&b"CA"[..]), Some("t"))
        );
        let user = json!({
            "client-certificate-data": BASE64.encode("CERT"), "client-key-data": BASE64.encode("KEY"),
        });
        let found = config(cluster, user).unwrap();
        assert_eq!(found.identity_pem.as_deref(), Some(&b"CERT\nKEY"[..]));
    }

    #[test]
    fn what_only_kubectl_can_use_is_refused_with_the_way_out() {
        let cluster = json!({"server": "https://h"});
        let insecure = json!({"server": "https://h", "insecure-skip-tls-verify": true});
        for (cluster, user, text) in [
            (&cluster, json!({"exec": {"command": "aws"}}), "exec plugin"),
            (&cluster, json!({"auth-provider": {"name": "oidc"}}), "OIDC"),
            (&insecure, json!({}), "insecure-skip-tls-verify"),
        ] {
            let error = config(cluster.clone(), user).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(text), "{error}");
            assert!(error.to_string().contains("kubectl proxy"), "{error}");
        }
        let empty = parse(b"{\"clusters\": null, \"users\": null}")
            .err()
            .unwrap();
        assert!(empty.to_string().contains("no cluster"), "{empty}");
    }
}
