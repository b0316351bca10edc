//! Calls to the API server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::credentials::Credentials;
use super::labels::{MANAGED_BY, MANAGED_BY_LABEL};
use super::pod::Pod;
use super::source::Source;
use super::status::{self, ApiStatus};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{RestBody, RestClient, RestResponse, RestSettings, RestStream};

/// Maximum time until the file of a token is read again. Kubernetes replaces it some minutes before it
/// expires.
const TOKEN_AGE: Duration = Duration::from_secs(10);

/// Pauses before an API server that is overloaded or starting is asked again.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1600),
];

/// The API of one namespace.
pub(super) struct Api {
    source: Source,
    namespace: String,
    current: Mutex<Current>,
}

struct Current {
    session: Arc<Session>,
    read_at: Instant,
}

/// A client with the credentials of a certain time.
pub(super) struct Session {
    pub(super) rest: RestClient,
    /// Differs between sessions.
    pub(super) number: u64,
    credentials: Credentials,
}

#[derive(Deserialize)]
struct PodList {
    items: Vec<Pod>,
}

impl Session {
    fn new(credentials: Credentials, number: u64) -> Result<Session> {
        let token = credentials.token.as_ref();
        let header = token.map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
        let rest = RestClient::new(RestSettings {
            base_url: credentials.server.clone(),
            headers: header.into_iter().collect(),
            ca_pem: credentials.ca_pem.clone(),
            client_identity_pem: credentials.identity_pem.clone(),
        })?;
        Ok(Session {
            rest,
            number,
            credentials,
        })
    }
}

impl Api {
    /// Reads the credentials. Sends nothing. The namespace defaults to that of the credentials.
    pub(super) fn open(source: Source, namespace: Option<String>) -> Result<Api> {
        let credentials = source.load()?;
        let of_source = credentials
            .namespace
            .clone()
            .filter(|name| !name.is_empty());
        let namespace = namespace
            .or(of_source)
            .unwrap_or_else(|| "default".to_owned());
        let session = Arc::new(Session::new(credentials, 0)?);
        let read_at = Instant::now();
        Ok(Api {
            source,
            namespace,
            current: Mutex::new(Current { session, read_at }),
        })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn server(&self) -> String {
        self.lock().session.credentials.server.clone()
    }

    pub(super) fn is_in_cluster(&self) -> bool {
        self.source.is_in_cluster()
    }

    /// Returns the current session, with a token that was read a short time ago.
    pub(super) fn session(&self) -> Result<Arc<Session>> {
        let mut current = self.lock();
        if self.source.is_in_cluster() && current.read_at.elapsed() > TOKEN_AGE {
            self.read_again(&mut current)?;
        }
        Ok(Arc::clone(&current.session))
    }

    /// Reads the credentials again after the API server has refused those of a session. Returns false if
    /// they have not changed.
    pub(super) fn renew(&self, refused: u64) -> Result<bool> {
        let mut current = self.lock();
        if current.session.number == refused {
            self.read_again(&mut current)?;
        }
        Ok(current.session.number != refused)
    }

    fn read_again(&self, current: &mut Current) -> Result<()> {
        let credentials = self.source.load()?;
        if credentials != current.session.credentials {
            let number = current.session.number + 1;
            current.session = Arc::new(Session::new(credentials, number)?);
        }
        current.read_at = Instant::now();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // The session is replaced as a whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a pod. Returns `None` if there is a pod of this name, perhaps from an earlier attempt of this
    /// call.
    pub(super) fn create(&self, pod: &Value, end: Instant) -> Result<Option<Pod>> {
        let response = self.send("POST", &self.pods(), Some(pod), end)?;
        match response.status {
            200..=202 => response.json().map(Some),
            409 if ApiStatus::parse(&response.body)
                .is_some_and(|status| status.is("AlreadyExists")) =>
            {
                Ok(None)
            }
            _ => Err(status::error("create pod", &response)),
        }
    }

    /// Returns a pod, if it exists.
    pub(super) fn get(&self, name: &str, end: Instant) -> Result<Option<Pod>> {
        let response = self.send("GET", &self.pod(name), None, end)?;
        match response.status {
            200 => response.json().map(Some),
            404 => Ok(None),
            _ => Err(status::error("get pod", &response)),
        }
    }

    /// Deletes a pod at once. Returns false if it does not exist any more, or another one has its name.
    pub(super) fn delete(&self, pod: &Pod, end: Instant) -> Result<bool> {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod.metadata.uid},
        });
        let path = self.pod(&pod.metadata.name);
        let response = self.send("DELETE", &path, Some(&options), end)?;
        match response.status {
            200 | 202 => Ok(true),
            404 | 409 => Ok(false),
            _ => Err(status::error("delete pod", &response)),
        }
    }

    /// Lists at most `limit` pods of this crate. `fields` is a field selector.
    pub(super) fn list(&self, fields: &str, limit: u32, end: Instant) -> Result<Vec<Pod>> {
        let fields = encode(fields);
        let labels = encode(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
        let path = format!(
            "{}?labelSelector={labels}&fieldSelector={fields}&limit={limit}",
            self.pods()
        );
        let response = self.send("GET", &path, None, end)?;
        if response.status != 200 {
            return Err(status::error("list pods", &response));
        }
        Ok(response.json::<PodList>()?.items)
    }

    /// Follows the changes of a pod since a version. The stream ends after `limit`, or earlier.
    pub(super) fn watch(
        &self,
        name: &str,
        version: &str,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<RestStream> {
        let fields = encode(&format!("metadata.name={name}"));
        let (seconds, version) = (limit.as_secs().max(1), encode(version));
        let path = format!(
            "{}?watch=true&fieldSelector={fields}&resourceVersion={version}&timeoutSeconds={seconds}",
            self.pods()
        );
        let session = self.session()?;
        let stall = limit + Duration::from_secs(5);
        let stream = session.rest.stream("GET", &path, stall, Some(cancel))?;
        match stream.status {
            200 => Ok(stream),
            _ => Err(status::stream_error("watch pods", stream)),
        }
    }

    /// Returns the path of a v1 server in a pod, below the API server's proxy.
    pub(super) fn proxy_path(&self, name: &str, port: u16) -> String {
        format!("{}/http:{name}:{port}/proxy", self.pods())
    }

    fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    fn pod(&self, name: &str) -> String {
        format!("{}/{name}", self.pods())
    }

    /// Sends a request until the API server answers with something else than that it is not available, or
    /// that the token has expired.
    fn send(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
        end: Instant,
    ) -> Result<RestResponse> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let session = self.session()?;
            let body = body.map_or(Ok(RestBody::None), RestBody::json)?;
            let response = session.rest.send(method, path, body, left(end)?)?;
            match response.status {
                401 if self.renew(session.number)? => continue,
                // It has no leader, or is starting.
                500 | 502..=504 => {}
                _ => return Ok(response),
            }
            match pauses.next().filter(|pause| Instant::now() + *pause < end) {
                Some(pause) => sleep(pause),
                None => return Ok(response),
            }
        }
    }
}

/// Returns the time that is left for a call.
pub(super) fn left(end: Instant) -> Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::new(
            ErrorKind::Timeout,
            "the API server did not answer in time",
        ));
    }
    Ok(left)
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    /// Answers requests with this token, and refuses others as an API server does.
    fn serve(stream: TcpStream, token: &str) -> Option<()> {
        let expected = format!("authorization: bearer {token}");
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let lines = reader.by_ref().lines().map_while(std::io::Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            if head.is_empty() {
                return None;
            }
            let is_allowed = head.iter().any(|line| line.eq_ignore_ascii_case(&expected));
            let (status, body) = if is_allowed {
                (200, r#"{"metadata": {"name": "p", "uid": "u"}}"#)
            } else {
                let refusal = r#"{"kind": "Status", "code": 401, "message": "Unauthorized"}"#;
                (401, refusal)
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
            (&stream).write_all(answer.as_bytes()).ok()?;
        }
    }

    #[test]
    fn token_that_has_expired_is_read_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || serve(stream, "new"));
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        for (name, text) in [("ca.crt", "CA"), ("namespace", "team"), ("token", "old")] {
            write(name, text);
        }
        let source = Source::InCluster {
            dir: dir.path().to_owned(),
            server,
        };
        let api = Api::open(source, None).unwrap();
        assert_eq!(api.namespace(), "team");
        let get = || api.get("p", Instant::now() + Duration::from_secs(30));
        let error = get().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        write("token", "new");
        assert_eq!(get().unwrap().unwrap().metadata.uid, "u");
        assert_eq!(api.session().unwrap().number, 1);
    }
}
