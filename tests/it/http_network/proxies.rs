//! Proxies and IPv6.

use super::*;

/// An HTTP proxy that tunnels every request to `target`, or refuses if there is none.
pub(crate) struct Proxy {
    pub(crate) url: String,
    heads: Arc<Mutex<Vec<Vec<String>>>>,
}

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

pub(crate) const TUNNEL: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[test]
fn proxy_is_used_with_connect() {
    let server = Scripted::always(200, EXEC_OK);
    let proxy = Proxy::start(Some(server.address()), TUNNEL);
    let url = proxy.url.replace("http://", "http://me:p%40ss@");
    // The proxy resolves the name, and an explicit proxy is used for loopback as well.
    for host in ["sandboxes.invalid:8080", "127.0.0.1:1"] {
        let builder = Client::builder(format!("http://{host}")).proxy(&url);
        let sandbox = sandbox(builder.token("t0ken"));
        for _ in 0..3 {
            assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
        }
        let head = proxy.heads().pop().unwrap();
        assert_eq!(head[0], format!("CONNECT {host} HTTP/1.1"));
        let basic = "proxy-authorization: Basic bWU6cEBzcw==";
        assert!(
            head.iter().any(|l| l.eq_ignore_ascii_case(basic)),
            "{head:?}"
        );
        // Only the server gets the token.
        assert!(!head.iter().any(|l| l.contains("t0ken")), "{head:?}");
        let request = server.requests().pop().unwrap();
        assert_eq!(request.path, "/v1/sandboxes/s/exec");
        assert_eq!(request.header("host"), Some(host));
        assert_eq!(request.header("proxy-authorization"), None);
    }
    // The three calls to each host share a tunnel.
    assert_eq!(proxy.heads().len(), 2);
}

#[test]
fn proxy_refusal_is_a_connect_error() {
    for answer in [
        "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno!",
        "this is no proxy\r\n\r\n",
        "",
    ] {
        let proxy = Proxy::start(None, answer);
        let builder = Client::builder("http://sandboxes.invalid").proxy(&proxy.url);
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

#[test]
fn silent_proxy_ends_at_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let builder = Client::builder("http://sandboxes.invalid")
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
