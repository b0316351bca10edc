//! Checks of a sandbox and of the host after an attack.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, Instant};

use noxrunner::{Client, Command, ErrorKind, Output, Sandbox, SandboxSpec};

use crate::support::processes::with_argument;
use crate::{SECRET, sleep};

/// The process that creates the sandboxes.
pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) home: PathBuf,
    pub(crate) victim: String,
    pub(crate) port: String,
}

/// The bound of what must end soon. Beside a fork bomb, everything waits for the CPU.
const SOON: Duration = Duration::from_secs(60);

pub(crate) type Check = Result<(), String>;

pub(crate) fn ensure(holds: bool, what: impl Into<String>) -> Check {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// The output of a call, or its error.
fn text_of(result: noxrunner::Result<Output>) -> Result<String, String> {
    result
        .map(|out| format!("{}{}", out.stdout(), out.stderr()))
        .map_err(|e| format!("{e:#}"))
}

pub(crate) fn shell(sandbox: &Sandbox, line: &str) -> Result<String, String> {
    text_of(sandbox.exec(Command::shell(line).timeout(Duration::from_secs(180))))
}

pub(crate) fn create(host: &Host, id: &str) -> Result<Sandbox, String> {
    host.client
        .create(id, SandboxSpec::new())
        .map_err(|e| format!("{e:#}"))
}

fn holds_soon(holds: impl Fn() -> bool) -> bool {
    let end = Instant::now() + SOON;
    while !holds() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

pub(crate) fn ends(argument: &str) -> bool {
    holds_soon(|| with_argument(argument).is_empty())
}

/// A shell may exit before its background process runs.
pub(crate) fn starts(argument: &str) -> bool {
    holds_soon(|| !with_argument(argument).is_empty())
}

/// Rows of kind `host`, which delete their sandbox themselves.
pub(crate) fn with_sandbox(
    host: &Host,
    id: &str,
    sandbox: &Sandbox,
    command: &str,
    seconds: u64,
) -> Check {
    let started = Instant::now();
    let line = Command::shell(command).timeout(Duration::from_secs(seconds));
    let result = sandbox.exec(line);
    let took = started.elapsed();
    match id {
        "W03" => {
            for dir in ["/tmp", "/dev/shm", "/var/tmp"] {
                let path = format!("{dir}/nx_escape_{}", std::process::id());
                ensure(!Path::new(&path).exists(), format!("{path} is there"))?;
            }
        }
        "P09" => {
            ensure(
                result.is_ok_and(|out| out.stdout().contains("ok")),
                "did not run",
            )?;
            ensure(starts(&sleep()), "nothing was started")?;
            sandbox.delete().map_err(|e| format!("{e:#}"))?;
            return ensure(ends(&sleep()), "a process outlives its sandbox");
        }
        "P15" => {
            ensure(took < SOON, format!("took {took:?}"))?;
            // The kernel may need a moment for the killed processes.
            let gone = "for i in $(seq 300); do ps ax -o args= | grep -q '[s]leep 600' || break; sleep 0.1; done
                ps ax -o args= | grep -c '[s]leep 600'";
            let left = shell(sandbox, gone)?;
            ensure(left.trim() == "0", format!("{left} are left"))?;
        }
        "D13" => {
            ensure(
                text_of(result)?.trim() == "8",
                "not all names could be made",
            )?;
            let names = archive_names(sandbox, "/workspace")?;
            let wanted: [&[u8]; 8] = [
                b"a\nb",
                b"\xff\xfe",
                b"-rf",
                &[b'x'; 255],
                b" ",
                b"~",
                b"a\x01",
                b"\xe2\x80\xae",
            ];
            for name in wanted {
                let there = names
                    .iter()
                    .any(|n| n == name || n.strip_prefix(b"./") == Some(name));
                ensure(there, format!("{name:?} did not come back: {names:?}"))?;
            }
        }
        _ => return Err(format!("no such check, {}", host.port)),
    }
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
}

/// Checks the clauses `host: words` after a command.
pub(crate) fn after(
    host: &Host,
    id: &str,
    sandbox: &Sandbox,
    result: &noxrunner::Result<Output>,
) -> Check {
    match id {
        "P02" => {
            let alive = Path::new(&format!("/proc/{}", host.victim)).exists();
            ensure(alive, "a process of the host was killed")?;
            ensure(
                shell(sandbox, "echo next")?.contains("next"),
                "the next exec does not work",
            )
        }
        "P03" => ensure(
            shell(sandbox, "echo next")?.contains("next"),
            "the next exec does not work",
        ),
        "P11" | "D16" | "X12" => {
            timed_out(result)?;
            let took = result.as_ref().map_or(Duration::MAX, Output::duration);
            ensure(took < SOON, format!("took {took:?}"))
        }
        "X16" => {
            timed_out(result)?;
            let left = shell(sandbox, "ps ax -o pid= | wc -l")?;
            ensure(
                left.trim().parse::<usize>().is_ok_and(|count| count <= 6),
                left,
            )
        }
        "D02" => fork_bomb_is_over(sandbox),
        "D05" => {
            let size = text_of(sandbox.exec(["stat", "-c", "%s", "/workspace/big"]))?;
            let size: u64 = size.trim().parse().map_err(|_| size)?;
            ensure(size <= 64 << 20, format!("{size} bytes were written"))
        }
        "D08" => {
            let out = result.as_ref().map_err(ToString::to_string)?;
            ensure(
                out.truncated() && out.stdout_bytes().len() <= 1 << 20,
                "not cut",
            )
        }
        "D11" => ensure(
            sandbox.delete().map_err(|e| format!("{e:#}"))?,
            "was not there",
        ),
        "N08" => listener_is_private(host),
        _ => Err("no such check".to_owned()),
    }
}

fn timed_out(result: &noxrunner::Result<Output>) -> Check {
    match result {
        Ok(out) => ensure(
            out.timed_out() && out.exit_code() == 124,
            format!("{out:?}"),
        ),
        Err(e) => Err(format!("{e:#}")),
    }
}

fn fork_bomb_is_over(sandbox: &Sandbox) -> Check {
    let forks = Process::new("true").status();
    ensure(
        forks.is_ok_and(|status| status.success()),
        "the host cannot start a process",
    )?;
    match sandbox.exec(["echo", "next"]) {
        Ok(out) => ensure(out.stdout() == "next\n", format!("{out:?}")),
        Err(e) => ensure(
            matches!(
                e.kind(),
                ErrorKind::NotFound | ErrorKind::OutcomeUnknown | ErrorKind::Io
            ),
            format!("{e:#}"),
        ),
    }
}

/// Neither the host nor another sandbox reaches a listener in the sandbox.
fn listener_is_private(host: &Host) -> Check {
    let mut answer = String::new();
    TcpStream::connect(format!("127.0.0.1:{}", host.port))
        .and_then(|mut stream| stream.read_to_string(&mut answer))
        .map_err(|e| format!("{e:#}"))?;
    ensure(
        answer == SECRET,
        format!("the host's port answers {answer:?}"),
    )?;
    let other = create(host, "attack-N08-other")?;
    let connect = "import socket; socket.create_connection(('127.0.0.1', PORT), 2)";
    let out = other
        .exec(["python3", "-c", &connect.replace("PORT", &host.port)])
        .map_err(|e| format!("{e:#}"))?;
    other.delete().map_err(|e| format!("{e:#}"))?;
    ensure(!out.success(), "another sandbox can connect")
}

pub(crate) fn archive(sandbox: &Sandbox, src: &str) -> Result<Vec<u8>, noxrunner::Error> {
    let mut bytes = Vec::new();
    let mut reader = sandbox.download_archive(src)?;
    reader.read_to_end(&mut bytes).expect("a whole archive");
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        let mut decoder = flate2::read::MultiGzDecoder::new(&bytes[..]);
        decoder.read_to_end(&mut plain).expect("a whole archive");
        return Ok(plain);
    }
    Ok(bytes)
}

pub(crate) fn archive_names(sandbox: &Sandbox, src: &str) -> Result<Vec<Vec<u8>>, String> {
    let bytes = archive(sandbox, src).map_err(|e| format!("{e:#}"))?;
    let mut archive = tar::Archive::new(&bytes[..]);
    let entries = archive.entries().map_err(|e| format!("{e:#}"))?;
    entries
        .map(|entry| {
            Ok(entry
                .map_err(|e| format!("{e:#}"))?
                .path_bytes()
                .into_owned())
        })
        .collect()
}

pub(crate) fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// A line that only the host's /etc/passwd has.
pub(crate) fn host_only() -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines().next().unwrap_or("root:x:0:0:").to_owned()
}
