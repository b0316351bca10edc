//! A scripted HTTP server on a loopback port, which records its requests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::processes::wait_for;

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// As sent: percent-encoded, with the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The number of its connection, from 0.
    pub(crate) connection: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub(crate) fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One accepted connection.
pub(crate) struct Conn {
    pub(crate) number: usize,
    reader: BufReader<TcpStream>,
    stream: TcpStream,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Conn {
    /// Reads the head of the next request. Returns `None` at the end of the connection.
    pub(crate) fn read_head(&mut self) -> Option<Request> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Request {
            method,
            path,
            headers,
            body: Vec::new(),
            connection: self.number,
        })
    }

    /// A reader of a request's body.
    pub(crate) fn body_reader(&mut self, request: &Request) -> Box<dyn Read + '_> {
        if request.header("transfer-encoding") == Some("chunked") {
            return Box::new(Chunked {
                inner: &mut self.reader,
                left: 0,
                ended: false,
            });
        }
        let length = request
            .header("content-length")
            .and_then(|l| l.parse().ok())
            .unwrap_or(0);
        Box::new((&mut self.reader).take(length))
    }

    /// Reads and records the next request with its body.
    pub(crate) fn read_request(&mut self) -> Option<Request> {
        let mut request = self.read_head()?;
        let mut body = Vec::new();
        self.body_reader(&request).read_to_end(&mut body).ok()?;
        request.body = body;
        self.record(&request);
        Some(request)
    }

    pub(crate) fn record(&self, request: &Request) {
        self.log.lock().unwrap().push(request.clone());
    }

    /// Ignores errors, because the client may have disconnected on purpose.
    pub(crate) fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends a complete response.
    pub(crate) fn respond(&mut self, status: u16, body: impl AsRef<[u8]>) {
        self.respond_with(status, &[], body);
    }

    pub(crate) fn respond_with(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) {
        let body = body.as_ref();
        let mut head = format!(
            "HTTP/1.1 {status} Some Reason\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut whole = head.into_bytes();
        whole.extend_from_slice(body);
        self.write(whole);
    }

    /// Closes the connection without an answer.
    pub(crate) fn close(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Closes the connection with a reset.
    pub(crate) fn reset(self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // A zero linger time makes the kernel send a reset.
        #[allow(unsafe_code, reason = "std has no way to set SO_LINGER")]
        // SAFETY: the option's value is as long as it is said to be.
        unsafe {
            libc::setsockopt(
                self.stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            );
        }
    }

    /// Sends nothing until the client disconnects, for at most a minute.
    pub(crate) fn stay_silent(&mut self) {
        let _ = self.stream.set_read_timeout(Some(Duration::from_secs(60)));
        let _ = io::copy(&mut self.reader, &mut io::sink());
    }
}

struct Chunked<'a> {
    inner: &'a mut BufReader<TcpStream>,
    left: u64,
    ended: bool,
}

impl Read for Chunked<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            self.inner.read_line(&mut line)?;
            self.left = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if self.left == 0 {
                self.ended = true;
                self.inner.read_line(&mut line)?;
            }
        }
        if self.ended {
            return Ok(0);
        }
        let want = buf.len().min(self.left as usize);
        let got = self.inner.read(&mut buf[..want])?;
        self.left -= got as u64;
        if self.left == 0 {
            self.inner.read_line(&mut String::new())?;
        }
        Ok(got)
    }
}

pub(crate) struct Scripted {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Scripted {
    /// Calls `handler` for every connection, each on a new thread.
    pub(crate) fn start(handler: impl Fn(Conn) + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Scripted {
            address,
            log: Arc::default(),
            connections: Arc::default(),
            closed: Arc::default(),
            stop: Arc::default(),
        };
        let (log, connections, stop) = (
            Arc::clone(&server.log),
            Arc::clone(&server.connections),
            Arc::clone(&server.stop),
        );
        let handler = Arc::new(handler);
        let closed = Arc::clone(&server.closed);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let conn = Conn {
                    number: connections.fetch_add(1, Ordering::SeqCst),
                    reader: BufReader::with_capacity(64 * 1024, stream.try_clone().unwrap()),
                    stream,
                    log: Arc::clone(&log),
                };
                let (handler, closed) = (Arc::clone(&handler), Arc::clone(&closed));
                thread::spawn(move || {
                    handler(conn);
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    /// Calls `handler` for every complete request.
    pub(crate) fn each_request(
        handler: impl Fn(&Request, &mut Conn) + Send + Sync + 'static,
    ) -> Scripted {
        Scripted::start(move |mut conn| {
            while let Some(request) = conn.read_request() {
                handler(&request, &mut conn);
            }
        })
    }

    /// Answers every request in the same way.
    pub(crate) fn always(status: u16, body: impl Into<Vec<u8>>) -> Scripted {
        let body = body.into();
        Scripted::each_request(move |_, conn| conn.respond(status, &body))
    }

    /// Answers the n-th request with the n-th response, and later ones with the last.
    pub(crate) fn sequence(responses: Vec<(u16, &'static str)>) -> Scripted {
        let next = AtomicUsize::new(0);
        Scripted::each_request(move |_, conn| {
            let at = next.fetch_add(1, Ordering::SeqCst).min(responses.len() - 1);
            conn.respond(responses[at].0, responses[at].1);
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests recorded so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the server has closed so many connections and the client can know it.
    pub(crate) fn wait_for_closes(&self, count: usize) {
        wait_for_closes(self.address.port(), &self.closed, count);
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then checks the flag.
        if let Ok(stream) = TcpStream::connect(self.address) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Waits until a server on this local port has closed so many connections and the client's kernel knows it.
/// Busy machines deliver a close late.
pub(crate) fn wait_for_closes(port: u16, closed: &AtomicUsize, count: usize) {
    wait_for("the server closes", || {
        closed.load(Ordering::SeqCst) >= count
    });
    // The kernel's table may lack a line while other connections come and go.
    for _ in 0..3 {
        wait_for("the close arrives", || !has_open_connection(port));
    }
}

fn has_open_connection(port: u16) -> bool {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let remote = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(2);
        words
            .next()
            .is_some_and(|address| address.ends_with(&remote))
            && words.next() == Some(ESTABLISHED)
    })
}

/// A response to exec.
pub(crate) const EXEC_OK: &str = r#"{"exitCode":0,"stdout":"hi\n","stderr":"","durationMs":5}"#;

/// A response to create.
pub(crate) const CREATE_OK: &str = r#"{"podName":"pod-1","expiresAt":"2026-01-02T12:34:56Z"}"#;
