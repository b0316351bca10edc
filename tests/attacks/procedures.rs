//! Rows of the table that are procedures.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use noxrunner::{Client, Command, ErrorKind, Isolation, LocalBackend, SandboxSpec};

use crate::checks::{
    Check, Host, archive, archive_names, contains, create, ends, ensure, host_only, shell, starts,
};
use crate::support::processes::{rerun, unique_sleep};
use crate::support::{is_root, long_tests};
use crate::{SECRET, local_client, variable};

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

fn links_stay_links(host: &Host) -> Check {
    let sandbox = create(host, "attack-F01")?;
    shell(
        &sandbox,
        "ln -s /etc/passwd l; ln -s / root; ln -s /proc/self/environ e; ln -s ../../etc up",
    )?;
    let bytes = archive(&sandbox, "/workspace").map_err(|e| format!("{e:#}"))?;
    ensure(
        !contains(&bytes, SECRET) && !contains(&bytes, &host_only()),
        "host data",
    )?;
    let mut archive = tar::Archive::new(&bytes[..]);
    for entry in archive.entries().map_err(|e| format!("{e:#}"))? {
        let entry = entry.map_err(|e| format!("{e:#}"))?;
        let kind = entry.header().entry_type();
        ensure(kind.is_symlink() || kind.is_dir(), format!("{kind:?}"))?;
    }
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
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
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
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
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
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
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
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
    let swap = Command::from(["python3", "-c", swap]).timeout(Duration::from_secs(180));
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
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
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
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
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
        sandbox.write("id", id).map_err(|e| format!("{e:#}"))?;
        made.push((id, sandbox));
    }
    for (id, sandbox) in made {
        let read = sandbox.read("id").map_err(|e| format!("{e:#}"))?;
        ensure(
            read == id.as_bytes(),
            format!("{id:?} has what another one wrote"),
        )?;
        sandbox.delete().map_err(|e| format!("{e:#}"))?;
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
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o777)).map_err(|e| format!("{e:#}"))?;
    ensure(
        open(&wide).is_err(),
        "a directory that others can write to was used",
    )?;
    let link = host.home.join("link");
    let _ = symlink(&host.home, &link);
    ensure(open(&link).is_err(), "a link was used")?;
    let own = host.home.join("own");
    open(&own).map_err(|e| format!("{e:#}"))?;
    let mode = fs::metadata(own.join("sandboxes"))
        .map_err(|e| format!("{e:#}"))?
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
  open('/tmp/up','w').close(); os.close(1); os.close(2); time.sleep(600)
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
    one.delete().map_err(|e| format!("{e:#}"))?;
    other.delete().map(drop).map_err(|e| format!("{e:#}"))
}

fn fork_of_the_host(host: &Host) -> Check {
    let sleep = unique_sleep(565_656);
    let child = rerun(&[], "procedures::fork_and_abort")
        .env("NX_SLEEP", &sleep)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let status = child
        .and_then(|mut child| child.wait())
        .map_err(|e| format!("{e:#}"))?;
    ensure(!status.success(), "the process did not die")?;
    ensure(ends(&sleep), "the sandbox outlives its process")?;
    let fork = fs::read_to_string(host.home.join("fork")).map_err(|e| format!("{e:#}"))?;
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
    sandbox.run(Command::shell(started)).unwrap();
    assert!(starts(&sleep));
    // SAFETY: the child makes system calls only.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::sleep(1000);
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
        "the sandbox is gone",
    )?;
    sandbox.delete().map(drop).map_err(|e| format!("{e:#}"))
}

fn no_namespaces() -> Check {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"";
    let this = std::env::current_exe().map_err(|e| format!("{e:#}"))?;
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
            "procedures::namespaces_are_refused",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .map_err(|e| format!("{e:#}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure(out.status.success() && text.contains("REFUSED"), text)
}

#[test]
#[ignore = "run by a procedure, where no namespaces can be made"]
fn namespaces_are_refused() {
    let error = Client::local().unwrap_err();
    println!("REFUSED {error}");
    assert_eq!(error.kind(), ErrorKind::Isolation);
    let text = format!("{error:#}");
    for part in [
        "make the namespaces",
        "os error 28",
        "max_user_namespaces",
        "Isolation::None",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
