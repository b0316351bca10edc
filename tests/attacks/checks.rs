//! Procedures of the table, and checks of the host after an attack.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use noxrunner::{
    Client, Command, ErrorKind, Isolation, LocalBackend, Output, Sandbox, SandboxSpec,
};

use crate::support::processes::{rerun, unique_sleep, with_argument};
use crate::support::{is_root, long_tests};
use crate::{SECRET, local_client, sleep, variable};

/// The process that creates the sandboxes.
pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) home: PathBuf,
    pub(crate) victim: String,
    pub(crate) port: String,
    /// The factor by which other attacks on the CPU may slow down a row.
    pub(crate) slack: u32,
}

type Check = Result<(), String>;

fn ensure(holds: bool, what: impl Into<String>) -> Check {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// The output of a call, or its error.
fn text_of(result: noxrunner::Result<Output>) -> Result<String, String> {
    result
        .map(|out| format!("{}{}", out.stdout(), out.stderr()))
        .map_err(|e| e.to_string())
}

fn shell(sandbox: &Sandbox, line: &str) -> Result<String, String> {
    text_of(sandbox.exec(Command::shell(line).timeout(Duration::from_secs(60))))
}

fn create(host: &Host, id: &str) -> Result<Sandbox, String> {
    host.client
        .create(id, SandboxSpec::new())
        .map_err(|e| e.to_string())
}

fn holds_within(time: Duration, holds: impl Fn() -> bool) -> bool {
    let end = Instant::now() + time;
    while !holds() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn gone_within(argument: &str, time: Duration) -> bool {
    holds_within(time, || with_argument(argument).is_empty())
}

/// A shell may exit before its background process runs.
fn starts(argument: &str) -> bool {
    holds_within(Duration::from_secs(60), || {
        !with_argument(argument).is_empty()
    })
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
            sandbox.delete().map_err(|e| e.to_string())?;
            let gone = gone_within(&sleep(), Duration::from_millis(100) * host.slack);
            return ensure(gone, "a process outlives its sandbox");
        }
        "P15" => {
            ensure(
                took < Duration::from_secs(seconds + 1) * host.slack,
                format!("took {took:?}"),
            )?;
            let left = shell(sandbox, "ps ax -o args= | grep -c '[s]leep 30'")?;
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
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

/// Checks the clauses `host: words` after a command.
pub(crate) fn after(
    host: &Host,
    id: &str,
    sandbox: &Sandbox,
    result: &noxrunner::Result<Output>,
) -> Check {
    let timed_out = || match result {
        Ok(out) => ensure(
            out.timed_out() && out.exit_code() == 124,
            format!("{out:?}"),
        ),
        Err(e) => Err(e.to_string()),
    };
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
            timed_out()?;
            let took = result.as_ref().map_or(Duration::MAX, Output::duration);
            let most = Duration::from_millis(2900) * host.slack;
            ensure(took < most, format!("took {took:?}"))
        }
        "X16" => {
            timed_out()?;
            let left = shell(sandbox, "ps ax -o pid= | wc -l")?;
            ensure(
                left.trim().parse::<usize>().is_ok_and(|count| count <= 6),
                left,
            )
        }
        "D02" => {
            let forks = Process::new("true").status();
            ensure(
                forks.is_ok_and(|status| status.success()),
                "the host can't start a process",
            )?;
            match sandbox.exec(["echo", "next"]) {
                Ok(out) => ensure(out.stdout() == "next\n", format!("{out:?}")),
                Err(e) => ensure(
                    matches!(
                        e.kind(),
                        ErrorKind::NotFound | ErrorKind::OutcomeUnknown | ErrorKind::Io
                    ),
                    e.to_string(),
                ),
            }
        }
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
            sandbox.delete().map_err(|e| e.to_string())?,
            "was not there",
        ),
        "N08" => {
            let mut answer = String::new();
            TcpStream::connect(format!("127.0.0.1:{}", host.port))
                .and_then(|mut stream| stream.read_to_string(&mut answer))
                .map_err(|e| e.to_string())?;
            ensure(answer == SECRET, format!("the host's port says {answer:?}"))?;
            let other = create(host, "attack-N08-other")?;
            let connect = "import socket; socket.create_connection(('127.0.0.1', PORT), 2)";
            let out = other
                .exec(["python3", "-c", &connect.replace("PORT", &host.port)])
                .map_err(|e| e.to_string())?;
            other.delete().map_err(|e| e.to_string())?;
            ensure(!out.success(), "another sandbox can connect")
        }
        _ => Err("no such check".to_owned()),
    }
}

/// Rows without a command.
pub(crate) fn procedure(host: &Host, id: &str) -> Check {
    match id {
        "F01" => links_stay_links(host),
        "F02" => upload_through_a_link(host),
        "F04" => unusual_sources(host),
        "F05" => unusual_names(host),
        "F07" => rename_race(host),
        "F08" => hard_links(host),
        "F10" => unusual_ids(host),
        "F11" => foreign_state_dirs(host),
        "S02" => nothing_shared(host),
        "S07" => fork_of_the_host(host),
        "S08" => creating_thread_ends(host),
        "S10" => no_namespaces(),
        _ => Err("no such procedure".to_owned()),
    }
}

fn archive(sandbox: &Sandbox, src: &str) -> Result<Vec<u8>, noxrunner::Error> {
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

fn archive_names(sandbox: &Sandbox, src: &str) -> Result<Vec<Vec<u8>>, String> {
    let bytes = archive(sandbox, src).map_err(|e| e.to_string())?;
    let mut archive = tar::Archive::new(&bytes[..]);
    let entries = archive.entries().map_err(|e| e.to_string())?;
    entries
        .map(|entry| Ok(entry.map_err(|e| e.to_string())?.path_bytes().into_owned()))
        .collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// A line that only the host's /etc/passwd has.
fn host_only() -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines().next().unwrap_or("root:x:0:0:").to_owned()
}

fn links_stay_links(host: &Host) -> Check {
    let sandbox = create(host, "attack-F01")?;
    shell(
        &sandbox,
        "ln -s /etc/passwd l; ln -s / root; ln -s /proc/self/environ e; ln -s ../../etc up",
    )?;
    let bytes = archive(&sandbox, "/workspace").map_err(|e| e.to_string())?;
    ensure(
        !contains(&bytes, SECRET) && !contains(&bytes, &host_only()),
        "host data",
    )?;
    let mut archive = tar::Archive::new(&bytes[..]);
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let kind = entry.header().entry_type();
        ensure(kind.is_symlink() || kind.is_dir(), format!("{kind:?}"))?;
    }
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn upload_through_a_link(host: &Host) -> Check {
    let sandbox = create(host, "attack-F02")?;
    let home = host.home.display();
    shell(&sandbox, &format!("ln -s {home} up; ln -s /tmp tmp"))?;
    let _ = sandbox.upload([("up/.ssh/authorized_keys", "x")], "/workspace");
    let _ = sandbox.upload([(".ssh/authorized_keys", "x")], "/workspace/up");
    let canary = format!("nx_f02_{}", std::process::id());
    let _ = sandbox.upload([(&*canary, "x")], "/workspace/tmp");
    ensure(
        !host.home.join(".ssh/authorized_keys").exists(),
        "written to the host",
    )?;
    ensure(
        !Path::new("/tmp").join(canary).exists(),
        "written to the host's /tmp",
    )?;
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn unusual_sources(host: &Host) -> Check {
    let sandbox = create(host, "attack-F04")?;
    shell(
        &sandbox,
        "ln -s / l; ln -s /proc/self/root r; ln -s /proc/1/cwd c",
    )?;
    let long = "x/".repeat(2500);
    for src in [
        "/workspace/../../etc",
        "/workspace/l/../..",
        "/workspace/l/etc/passwd",
        "/workspace/r/etc/passwd",
        "/workspace/c/etc/passwd",
        "//etc",
        "/proc/1/root",
        "/proc/self/root",
        "/etc/passwd",
        "",
        ".",
        "a\0b",
        &long,
    ] {
        if let Ok(bytes) = archive(&sandbox, src) {
            ensure(
                !contains(&bytes, &host_only()) && !contains(&bytes, SECRET),
                format!("{src:?}: host data"),
            )?;
        }
    }
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn unusual_names(host: &Host) -> Check {
    let sandbox = create(host, "attack-F05")?;
    let long = "y".repeat(300);
    let deep = "d/".repeat(2500) + "f";
    let canary = format!("nx_f05_{}", std::process::id());
    for name in [
        &*format!("../{canary}"),
        &format!("/etc/{canary}"),
        &format!("a/../../{canary}"),
        &format!("..\\{canary}"),
        "",
        ".",
        "a/./b",
        "a\0b",
        &long,
        &deep,
    ] {
        // Refused or confined, without a panic.
        let _ = sandbox.upload([(name, "x")], "/workspace");
    }
    for dir in ["/etc", "/", "/tmp"] {
        let path = Path::new(dir).join(&canary);
        ensure(!path.exists(), format!("{path:?} was written"))?;
    }
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn rename_race(host: &Host) -> Check {
    let rounds = if long_tests() { 1000 } else { 200 };
    let canary = format!("nx_f07_{}", std::process::id());
    let on_host = Path::new("/etc").join(&canary);
    let sandbox = create(host, "attack-F07")?;
    shell(
        &sandbox,
        "mkdir d; echo inside > d/passwd; ln -s /etc s; ln -s /proc/1/root/etc t",
    )?;
    let swap = "import ctypes\nl=ctypes.CDLL(None)\nwhile 1:\n  for n in (b's',b't'):\n    l.renameat2(-100,b'd',-100,n,2); l.renameat2(-100,b'd',-100,n,2)";
    let swap = Command::from(["python3", "-c", swap]).timeout(Duration::from_secs(60));
    let stop = noxrunner::Cancel::new();
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| sandbox.exec(swap.cancel_on(&stop)));
        let mut result = Ok(());
        for _ in 0..rounds {
            let _ = sandbox.upload([(&*canary, "x")], "/workspace/d");
            if let Ok(bytes) = archive(&sandbox, "/workspace/d/passwd") {
                result = ensure(!contains(&bytes, &host_only()), "returned a host file");
            }
            if result.is_err() || on_host.exists() {
                break;
            }
        }
        stop.cancel();
        let _ = swapping.join();
        result
    })?;
    ensure(!on_host.exists(), "wrote a host file")?;
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn hard_links(host: &Host) -> Check {
    let sandbox = create(host, "attack-F08")?;
    let said = shell(
        &sandbox,
        "ln /usr/bin/id /workspace/h && echo LINKED; ln /etc/hosts h2 && echo LINKED; true",
    )?;
    ensure(!said.contains("LINKED"), said)?;
    let names = archive_names(&sandbox, "/workspace")?;
    ensure(names.len() <= 1, format!("{names:?}"))?;
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn unusual_ids(host: &Host) -> Check {
    for id in ["", ".", "..", "a\0b"] {
        let refused = host.client.create(id, SandboxSpec::new()).is_err();
        ensure(refused, format!("{id:?} was taken"))?;
    }
    let long = "i".repeat(200);
    let ids = ["../x", "a/b", "a.b", "a_b", "A_b", "ä", &long];
    let mut made = Vec::new();
    for id in ids {
        let sandbox = create(host, id)?;
        sandbox.write("id", id).map_err(|e| e.to_string())?;
        made.push((id, sandbox));
    }
    for (id, sandbox) in made {
        let read = sandbox.read("id").map_err(|e| e.to_string())?;
        ensure(
            read == id.as_bytes(),
            format!("{id:?} has what another one wrote"),
        )?;
        sandbox.delete().map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn foreign_state_dirs(host: &Host) -> Check {
    let open = |dir: &Path| {
        let backend = LocalBackend::builder().isolation(Isolation::None);
        backend.state_dir(dir).build()
    };
    let wide = host.home.join("wide");
    let _ = fs::create_dir(&wide);
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
    ensure(
        open(&wide).is_err(),
        "a directory that others can write to was used",
    )?;
    let link = host.home.join("link");
    let _ = symlink(&host.home, &link);
    ensure(open(&link).is_err(), "a link was used")?;
    let own = host.home.join("own");
    open(&own).map_err(|e| e.to_string())?;
    let mode = fs::metadata(own.join("sandboxes"))
        .map_err(|e| e.to_string())?
        .permissions()
        .mode();
    ensure(mode & 0o777 == 0o700, format!("mode {mode:o}"))
}

fn nothing_shared(host: &Host) -> Check {
    let (one, other) = (create(host, "attack-S02-a")?, create(host, "attack-S02-b")?);
    shell(
        &one,
        "touch /workspace/f /tmp/f /dev/shm/f; python3 -c \"
import socket,ctypes,time,os
if os.fork()==0:
  os.setsid()
  l=ctypes.CDLL(None); l.shmget(4711,4096,0o1666)
  a=socket.socket(socket.AF_UNIX); a.bind('\\0nx_s02'); a.listen()
  t=socket.socket(); t.bind(('127.0.0.1',8222)); t.listen()
  open('/tmp/up','w').close(); os.close(1); os.close(2); time.sleep(60)
\"; while [ ! -e /tmp/up ]; do sleep 0.05; done",
    )?;
    let found = shell(
        &other,
        "ls /workspace /tmp /dev/shm; ps ax -o comm= | grep -c '^python3$'; python3 -c \"
import socket,ctypes
print('SHM', ctypes.CDLL(None).shmget(4711,4096,0o666))
for f,n in ((socket.AF_UNIX,'\\0nx_s02'),(socket.AF_INET,('127.0.0.1',8222))):
  try: s=socket.socket(f); s.connect(n); print('CONNECTED')
  except OSError: print('no')
\"",
    )?;
    let nothing = "/dev/shm:\n\n/tmp:\n\n/workspace:\n0\nSHM -1\nno\nno\n";
    ensure(found == nothing, format!("{found:?}"))?;
    one.delete().map_err(|e| e.to_string())?;
    other.delete().map(drop).map_err(|e| e.to_string())
}

fn fork_of_the_host(host: &Host) -> Check {
    let sleep = unique_sleep(565_656);
    let child = rerun(&[], "checks::fork_and_abort")
        .env("NX_SLEEP", &sleep)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let status = child
        .and_then(|mut child| child.wait())
        .map_err(|e| e.to_string())?;
    ensure(!status.success(), "the process did not die")?;
    let gone = gone_within(&sleep, Duration::from_millis(500) * host.slack);
    ensure(gone, "the sandbox outlives its process")?;
    let fork = fs::read_to_string(host.home.join("fork")).map_err(|e| e.to_string())?;
    let lives = Path::new("/proc").join(&fork).exists();
    let _ = Process::new("kill").args(["-9", &fork]).status();
    ensure(lives, "the fork is gone as well")
}

/// Creates a sandbox with a process in it, forks and aborts.
#[test]
#[ignore = "run by a procedure, in a separate process"]
#[allow(unsafe_code, reason = "a fork without exec is what it is about")]
fn fork_and_abort() {
    let client = local_client();
    let sandbox = client.create("dying", SandboxSpec::new()).unwrap();
    let sleep = variable("NX_SLEEP");
    let started = format!("setsid sleep {sleep} >/dev/null 2>&1 & echo");
    sandbox.exec(Command::shell(started)).unwrap();
    assert!(starts(&sleep));
    // SAFETY: the child makes system calls only.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::sleep(100);
            libc::_exit(0);
        }
        child
    };
    let home = std::path::PathBuf::from(variable("HOME"));
    fs::write(home.join("fork"), child.to_string()).unwrap();
    std::process::abort();
}

fn creating_thread_ends(host: &Host) -> Check {
    let made = std::thread::scope(|scope| scope.spawn(|| create(host, "attack-S08")).join());
    let sandbox = made.map_err(|_| "the thread panicked")??;
    std::thread::sleep(Duration::from_millis(300));
    ensure(
        shell(&sandbox, "echo lives")?.contains("lives"),
        "it is gone",
    )?;
    sandbox.delete().map(drop).map_err(|e| e.to_string())
}

fn no_namespaces() -> Check {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"";
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = if is_root() {
        let mut command = Process::new("setpriv");
        command.args([
            "--reuid=65532",
            "--regid=65532",
            "--clear-groups",
            "unshare",
        ]);
        command
    } else {
        Process::new("unshare")
    };
    let out = command
        .args(["-Ur", "sh", "-c", script, "sh"])
        .arg(this)
        .args([
            "--exact",
            "checks::namespaces_are_refused",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure(out.status.success() && text.contains("REFUSED"), text)
}

#[test]
#[ignore = "run by a procedure, where no namespaces can be made"]
fn namespaces_are_refused() {
    let error = Client::local().unwrap_err();
    println!("REFUSED {error}");
    assert_eq!(error.kind(), ErrorKind::Isolation);
    let text = error.to_string();
    for part in [
        "make the namespaces",
        "os error 28",
        "max_user_namespaces",
        "Isolation::None",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
