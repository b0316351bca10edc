//! Limits on memory, storage and CPUs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use noxrunner::{
    Client, Command, Enforced, ErrorKind, Isolation, KilledBy, LocalBackend, Sandbox, SandboxSpec,
};

use super::{client, shell};
use crate::support::processes::wait_for;

/// Starts four processes that take 100 MB each, waits until each has them or has failed, and prints how
/// many live on with them.
const TAKE_400_MB: &str = r"
import os, signal, time
children, pipes = [], []
for _ in range(4):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        taken = bytearray(100 << 20)
        os.write(writer, b'x')
        time.sleep(600)
    os.close(writer)
    children.append(child)
    pipes.append(reader)
for reader in pipes:
    os.read(reader, 1)
time.sleep(2)
alive = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
print(len(alive), flush=True)
for child in alive:
    os.kill(child, signal.SIGKILL)
";

/// Asserts that a limit of 256 MB is on the sum of all processes.
pub(super) fn assert_memory_is_limited(sandbox: &Sandbox) {
    let out = sandbox.exec(["python3", "-c", TAKE_400_MB]).unwrap();
    let text = out.stdout();
    // Nothing is printed if the parent was killed as well.
    let alive: u32 = text.trim().parse().unwrap_or(0);
    assert!(alive <= 2, "{out:?}");
}

/// Asserts that a command that writes more and more small files is killed.
pub(super) fn assert_storage_is_limited(sandbox: &Sandbox) {
    let line = "i=0; while :; do head -c 9000000 /dev/zero > more-$i; i=$((i+1)); sleep 0.1; done";
    let command = Command::shell(line).timeout(Duration::from_secs(60));
    let out = sandbox.exec(command).unwrap();
    let end = (out.exit_code(), out.timed_out(), out.killed_by());
    assert_eq!(end, (137, false, Some(KilledBy::Storage)), "{out:?}");
}

/// Asserts that the sandbox works again without its large files. Until they are gone, any command may be
/// killed, and so may this one.
pub(super) fn assert_files_can_be_removed(sandbox: &Sandbox, left: &str) {
    let remove = || shell(sandbox, "rm -f big more-*; ls");
    wait_for("the large files are removed", || remove() == left);
}

#[test]
fn memory_is_limited_per_process_and_in_total() {
    let client = client();
    let spec = SandboxSpec::new().memory("256Mi");
    let sandbox = client.create("memory", spec).unwrap();
    sandbox.write("kept", "x").unwrap();
    let alone = "a = bytearray(400 << 20); print('taken')";
    let out = sandbox.exec(["python3", "-c", alone]).unwrap();
    assert_eq!((out.exit_code(), &*out.stdout()), (137, ""));
    assert_eq!(out.killed_by(), Some(KilledBy::Memory));
    assert_memory_is_limited(&sandbox);
    assert_eq!(sandbox.read("kept").unwrap(), b"x");
}

#[test]
fn full_storage_is_an_error() {
    let client = client();
    let spec = SandboxSpec::new().storage("8Mi");
    let sandbox = client.create("storage", spec).unwrap();
    let full = shell(
        &sandbox,
        "export LC_ALL=C; head -c 20000000 /dev/zero > big; stat -c %s big",
    );
    assert!(full.contains("No space left"), "{full}");
    let error = sandbox.write("more", vec![1; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(!sandbox.exists("more").unwrap());
    shell(&sandbox, "rm big");
    sandbox.write("more", vec![1; 1 << 20]).unwrap();
}

#[test]
fn large_storage_is_on_disk_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    for persistent in [false, true] {
        check_storage_on_disk(dir.path(), persistent);
    }
}

fn check_storage_on_disk(state: &Path, persistent: bool) {
    let spec = || SandboxSpec::new().memory("64Mi").storage("40Mi");
    let backend = LocalBackend::builder()
        .state_dir(state)
        .persistent(persistent);
    let backend = backend.build().unwrap();
    let storage = backend.limits(&spec()).unwrap().storage();
    assert_eq!(storage.enforced(), Enforced::Approximate);
    let client = Client::with_backend(backend);
    let sandbox = client.create("disk", spec()).unwrap();
    sandbox.write("in", "x").unwrap();
    let owner = shell(&sandbox, "cat in; id -un; stat -c %U in");
    assert_eq!(owner, "xsandbox\nsandbox\n");
    let types = shell(&sandbox, "stat -f -c %T /workspace /usr");
    println!("/workspace is on {:?}", types.lines().collect::<Vec<_>>());
    // First one large file, then many small ones.
    let line = "head -c 60000000 /dev/zero > big; stat -c %s big";
    let big = sandbox.exec(Command::shell(line)).unwrap();
    // The count of all files may come before or after the second program.
    let size = format!("{}\n", 40 << 20);
    let was_killed = big.exit_code() == 137 && big.stdout().is_empty();
    assert!(was_killed || big.stdout() == size, "{big:?}");
    assert_storage_is_limited(&sandbox);
    assert_files_can_be_removed(&sandbox, "in\n");
    shell(&sandbox, "mkdir -p a/b; touch a/b/c; chmod 000 a/b a");
    assert!(sandbox.delete().unwrap());
    let part = state.join(if persistent { "persistent" } else { "disks" });
    assert_eq!(fs::read_dir(part).unwrap().count(), 0);
}

#[test]
fn files_on_disk_count_whoever_writes_them() {
    let state = tempfile::tempdir().unwrap();
    let backend = LocalBackend::builder().state_dir(state.path());
    let client = Client::with_backend(backend.build().unwrap());
    let spec = || SandboxSpec::new().memory("64Mi").storage("100Mi");
    // Files without a name. The pauses make the outcome independent of the speed of the disk.
    let script = r"
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
def write():
    total = 0
    while total < 1000:
        if total % 20 == 0:  # and the previous one stays open or mapped
            file = os.open(b'/workspace/\xff', os.O_CREAT | os.O_RDWR)
            os.unlink(b'/workspace/\xff')
        os.write(file, b'x' * (4 << 20))
        total += 4
        if total % 20 == 0 and sys.argv[1] == 'mapped':
            libc.mmap(None, ctypes.c_size_t(20 << 20), 1, 1, file, ctypes.c_long(0))
            os.close(file)
        print(total, flush=True)
        time.sleep(0.01)
    os._exit(0)
if sys.argv[1] == 'first thread has exited':
    threading.Thread(target=write).start()
    libc.syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)
write()
";
    for kept in ["open", "mapped", "first thread has exited"] {
        let sandbox = client.create("unnamed", spec()).unwrap();
        let unnamed = Command::from(["python3", "-c", script, kept]);
        let out = sandbox
            .exec(unnamed.timeout(Duration::from_secs(180)))
            .unwrap();
        let written = out.stdout().lines().last().and_then(|mib| mib.parse().ok());
        assert!(written.is_some_and(|mib: u64| mib <= 150), "{out:?}");
        assert_eq!(out.killed_by(), Some(KilledBy::Storage), "{out:?}");
        sandbox.delete().unwrap();
    }
    let sandbox = client.create("disk", spec()).unwrap();
    // Uploads at the same time.
    let uploads = std::thread::scope(|scope| {
        let upload = |n| sandbox.write(format!("upload-{n}"), vec![n; 40 << 20]);
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || upload(n))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    let failed: Vec<_> = uploads.into_iter().filter_map(Result::err).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    for error in failed {
        assert_eq!(error.kind(), ErrorKind::Io, "{error:#}");
        assert!(
            format!("{error:#}").contains("no storage space"),
            "{error:#}"
        );
    }
    // A sandbox that is full can be cleaned up.
    assert_eq!(shell(&sandbox, "rm upload-*; ls"), "");
    sandbox.write("more", vec![0; 80 << 20]).unwrap();
}

/// The free space of the file system shows how much such files take, together with what others write and remove. So
/// the test only expects that they are noticed.
#[test]
fn concealed_files_on_disk_are_noticed() {
    let state = tempfile::tempdir().unwrap();
    let backend = LocalBackend::builder().state_dir(state.path());
    let client = Client::with_backend(backend.build().unwrap());
    let script = r"
import array, ctypes, os, socket, sys, time
how = sys.argv[1]
if how == 'not dumpable':
    ctypes.CDLL(None).prctl(4, 0)
if how == 'execute-only' and len(sys.argv) == 3:
    os.system('cp /usr/bin/python3 p; chmod 111 p')
    os.execv('./p', ['p', '-c', sys.argv[2], how, '', ''])
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
if how == 'in a queue' and 'scm_fds' not in open(f'/proc/self/fdinfo/{far.fileno()}').read():
    sys.exit('the kernel does not show the queue')
for _ in range(200):
    file = os.open('/workspace/file', os.O_CREAT | os.O_RDWR)
    os.unlink('/workspace/file')
    os.write(file, b'x' * (20 << 20))
    if how == 'in a queue':
        rights = array.array('i', [file])
        near.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(file)
    time.sleep(0.05)
";
    for how in ["not dumpable", "execute-only", "in a queue"] {
        let spec = SandboxSpec::new().memory("128Mi").storage("200Mi");
        let sandbox = client.create("concealed", spec).unwrap();
        let command = Command::from(["python3", "-c", script, how, script]);
        let out = sandbox.exec(command.timeout(Duration::from_secs(180)));
        let out = out.unwrap();
        if out.stderr().contains("the kernel does not show") {
            println!("skipped: {how}: {}", out.stderr());
            continue;
        }
        let end = (out.exit_code(), out.killed_by());
        assert_eq!(end, (137, Some(KilledBy::Storage)), "{how}: {out:?}");
        // A process that conceals nothing may live.
        let line = "python3 -c 'import ctypes, time; ctypes.CDLL(None).prctl(4, 0); time.sleep(2)'";
        assert!(sandbox.exec(Command::shell(line)).is_ok());
        sandbox.delete().unwrap();
    }
}

#[test]
fn cleanup_on_disk_spares_other_sandboxes() {
    let dir = tempfile::tempdir().unwrap();
    let spec = || SandboxSpec::new().memory("64Mi").storage("40Mi");
    // Root's sandboxes without namespaces run as other users, who must be able to pass through.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    for isolation in [Isolation::Namespaces, Isolation::Landlock] {
        let state = dir.path().join(format!("{isolation:?}"));
        let client = || {
            let backend = LocalBackend::builder().isolation(isolation);
            Client::with_backend(backend.state_dir(&state).build().unwrap())
        };
        let clients = [client(), client()];
        let mut sandboxes = Vec::new();
        for id in ["a", "b"] {
            for client in &clients {
                sandboxes.push(client.create(id, spec()).unwrap());
                for (n, sandbox) in sandboxes.iter().enumerate() {
                    sandbox.write(format!("of-{n}"), "x").unwrap();
                }
            }
        }
        // A killed process leaves a directory like this one.
        let left = state.join("disks/0123456789abcdef");
        fs::create_dir_all(left.join("workspace/kept")).unwrap();
        sandboxes.push(clients[0].create("c", spec()).unwrap());
        assert!(!left.exists(), "{isolation:?}");
        sandboxes.pop();
        for (n, sandbox) in sandboxes.iter().enumerate() {
            assert_eq!(shell(sandbox, "ls"), format!("of-{n}\n"), "{isolation:?}");
        }
    }
}

#[test]
fn cpu_limit_is_rounded_up_to_whole_cpus() {
    let spec = SandboxSpec::new().cpu("500m");
    let backend = LocalBackend::builder().build().unwrap();
    if backend.limits(&spec).unwrap().cpu_millis().enforced() == Enforced::Exact {
        println!("skipped: a cgroup enforces the limit exactly");
        return;
    }
    let client = Client::with_backend(backend);
    let sandbox = client.create("cpu", spec).unwrap();
    assert_eq!(shell(&sandbox, "nproc"), "1\n");
    let raise = "taskset -p -c 0-63 $$ >/dev/null 2>&1; nproc";
    assert_eq!(shell(&sandbox, raise), "1\n");
}

#[test]
fn limits_are_reported_and_validated() {
    let backend = LocalBackend::builder().build().unwrap();
    let limits = backend.limits(&SandboxSpec::new()).unwrap();
    assert!(limits.memory().amount().unwrap() <= 1 << 30);
    assert_eq!(limits.storage().enforced(), Enforced::Exact);
    assert_eq!(limits.cpu_millis().enforced(), Enforced::No);
    let spec = SandboxSpec::new().cpu("1.5").memory("1G").storage("64Mi");
    let limits = backend.limits(&spec).unwrap();
    let amounts =
        [limits.cpu_millis(), limits.memory(), limits.storage()].map(|l| l.amount().unwrap());
    assert_eq!(amounts, [1500, 1_000_000_000, 64 << 20]);
    assert_ne!(limits.cpu_millis().enforced(), Enforced::No);

    let client = Client::with_backend(backend);
    for spec in [
        SandboxSpec::new().memory("512MB"),
        SandboxSpec::new().memory("512m"),
        SandboxSpec::new().memory("128"),
        SandboxSpec::new().storage("512k"),
        SandboxSpec::new().cpu("half"),
        SandboxSpec::new().storage("-1"),
    ] {
        let error = client.create("odd", spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let spec = SandboxSpec::new().image("python:3");
    let sandbox = client.create("image", spec).unwrap();
    assert_eq!(sandbox.info().unwrap().ignored(), ["image"]);
}
