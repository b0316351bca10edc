//! Request and response bodies that stall, trickle or break off.

use std::collections::BTreeSet;

use noxrunner::{
    Backend, HttpBackend, Output, SandboxInfo, SandboxSpec, SessionId, Upload, UploadProgress,
};

use super::*;

/// Sends one byte every 50 ms, for at most 10 s, until the client disconnects.
fn drip(conn: &mut Conn, head: &str) {
    conn.write(head);
    for _ in 0..200 {
        thread::sleep(Duration::from_millis(50));
        if conn.stream().write_all(b"x").is_err() {
            return;
        }
    }
}

#[test]
fn slow_response_ends_at_deadline() {
    for head in [
        "HTTP/1.1 200 OK\r\nX-Slow: ",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let server = Scripted::start(move |mut conn| {
            conn.read_request();
            drip(&mut conn, head);
        });
        let error = fails_soon(|| sandbox(builder(&server).timeout(SHORT)).touch());
        assert_eq!(error.kind(), ErrorKind::Timeout, "{head:?}: {error}");
        wait_for("the request is received", || !server.requests().is_empty());
        assert_eq!(server.requests().len(), 1, "{head:?}");
    }
}

#[test]
fn trickled_head_of_a_transfer_ends_at_stall_timeout() {
    let trickles: [fn(&mut Conn); 2] = [
        |conn| drip(conn, "HTTP/1.1 200 OK\r\nX-Slow: "),
        |conn| {
            for _ in 0..200 {
                conn.write("HTTP/1.1 102 Processing\r\n\r\n");
                thread::sleep(Duration::from_millis(50));
            }
        },
    ];
    at_once(trickles, |trickle| {
        let server = Scripted::start(move |mut conn| {
            conn.read_request();
            trickle(&mut conn);
        });
        let sandbox = sandbox(builder(&server).timeout(SHORT));
        for error in [
            fails_soon(|| sandbox.download_archive("/workspace")),
            fails_soon(|| sandbox.write("f", "x")),
        ] {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        }
    });
}

#[test]
fn stalled_error_body_is_still_reported() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nas far");
        conn.stay_silent();
    });
    let timeout = Duration::from_secs(5);
    let error = fails_soon(|| sandbox(builder(&server).timeout(timeout)).touch());
    assert_eq!(error.kind(), ErrorKind::Status, "{error}");
    assert_eq!(error.response_body(), Some("as far"));
}

const REFUSED_UPLOAD: &str =
    "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 15\r\n\r\nat most 1 MB, p";

#[test]
fn early_response_to_upload_is_reported() {
    // Larger than the socket buffers, so the client cannot finish sending.
    let bytes = noise(20 << 20);
    type Closer = fn(&mut Conn);
    let closers: [(&str, Closer); 2] = [
        // Unread bytes make the kernel send a reset after the response.
        ("close", |_| {}),
        // A careful server shuts down its sending side and goes on reading for a while.
        ("linger", |conn| {
            let _ = conn.stream().shutdown(Shutdown::Write);
            thread::sleep(Duration::from_millis(300));
        }),
    ];
    for (what, closer) in closers {
        let server = Scripted::start(move |mut conn| {
            if let Some(head) = conn.read_head() {
                conn.record(&head);
                conn.write(REFUSED_UPLOAD);
                closer(&mut conn);
            }
        });
        let error = fails_within(UPLOAD_LIMIT, || {
            sandbox(builder(&server)).write("f", &bytes[..])
        });
        assert_eq!(error.kind(), ErrorKind::Status, "{what}: {error}");
        assert_eq!(error.status(), Some(413), "{what}");
        assert!(
            format!("{error:#}").contains("at most 1 MB"),
            "{what}: {error}"
        );
        assert_eq!(server.requests().len(), 1, "{what}");
    }
}

#[test]
fn connection_with_partial_upload_is_not_reused() {
    let server = Scripted::start(|mut conn| {
        while let Some(head) = conn.read_head() {
            conn.record(&head);
            if head.path.contains("upload") {
                // An early response that keeps the connection open.
                conn.respond(413, "at most 1 MB");
                thread::sleep(Duration::from_millis(200));
                return;
            }
            conn.respond(200, "");
        }
    });
    let sandbox = sandbox(builder(&server));
    let bytes = noise(12 << 20);
    for _ in 0..2 {
        let error = fails_within(UPLOAD_LIMIT, || sandbox.write("f", &bytes[..]));
        assert_eq!(error.status(), Some(413), "{error}");
        sandbox.touch().unwrap();
    }
    assert_eq!(count(&server, "/touch"), 2);
}

#[test]
fn unread_upload_ends_at_stall_timeout() {
    let server = Scripted::start(|mut conn| {
        if let Some(head) = conn.read_head() {
            conn.record(&head);
            thread::sleep(2 * UPLOAD_LIMIT);
        }
    });
    let error = fails_within(UPLOAD_LIMIT, || {
        sandbox(builder(&server).timeout(SHORT)).write("f", noise(12 << 20))
    });
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(
        format!("{error:#}").contains("does not read the request"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn slow_upload_may_exceed_timeout() {
    let server = Scripted::start(|mut conn| {
        let Some(head) = conn.read_head() else { return };
        let mut body = Vec::new();
        {
            let mut reader = conn.body_reader(&head);
            // Slow, but with pauses shorter than the timeout.
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(1500));
                let mut part = (&mut reader).take(2 << 20);
                part.read_to_end(&mut body).unwrap();
            }
            reader.read_to_end(&mut body).unwrap();
        }
        conn.respond(200, "");
    });
    sandbox(builder(&server).timeout(Duration::from_secs(10)))
        .write("f", noise(20 << 20))
        .unwrap();
}

#[test]
fn transfer_timeout_ends_slow_download() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        drip(
            &mut conn,
            "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        );
    });
    let sandbox = sandbox(builder(&server).transfer_timeout(SHORT));
    let error = fails_soon(|| {
        let mut reader = sandbox.download_archive("/workspace")?;
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(own_error(&error).kind(), ErrorKind::Timeout, "{error}");
        sandbox.download_dir("/workspace", tempfile::tempdir().unwrap().path().join("d"))
    });
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[test]
fn transfer_timeout_ends_slow_upload() {
    let server = Scripted::start(|mut conn| {
        let Some(head) = conn.read_head() else { return };
        let mut reader = conn.body_reader(&head);
        let mut part = vec![0; 64 << 10];
        // Until the client disconnects.
        while reader.read(&mut part).is_ok_and(|got| got > 0) {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let sandbox = sandbox(builder(&server).transfer_timeout(SHORT));
    let error = fails_within(UPLOAD_LIMIT, || sandbox.write("f", noise(12 << 20)));
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[test]
fn slow_download_may_exceed_timeout() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n");
        for _ in 0..50 {
            thread::sleep(Duration::from_millis(100));
            conn.write("x");
        }
    });
    // The whole takes longer than the timeout, but no pause does.
    let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(4)));
    let mut reader = sandbox.download_archive("/workspace").unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [b'x'; 50]);
}

fn own_error(error: &io::Error) -> &Error {
    let inner = error.get_ref().expect("an inner error");
    inner.downcast_ref().expect("an error of this crate")
}

/// A tar.gz with one incompressible file.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::fast(),
    ));
    let bytes = noise(100_000);
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "f", &bytes[..]).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

/// Sends the first half of an archive and then breaks off as given.
fn half_an_archive(then: fn(Conn)) -> Scripted {
    let archive = archive();
    Scripted::start(move |mut conn| {
        if conn.read_request().is_none() {
            return;
        }
        conn.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            archive.len()
        ));
        conn.write(&archive[..archive.len() / 2]);
        then(conn);
    })
}

#[test]
fn network_error_is_not_an_archive_error() {
    let ends: [(&str, Breaker, ErrorKind); 3] = [
        ("silence", |mut conn| conn.stay_silent(), ErrorKind::Timeout),
        ("close", drop, ErrorKind::Connect),
        (
            "reset",
            |conn| {
                // The bytes must arrive before the connection ends.
                thread::sleep(Duration::from_millis(50));
                conn.reset();
            },
            ErrorKind::Connect,
        ),
    ];
    at_once(ends, |(what, then, kind)| {
        let server = half_an_archive(then);
        let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(5)));
        let dir = tempfile::tempdir().unwrap();
        let error = fails_soon(|| sandbox.download_dir("/workspace", dir.path().join("d")));
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(format!("{error:#}").contains("cut off"), "{what}: {error}");

        let error = fails_soon(|| sandbox.read("/workspace/f"));
        assert_eq!(error.kind(), kind, "{what}: {error}");

        let mut reader = sandbox.download_archive("/workspace").unwrap();
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(own_error(&error).kind(), kind, "{what}: {error}");
        assert!(!bytes.is_empty());
    });
}

#[test]
fn reset_download_without_length_is_an_error() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write("HTTP/1.1 200 OK\r\n\r\npart of it");
        // The bytes must arrive before the connection ends.
        thread::sleep(Duration::from_millis(50));
        conn.reset();
    });
    let mut reader = sandbox(builder(&server))
        .download_archive("/workspace")
        .unwrap();
    let mut bytes = Vec::new();
    let error = reader.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(own_error(&error).kind(), ErrorKind::Connect, "{error}");
    assert_eq!(bytes, b"part of it");
}

#[test]
fn dropped_download_does_not_break_later_calls() {
    let whole = archive();
    let server = Scripted::each_request(move |request, conn| match request.method.as_str() {
        "GET" => conn.respond(200, &whole),
        _ => conn.respond(200, EXEC_OK),
    });
    let sandbox = sandbox(builder(&server).retry(Retry::none()));
    for _ in 0..5 {
        let mut reader = sandbox.download_archive("/workspace").unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        drop(reader);
        assert_eq!(sandbox.exec(["true"]).unwrap().stdout(), "hi\n");
    }
}

#[test]
fn download_can_be_read_on_another_thread() {
    let whole = archive();
    let length = whole.len();
    let server = Scripted::each_request(move |_, conn| conn.respond(200, &whole));
    let sandbox = sandbox(builder(&server));
    let mut reader = sandbox.download_archive("/workspace").unwrap();
    // This thread makes a call with other limits meanwhile.
    sandbox.touch().unwrap();
    let read = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes.len())
    });
    assert_eq!(read.join().unwrap().unwrap(), length);
}

#[test]
fn endless_upload_ends_after_refusal() {
    use noxrunner::{Backend, SessionId, Upload};
    let server = Scripted::start(|mut conn| {
        let _ = conn.read_head();
        conn.write(REFUSED_UPLOAD);
    });
    let client = builder(&server).build().unwrap();
    let backend = client.backend();
    let id = SessionId::new("a").unwrap();
    for length in [None, Some(1 << 34)] {
        let mut endless = io::repeat(b'x');
        let upload = Upload::from_reader(&mut endless, length);
        let error = fails_soon(|| backend.upload(&id, "/workspace", upload));
        assert!(
            error.status() == Some(413) || error.kind() == ErrorKind::OutcomeUnknown,
            "{error}"
        );
    }
}

#[test]
fn cut_download_leaves_no_file() {
    let server = Scripted::start(|mut conn| {
        conn.read_request();
        conn.write(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nContent-Length: 100000\r\n\r\n",
        );
        let _ = conn.stream().write_all(&noise(50_000));
    });
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("out.tar.gz");
    let sandbox = sandbox(builder(&server));
    let error = sandbox
        .download_archive_to("/workspace", &local)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error:#}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    // A file that existed before stays as it was.
    std::fs::write(&local, "old").unwrap();
    sandbox
        .download_archive_to("/workspace", &local)
        .unwrap_err();
    assert_eq!(std::fs::read(&local).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
}

/// A backend that records the progress of uploads.
struct Observed {
    inner: HttpBackend,
    reports: Mutex<Vec<UploadProgress>>,
}

impl Backend for Observed {
    fn health(&self) -> noxrunner::Result<()> {
        self.inner.health()
    }
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> noxrunner::Result<SandboxInfo> {
        self.inner.create(id, spec)
    }
    fn touch(&self, id: &SessionId) -> noxrunner::Result<()> {
        self.inner.touch(id)
    }
    fn exec(&self, id: &SessionId, command: &Command) -> noxrunner::Result<Output> {
        self.inner.exec(id, command)
    }
    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> noxrunner::Result<()> {
        let mut report = |progress| self.reports.lock().unwrap().push(progress);
        self.inner
            .upload(id, dest, archive.on_progress(&mut report))
    }
    fn download(&self, id: &SessionId, src: &str) -> noxrunner::Result<Box<dyn Read + Send>> {
        self.inner.download(id, src)
    }
    fn delete(&self, id: &SessionId) -> noxrunner::Result<bool> {
        self.inner.delete(id)
    }
}

#[test]
fn observed_upload_is_retried_and_counts_bytes_of_the_files() {
    let seen = AtomicUsize::new(0);
    let server = Scripted::each_request(move |_, conn| {
        let again = seen.fetch_add(1, Ordering::SeqCst) % 2 == 0;
        conn.respond(if again { 503 } else { 200 }, "");
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("zeros"), vec![0; 3_000_000]).unwrap();
    std::fs::write(dir.path().join("noise"), noise(1_000_000)).unwrap();
    let backend = Arc::new(Observed {
        inner: HttpBackend::new(server.url()).unwrap(),
        reports: Mutex::default(),
    });
    let client = Client::with_backend(Arc::clone(&backend));
    let sandbox = client.sandbox("s").unwrap();
    let path = noxrunner::Contents::path(dir.path().join("zeros"));
    sandbox.upload_dir(dir.path(), "/workspace").unwrap();
    sandbox.write("zeros", path).unwrap();
    let reports = backend.reports.lock().unwrap();
    let ends: Vec<_> = reports
        .iter()
        .filter(|p| Some(p.sent()) == p.total())
        .collect();
    let totals: BTreeSet<_> = ends.iter().map(|progress| progress.total()).collect();
    assert_eq!(totals, BTreeSet::from([Some(3_000_000), Some(4_000_000)]));
    // Two attempts each.
    assert_eq!(server.requests().len(), 4);
    assert!(server.requests()[0].body == server.requests()[1].body);
    assert!(server.requests()[2].body == server.requests()[3].body);
    // Both attempts of the first upload report from the start.
    let starts_again = |two: &[UploadProgress]| {
        let [first, second] = two else { return false };
        let is_same = [first, second].iter().all(|p| p.total() == Some(4_000_000));
        is_same && second.sent() < first.sent()
    };
    assert!(reports.windows(2).any(starts_again));
}
