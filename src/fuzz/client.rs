//! Responses that a client receives.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::input::Input;
use super::printed::check_shown;
use crate::backend::Backend;
use crate::command::Command;
use crate::error::Result;
use crate::http::{HttpBackend, Retry};
use crate::os::random::temporary_name;
use crate::session_id::SessionId;
use crate::spec::SandboxSpec;
use crate::upload::Upload;

/// Answers a call with any bytes. The call ends soon, and its error can be shown. The first byte chooses the
/// call.
pub fn client(data: &[u8]) {
    thread_local!(static PEER: Peer = Peer::start());
    PEER.with(|peer| call(peer, Input(data)));
}

fn call(peer: &Peer, mut input: Input<'_>) {
    let call = input.byte();
    peer.answer(input.0);
    let started = Instant::now();
    if let Err(e) = peer.call(call) {
        check_shown(&e);
        assert!(
            e.status()
                .is_none_or(|status| (100..1000).contains(&status))
        );
    }
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
}

/// A client, and a server that answers each request with the next response.
struct Peer {
    backend: HttpBackend,
    id: SessionId,
    responses: Sender<Vec<u8>>,
    socket: PathBuf,
}

impl Peer {
    fn start() -> Peer {
        let start = || {
            let socket = std::env::temp_dir().join(temporary_name());
            let listener = UnixListener::bind(&socket)?;
            let url = format!("unix://{}", socket.display());
            let backend = HttpBackend::builder(url).retry(Retry::none()).build();
            let id = SessionId::new("a");
            let (responses, next) = channel();
            std::thread::spawn(move || serve(&listener, &next));
            Ok::<_, std::io::Error>(Peer {
                backend: backend.expect("the URL is valid"),
                id: id.expect("the id is valid"),
                responses,
                socket,
            })
        };
        start().expect("the temporary directory is writable")
    }

    fn answer(&self, response: &[u8]) {
        let sent = self.responses.send(response.to_vec());
        sent.expect("the server is running");
    }

    fn call(&self, call: u8) -> Result<()> {
        let (backend, id) = (&self.backend, &self.id);
        match call % 8 {
            0 => backend.health(),
            1 => backend.create(id, &SandboxSpec::new()).map(drop),
            2 => backend.touch(id),
            3 => backend.exec(id, &Command::from(["true"])).map(drop),
            4 => {
                let mut sink = |chunk: crate::Chunk<'_>| {
                    assert!(!chunk.bytes().is_empty());
                    Ok(())
                };
                backend
                    .exec_live(id, &Command::from(["true"]), &mut sink)
                    .map(drop)
            }
            5 => backend.upload(id, "/workspace", Upload::from_bytes(b"archive")),
            6 => {
                let mut archive = Vec::new();
                let mut reader = backend.download(id, "/workspace")?;
                let read = reader.read_to_end(&mut archive);
                let failed =
                    |e| crate::Error::from_io(e).unwrap_or_else(|e| crate::Error::io("read", e));
                read.map(drop).map_err(failed)
            }
            _ => backend.delete(id).map(drop),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(listener: &UnixListener, responses: &Receiver<Vec<u8>>) {
    for response in responses {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        // The client may close the connection as soon as it has seen enough.
        let _ = read_request(&stream).and_then(|()| (&stream).write_all(&response));
    }
}

/// Reads a request, because Unix resets a connection that is closed before.
fn read_request(stream: &UnixStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    Ok(())
}
