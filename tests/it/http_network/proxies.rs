//! Proxies and IPv6.

use super::*;

/// An HTTP proxy that tunnels every request to `target`, or refuses if there is none.
#[cfg(feature = "tls")]
pub(crate) struct Proxy {
    pub(crate) url: String,
    heads: Arc<Mutex<Vec<Vec<String>>>>,
}

#[cfg(feature = "tls")]
impl Proxy {
    pub(crate) fn start(target: Option<std::net::SocketAddr>, answer: &'static str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let log = Arc::clone(&heads);
        // The thread ends with the process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let log = Arc::clone(&log);
                thread::spawn(move || serve_proxy_client(client, target, answer, &log));
            }
        });
        Proxy { url, heads }
    }

    pub(crate) fn heads(&self) -> Vec<Vec<String>> {
        self.heads.lock().unwrap().clone()
    }
}

#[cfg(feature = "tls")]
fn serve_proxy_client(
    mut client: TcpStream,
    target: Option<std::net::SocketAddr>,
    answer: &str,
    log: &Mutex<Vec<Vec<String>>>,
) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let head = reader.by_ref().lines().map(Result::unwrap);
    let head = head.take_while(|line| !line.is_empty()).collect();
    log.lock().unwrap().push(head);
    client.write_all(answer.as_bytes()).unwrap();
    let Some(target) = target else { return };
    let mut server = TcpStream::connect(target).unwrap();
    let mut back = (server.try_clone().unwrap(), client);
    thread::spawn(move || {
        let _ = io::copy(&mut back.0, &mut back.1);
        let _ = back.1.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Both);
}

#[cfg(feature = "tls")]
pub(crate) const TUNNEL: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[test]
fn plain_http_is_forwarded_by_a_proxy() {
    let proxy = Scripted::always(200, EXEC_OK);
    let url = proxy.url().replace("http://", "http://me:p%40ss@");
    // The proxy resolves the name, and an explicit proxy is used for loopback as well.
    for host in ["sandboxes.invalid:8080", "127.0.0.1:1"] {
        let builder = Client::builder(format!("http://{host}/team")).proxy(&url);
        let sandbox = sandbox(builder.token("t0ken").header("X-Team", "a"));
        sandbox.write("f", noise(300_000)).unwrap();
        assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
        let request = proxy.requests().pop().unwrap();
        let path = format!("http://{host}/team/v1/sandboxes/s/exec");
        assert_eq!((&*request.method, request.path), ("POST", path));
        let header = |name: &str| request.headers.iter().find(|h| h.0 == name).map(|h| &*h.1);
        assert_eq!(header("host"), Some(host));
        assert_eq!(header("authorization"), Some("Bearer t0ken"));
        assert_eq!(header("x-team"), Some("a"));
        assert_eq!(header("proxy-authorization"), Some("Basic bWU6cEBzcw=="));
    }
    // The calls to each host share a connection.
    assert_eq!((proxy.requests().len(), proxy.connections()), (4, 2));
}

#[test]
fn refusal_of_a_forwarding_proxy_is_explained() {
    let proxy = Scripted::always(407, "");
    let builder = Client::builder("http://sandboxes.invalid").proxy(proxy.url());
    let error = fails_soon(|| sandbox(builder).exec(["true"]));
    assert_eq!(error.status(), Some(407));
    assert!(
        error.to_string().contains("the proxy needs credentials"),
        "{error}"
    );
    // A proxy may answer 502 after it has delivered the request.
    let proxy = Scripted::always(502, "no!");
    let builder = Client::builder("http://sandboxes.invalid").proxy(proxy.url());
    let error = fails_soon(|| sandbox(builder).exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert_eq!(proxy.requests().len(), 1);
}

#[cfg(feature = "tls")]
#[test]
fn tunnel_refusal_is_a_connect_error() {
    for answer in [
        "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno!",
        "this is no proxy\r\n\r\n",
        "",
    ] {
        let proxy = Proxy::start(None, answer);
        let builder = Client::builder("https://sandboxes.invalid").proxy(&proxy.url);
        let error = fails_soon(|| sandbox(builder).exec(["true"]));
        assert_eq!(error.kind(), ErrorKind::Connect, "{answer:?}: {error}");
    }
}

#[test]
fn unreachable_proxy_is_named() {
    let builder = Client::builder("http://sandboxes.invalid").proxy("http://me:s3cret@127.0.0.1:1");
    let error = fails_soon(|| sandbox(builder).exec(["true"]));
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(format!("{error:#}").contains("127.0.0.1:1"), "{error}");
    assert!(!format!("{error:#}").contains("s3cret"), "{error}");
}

#[cfg(feature = "tls")]
#[test]
fn silent_proxy_ends_at_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let builder = Client::builder("https://sandboxes.invalid")
        .proxy(proxy)
        .connect_timeout(SHORT);
    let error = fails_soon(|| sandbox(builder).exec(["true"]));
    // The proxy got bytes, but the request was not sent.
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}

#[test]
fn unsupported_proxy_scheme_is_invalid_input() {
    for proxy in ["socks5://127.0.0.1:1080", "ftp://127.0.0.1", "http://"] {
        let builder = Client::builder("http://127.0.0.1:1").proxy(proxy);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{proxy}: {error}");
        assert!(format!("{error:#}").contains("proxy"), "{error}");
    }
}

#[test]
fn ipv6_loopback_works() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("skipped: this machine has no ::1");
        return;
    };
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut host = None;
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("host: ") {
                host = Some(value.to_owned());
            }
            if line.is_empty() {
                break;
            }
        }
        sender.send(host).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            .unwrap();
    });
    let client = Client::new(format!("http://{address}/")).unwrap();
    client.health().unwrap();
    assert_eq!(receiver.recv().unwrap(), Some(address.to_string()));
    server.join().unwrap();
}
