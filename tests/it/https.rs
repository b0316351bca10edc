//! HTTPS with a private CA.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Client, ClientBuilder, Error, ErrorKind, Sandbox};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::http_network::cancelled_exec;
use crate::http_network::proxies::{Proxy, TUNNEL};
use crate::support::scripted::{EXEC_OK, Scripted, wait_for_closes};

const SHORT: Duration = Duration::from_millis(500);

/// Much more than any call here needs, and less than a hanging call would take.
const SOON: Duration = Duration::from_secs(20);

/// A private certificate authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Ca {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// The configuration of a server with a certificate for these names.
    fn server(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// A TLS server that calls a handler with the first line of each request.
struct TlsServer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

/// The server's action on the connection after a response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Keep,
    /// Sends a close_notify alert and closes.
    CloseProperly,
    /// Closes without a close_notify alert, as an attacker on the network could.
    Vanish,
    StaySilent,
}

impl TlsServer {
    fn start(
        config: ServerConfig,
        handler: impl Fn(&str, &mut Stream) -> Then + Send + Sync + 'static,
    ) -> TlsServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = TlsServer {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            closed: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (
            Arc::clone(&server.connections),
            Arc::clone(&server.requests),
        );
        let closed = Arc::clone(&server.closed);
        let (config, handler) = (Arc::new(config), Arc::new(handler));
        // The thread ends with the process.
        thread::spawn(move || {
            for tcp in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
                let (handler, requests) = (Arc::clone(&handler), Arc::clone(&requests));
                let stream = StreamOwned::new(tls, tcp.unwrap());
                let closed = Arc::clone(&closed);
                thread::spawn(move || {
                    serve(stream, &requests, &*handler);
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    /// Answers every call like a healthy server.
    fn obedient(config: ServerConfig) -> TlsServer {
        TlsServer::start(config, |line, stream| {
            let body = if line.contains("/exec") {
                EXEC_OK
            } else {
                "OK"
            };
            answer(stream, body);
            Then::Keep
        })
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.address.port())
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn answer(stream: &mut Stream, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    // The client may have disconnected on purpose.
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn serve(
    mut stream: Stream,
    requests: &Mutex<Vec<String>>,
    handler: &dyn Fn(&str, &mut Stream) -> Then,
) {
    loop {
        let mut line = String::new();
        {
            // One request at a time: a buffered reader must not swallow part of the next one.
            let mut reader = BufReader::new(&mut stream);
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let mut length = 0;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header).unwrap_or(0) == 0 {
                    return;
                }
                let header = header.trim_end().to_ascii_lowercase();
                if let Some(value) = header.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
                if header.is_empty() {
                    break;
                }
            }
            if line.contains("/sandboxes/slow/") {
                thread::sleep(Duration::from_millis(3500));
            }
            let mut body = Vec::new();
            if reader.take(length).read_to_end(&mut body).is_err() {
                return;
            }
        }
        requests.lock().unwrap().push(line.clone());
        match handler(&line, &mut stream) {
            Then::Keep => {}
            Then::Vanish => return,
            Then::CloseProperly => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
                return;
            }
            Then::StaySilent => {
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
        }
    }
}

fn sandbox(builder: ClientBuilder) -> Sandbox {
    builder.build().unwrap().sandbox("s").unwrap()
}

/// The error of a call that must fail soon.
#[track_caller]
fn fails_soon<T>(call: impl FnOnce() -> noxrunner::Result<T>) -> Error {
    let start = Instant::now();
    let error = call().err().expect("the call should have failed");
    let took = start.elapsed();
    assert!(took < SOON, "{error} took {took:?}");
    error
}

#[test]
fn private_ca_is_trusted_by_name_and_address() {
    let ca = Ca::new();
    let server = TlsServer::obedient(ca.server(&["localhost", "127.0.0.1"], |_| {}));
    for (at, host) in ["localhost", "127.0.0.1"].into_iter().enumerate() {
        let client = Client::builder(server.url(host))
            .ca_pem(&*ca.pem)
            .build()
            .unwrap();
        let sandbox = client.sandbox("s").unwrap();
        for _ in 0..5 {
            client.health().unwrap();
            assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
            sandbox.write("f", "x").unwrap();
        }
        // All calls of a client share one connection.
        assert_eq!(server.connections(), at + 1, "{host}");
    }
}

#[test]
fn large_transfers_work_over_tls() {
    let body = "0123456789abcdef".repeat(1 << 16);
    let ca = Ca::new();
    let whole = body.clone();
    let server = TlsServer::start(ca.server(&["localhost"], |_| {}), move |line, stream| {
        answer(stream, if line.starts_with("GET") { &whole } else { "" });
        Then::Keep
    });
    let sandbox = sandbox(Client::builder(server.url("localhost")).ca_pem(&*ca.pem));
    sandbox
        .upload_archive(body.as_bytes(), "/workspace")
        .unwrap();
    let mut got = String::new();
    let mut archive = sandbox.download_archive("/workspace").unwrap();
    archive.read_to_string(&mut got).unwrap();
    assert!(got == body);
    assert_eq!(server.requests(), 2);
}

#[test]
fn paused_upload_over_tls_continues() {
    let ca = Ca::new();
    let server = TlsServer::obedient(ca.server(&["localhost"], |_| {}));
    let client = Client::builder(server.url("localhost")).ca_pem(&*ca.pem);
    let sandbox = client.build().unwrap().sandbox("slow").unwrap();
    // More than the buffers hold. Meanwhile only session tickets wait to be read.
    let archive = vec![7; 24 << 20];
    sandbox.upload_archive(&*archive, "/workspace").unwrap();
    assert_eq!(server.requests(), 1);
}

#[test]
fn unknown_ca_is_a_connect_error() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = TlsServer::obedient(ca.server(&["localhost"], |_| {}));
    let url = server.url("localhost");
    let builders = [
        // A client that trusts the public roots or the system's.
        Client::builder(&url),
        Client::builder(&url).ca_pem(&*other.pem),
    ];
    for (at, builder) in builders.into_iter().enumerate() {
        let error = fails_soon(|| sandbox(builder).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        let text = format!("{error:#}");
        assert!(
            text.contains("signed the server's certificate") && text.contains("--ca"),
            "{text}"
        );
        assert!(text.contains("localhost"), "{text}");
        // A retry would fail the same way.
        assert_eq!(server.connections(), at + 1);
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn certificate_for_another_name_or_time_is_refused() {
    let ca = Ca::new();
    for config in [
        ca.server(&["elsewhere.example.com"], |_| {}),
        ca.server(&["127.0.0.1"], |_| {}),
        ca.server(&["localhost"], |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        }),
    ] {
        let server = TlsServer::obedient(config);
        let builder = Client::builder(server.url("localhost")).ca_pem(&*ca.pem);
        let error = fails_soon(|| sandbox(builder).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(format!("{error:#}").contains("certificate"), "{error}");
        assert_eq!((server.connections(), server.requests()), (1, 0));
    }
}

#[test]
fn pem_may_contain_several_cas_and_text() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = TlsServer::obedient(ca.server(&["localhost"], |_| {}));
    let pem = format!("# our CAs\r\n{}\n# the old one\n{}", other.pem, ca.pem);
    let client = Client::builder(server.url("localhost")).ca_pem(pem);
    client.build().unwrap().health().unwrap();
}

#[test]
fn malformed_pem_is_refused_at_build() {
    let key = KeyPair::generate().unwrap().serialize_pem();
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let cut = Ca::new().pem.replace("-----END", "");
    for pem in ["garbage", "", &*key, broken, &*cut] {
        let builder = Client::builder("https://localhost:1").ca_pem(pem);
        let error = builder.build().expect_err(pem);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{pem}: {error}");
        assert!(format!("{error:#}").contains("the CA"), "{error}");
    }
}

#[test]
fn malformed_certificate_is_never_trusted() {
    // The PEM encoding is valid, its content is not.
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let ca = Ca::new();
    let server = TlsServer::obedient(ca.server(&["localhost"], |_| {}));
    let built = Client::builder(server.url("localhost")).ca_pem(pem).build();
    let error = fails_soon(|| built.and_then(|client| client.health()));
    assert!(
        matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Connect),
        "{error}"
    );
}

#[test]
fn http_server_behind_https_url_is_a_connect_error() {
    let bad = Scripted::start(|mut conn| {
        conn.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        conn.stay_silent();
    });
    let closing = Scripted::start(drop);
    for server in [bad, closing] {
        let url = server.url().replace("http://", "https://");
        let builder = Client::builder(url).ca_pem(Ca::new().pem);
        let error = fails_soon(|| sandbox(builder).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(
            format!("{error:#}").contains(&server.address().to_string()),
            "{error}"
        );
        let text = format!("{error:#}");
        assert!(
            text.contains("does not speak TLS")
                || text.contains("closed")
                || text.contains("reset"),
            "{text}"
        );
        assert!(server.connections() <= 3);
    }
}

/// The configuration of a server with a self-signed certificate, and that certificate.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> (ServerConfig, String) {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (config, certificate.pem())
}

#[test]
fn self_signed_certificate_must_not_be_one_of_a_ca() {
    // As `openssl req -x509` makes it.
    let (config, pem) = self_signed(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let server = TlsServer::obedient(config);
    let builder = Client::builder(server.url("localhost")).ca_pem(pem);
    let error = fails_soon(|| sandbox(builder).exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    let text = format!("{error:#}");
    assert!(
        text.contains("basicConstraints=critical,CA:FALSE"),
        "{text}"
    );
    // As the error recommends.
    let (config, pem) = self_signed(|params| params.is_ca = IsCa::ExplicitNoCa);
    let server = TlsServer::obedient(config);
    let builder = Client::builder(server.url("localhost")).ca_pem(pem);
    sandbox(builder).run(["true"]).unwrap();
}

#[test]
fn tls_server_behind_http_url_is_an_error() {
    let server = TlsServer::obedient(Ca::new().server(&["localhost"], |_| {}));
    let url = server.url("localhost").replace("https://", "http://");
    let client = Client::builder(url).build().unwrap();
    let error = fails_soon(|| client.health());
    // The server answers with an alert or closes.
    assert!(
        matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Connect),
        "{error}"
    );
    assert_eq!(server.requests(), 0);
}

#[test]
fn silent_handshake_ends_at_connect_timeout() {
    // The kernel accepts the connection, but no one answers the ClientHello.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let sandbox = sandbox(
        Client::builder(url)
            .ca_pem(Ca::new().pem)
            .connect_timeout(SHORT),
    );
    let error = fails_soon(|| sandbox.exec(["true"]));
    // No part of the command was sent.
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(!format!("{error:#}").contains("may have run"), "{error}");
    let error = fails_soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[test]
fn slow_handshake_ends_at_connect_timeout() {
    let server = Scripted::start(|mut conn| {
        // The header of a long handshake record.
        conn.write([0x16, 3, 3, 0x20, 0]);
        while conn.stream().write_all(&[2]).is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let url = server.url().replace("http://", "https://");
    let builder = Client::builder(url)
        .ca_pem(Ca::new().pem)
        .connect_timeout(SHORT);
    let error = fails_soon(|| sandbox(builder).exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}

#[test]
fn silent_tls_server_ends_at_timeout_or_cancel() {
    let ca = Ca::new();
    let server = TlsServer::start(ca.server(&["localhost"], |_| {}), |_, _| Then::StaySilent);
    let builder = Client::builder(server.url("localhost")).ca_pem(&*ca.pem);
    let sandbox = sandbox(builder.timeout(SHORT));
    let error = fails_soon(|| sandbox.touch());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");

    let before = server.requests();
    let error = cancelled_exec(&sandbox, || server.requests() > before);
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(format!("{error:#}").contains("cancelled"), "{error}");
}

#[test]
fn unanswered_exec_over_tls_is_not_retried() {
    for then in [Then::Vanish, Then::CloseProperly] {
        let ca = Ca::new();
        let server = TlsServer::start(ca.server(&["localhost"], |_| {}), move |_, _| then);
        let sandbox = sandbox(Client::builder(server.url("localhost")).ca_pem(&*ca.pem));
        let error = fails_soon(|| sandbox.exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        assert_eq!(server.requests(), 1);
        // Touch is idempotent.
        let error = fails_soon(|| sandbox.touch());
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        assert_eq!(server.requests(), 1 + 3);
    }
}

#[test]
fn calls_survive_close_of_idle_tls_connections() {
    for then in [Then::Vanish, Then::CloseProperly] {
        let ca = Ca::new();
        let server = TlsServer::start(ca.server(&["localhost"], |_| {}), move |_, stream| {
            answer(stream, EXEC_OK);
            then
        });
        let sandbox = sandbox(Client::builder(server.url("localhost")).ca_pem(&*ca.pem));
        for number in 1..=20 {
            sandbox.run(["true"]).unwrap();
            // The next call must find the connection closed.
            wait_for_closes(server.address.port(), &server.closed, number);
        }
        assert_eq!((server.connections(), server.requests()), (20, 20));
    }
}

#[test]
fn truncated_tls_download_is_an_error() {
    // Without a length, only close_notify distinguishes a complete body from a truncated one.
    for (then, whole) in [(Then::CloseProperly, true), (Then::Vanish, false)] {
        let ca = Ca::new();
        let server = TlsServer::start(ca.server(&["localhost"], |_| {}), move |_, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\npart of it");
            then
        });
        let sandbox = sandbox(Client::builder(server.url("localhost")).ca_pem(&*ca.pem));
        let mut bytes = Vec::new();
        let result = sandbox
            .download_archive("/workspace")
            .unwrap()
            .read_to_end(&mut bytes);
        assert_eq!(bytes, b"part of it");
        match result {
            Ok(_) => assert!(whole, "a truncated download looks complete"),
            Err(e) => {
                assert!(!whole, "{e}");
                let own: &Error = e.get_ref().unwrap().downcast_ref().unwrap();
                assert_eq!(own.kind(), ErrorKind::Connect, "{own}");
            }
        }
    }
}

#[test]
fn plain_http_is_forwarded_by_a_tls_proxy() {
    let ca = Ca::new();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&lines);
    let proxy = TlsServer::start(ca.server(&["localhost"], |_| {}), move |line, stream| {
        log.lock().unwrap().push(line.to_owned());
        answer(stream, EXEC_OK);
        Then::Keep
    });
    let builder = Client::builder("http://sandboxes.invalid:8080").ca_pem(&*ca.pem);
    let sandbox = sandbox(builder.proxy(proxy.url("localhost")));
    for _ in 0..2 {
        sandbox.run(["true"]).unwrap();
    }
    let line = "POST http://sandboxes.invalid:8080/v1/sandboxes/s/exec HTTP/1.1";
    let lines = lines.lock().unwrap();
    assert!(
        lines.len() == 2 && lines.iter().all(|l| l.trim_end() == line),
        "{lines:?}"
    );
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn tls_works_through_a_proxy() {
    let ca = Ca::new();
    let server = TlsServer::obedient(ca.server(&["sandboxes.invalid"], |_| {}));
    let proxy = Proxy::start(Some(server.address), TUNNEL);
    let sandbox = sandbox(
        Client::builder("https://sandboxes.invalid")
            .ca_pem(&*ca.pem)
            .proxy(&proxy.url),
    );
    for _ in 0..3 {
        sandbox.run(["true"]).unwrap();
    }
    let heads = proxy.heads();
    assert_eq!(heads.len(), 1);
    assert_eq!(heads[0][0], "CONNECT sandboxes.invalid:443 HTTP/1.1");
    assert_eq!((server.connections(), server.requests()), (1, 3));
}
