//! The memory limit: the memory that counts, and the report of a kill.

use std::time::Duration;

use noxrunner::{Client, Command, KilledBy, Output, Sandbox, SandboxSpec};

use super::{client, shell};

/// The memory limit of the tests, in MiB, and what an attack may hold for a moment.
const LIMIT: u64 = 256;
const TOLERATED: u64 = 352;

/// Defines `took(mib)`, which an attack calls after each step, and which pauses, so that the check between
/// two steps does not depend on the speed of the machine.
const STEPS: &str = r"
import ctypes, mmap, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
total = 0
def took(mib):
    global total
    total += mib
    print(total, flush=True)
    time.sleep(0.05)
";

fn limited(client: &Client, id: &str) -> Sandbox {
    let spec = SandboxSpec::new().memory(format!("{LIMIT}Mi"));
    client.create(id, spec).unwrap()
}

fn python(sandbox: &Sandbox, script: &str) -> Output {
    let command = Command::from(["python3", "-c", &format!("{STEPS}{script}")]);
    sandbox
        .exec(command.timeout(Duration::from_secs(180)))
        .unwrap()
}

/// Asserts that an attack is killed before it holds much more than the limit.
fn assert_is_stopped(name: &str, script: &str) {
    let client = client();
    let sandbox = limited(&client, name);
    let out = python(&sandbox, script);
    let taken = out
        .stdout()
        .lines()
        .last()
        .and_then(|line| line.parse::<u64>().ok());
    assert!(taken.is_some_and(|mib| mib <= TOLERATED), "{name}: {out:?}");
    assert_eq!(out.killed_by(), Some(KilledBy::Memory), "{name}: {out:?}");
    // The sandbox is usable again.
    assert_eq!(shell(&sandbox, "echo next"), "next\n", "{name}");
    sandbox.delete().unwrap();
}

#[test]
fn private_memory_counts() {
    assert_is_stopped(
        "private",
        "kept = []\nwhile total < 2048: kept.append(b'x' * (4 << 20)); took(4)",
    );
}

#[test]
fn memory_of_a_process_whose_first_thread_has_exited_counts() {
    assert_is_stopped(
        "leader",
        r"
def take():
    kept = []
    while total < 2048:
        kept.append(b'x' * (4 << 20))
        took(4)
    os._exit(0)
threading.Thread(target=take).start()
libc.syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)
",
    );
}

#[test]
fn shared_memory_of_a_process_whose_first_thread_has_exited_counts() {
    assert_is_stopped(
        "leader-shared",
        r"
m = mmap.mmap(-1, 2 << 30)
def take():
    while total < 2048:
        at = total << 20
        m[at:at + (4 << 20)] = b'x' * (4 << 20)
        took(4)
    os._exit(0)
threading.Thread(target=take).start()
libc.syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)
",
    );
}

#[test]
fn pages_that_forked_processes_have_in_common_count_once() {
    let client = client();
    let sandbox = limited(&client, "forked");
    let script = r"
kept = b'x' * (100 << 20)
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        time.sleep(2)
        os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
";
    let out = python(&sandbox, script);
    assert_eq!((out.exit_code(), out.killed_by()), (0, None), "{out:?}");
    assert_eq!(out.stdout(), "[0, 0, 0, 0, 0, 0, 0, 0]\n");
}

#[test]
fn shared_memory_counts_after_its_pages_were_unmapped() {
    assert_is_stopped(
        "shared",
        r"
m = mmap.mmap(-1, 2 << 30)
while total < 2048:
    at = total << 20
    m[at:at + (4 << 20)] = b'x' * (4 << 20)
    m.madvise(mmap.MADV_DONTNEED, at, 4 << 20)
    took(4)
",
    );
}

#[test]
fn memory_of_a_process_counts_whatever_its_name_is() {
    assert_is_stopped(
        "name",
        r"
libc.prctl(15, b'\xff')
kept = []
while total < 2048: kept.append(b'x' * (4 << 20)); took(4)
",
    );
}

#[test]
fn shared_memory_counts_beside_a_mapped_file_of_any_name() {
    assert_is_stopped(
        "file-name",
        r"
file = open(b'/workspace/\xff', 'w+b')
file.write(b'x')
file.flush()
mapped = mmap.mmap(file.fileno(), 1)
m = mmap.mmap(-1, 2 << 30)
while total < 2048:
    at = total << 20
    m[at:at + (4 << 20)] = b'x' * (4 << 20)
    m.madvise(mmap.MADV_DONTNEED, at, 4 << 20)
    took(4)
",
    );
}

#[test]
fn page_tables_count() {
    assert_is_stopped(
        "tables",
        r"
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
m = mmap.mmap(-1, 1 << 40, flags=flags, prot=mmap.PROT_READ)
m.madvise(15)
at = 0
while total < 1024:
    for _ in range(1024):
        m[at]
        at += 2 << 20
    took(4)
",
    );
}

#[test]
fn semaphores_count() {
    assert_is_stopped(
        "semaphores",
        r"
while total < 2048:
    if libc.semget(0, 32000, 0o1600) < 0: break
    took(2)
time.sleep(60)
",
    );
}

#[test]
fn messages_of_queues_count() {
    assert_is_stopped(
        "messages",
        r"
message = ctypes.create_string_buffer(b'\1' * 8 + b'x' * 8192)
while total < 2048:
    for _ in range(64):
        queue = libc.msgget(0, 0o1600)
        while libc.msgsnd(queue, message, 8192, 0o4000) == 0: pass
    took(1)
",
    );
}

#[test]
fn detached_segments_count() {
    assert_is_stopped(
        "segments",
        r"
libc.shmat.restype = ctypes.c_void_p
while total < 2048:
    address = libc.shmat(libc.shmget(0, 4 << 20, 0o1600), None, 0)
    ctypes.memset(address, 1, 4 << 20)
    libc.shmdt(ctypes.c_void_p(address))
    took(4)
time.sleep(60)
",
    );
}

#[test]
fn processes_count_together() {
    let client = client();
    let sandbox = limited(&client, "twelve");
    let script = r"
children = []
for _ in range(12):
    child = os.fork()
    if child == 0:
        kept = [b'x' * (4 << 20) for _ in range(15)]
        time.sleep(600)
    children.append(child)
alive = children
for _ in range(600):
    # On a busy machine the children take a while to allocate.
    if len(alive) * 60 <= 256: break
    time.sleep(0.1)
    alive = [child for child in alive if os.waitpid(child, os.WNOHANG) == (0, 0)]
print(len(alive), flush=True)
for child in alive: os.kill(child, 9)
";
    let out = python(&sandbox, script);
    // Without output, the parent was killed as well.
    let alive: u64 = out.stdout().trim().parse().unwrap_or(0);
    assert!(alive * 60 <= LIMIT, "{out:?}");
    assert_eq!(out.killed_by(), Some(KilledBy::Memory), "{out:?}");
}

#[test]
fn files_and_mappings_of_them_count_once() {
    let client = client();
    let sandbox = limited(&client, "once");
    let script = r"
with open('/tmp/file', 'wb') as file:
    for _ in range(100): file.write(b'x' * (1 << 20))
file = open('/tmp/file', 'r+b')
first, second = mmap.mmap(file.fileno(), 0), mmap.mmap(file.fileno(), 0)
if os.fork() == 0:
    for at in range(0, 100 << 20, 4096): first[at]; second[at]
    time.sleep(2)
    os._exit(0)
for at in range(0, 100 << 20, 4096): first[at]; second[at]
shared = mmap.mmap(-1, 80 << 20)
for at in range(0, 80 << 20, 4096): shared[at] = 1
os.wait()
print('both fit')
";
    let out = python(&sandbox, script);
    assert_eq!(
        (&*out.stdout(), out.killed_by()),
        ("both fit\n", None),
        "{out:?}"
    );
    assert_is_stopped(
        "together",
        r"
with open('/tmp/file', 'wb') as file:
    for _ in range(100): file.write(b'x' * (1 << 20))
total = 100
shared = mmap.mmap(-1, 1 << 30)
while total < 1024:
    at = total - 100 << 20
    shared[at:at + (4 << 20)] = b'y' * (4 << 20)
    took(4)
",
    );
}

#[test]
fn reserved_memory_does_not_count() {
    let client = client();
    let sandbox = limited(&client, "reserved");
    let script = r"
private = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
shared = mmap.mmap(-1, 300 << 20)
private[0] = shared[0] = 1
threads = [threading.Thread(target=time.sleep, args=(1.5,)) for _ in range(300)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print('reserved')
";
    let out = python(&sandbox, script);
    assert_eq!(
        (&*out.stdout(), out.killed_by()),
        ("reserved\n", None),
        "{out:?}"
    );
}

#[test]
fn killed_child_is_reported_also_if_the_command_succeeds() {
    let client = client();
    let sandbox = limited(&client, "child");
    let script = "python3 -c 'a = bytearray(1 << 30)'; echo goes on; exit 0";
    let out = sandbox.exec(Command::shell(script)).unwrap();
    assert_eq!(
        (out.exit_code(), &*out.stdout()),
        (0, "goes on\n"),
        "{out:?}"
    );
    assert_eq!(out.killed_by(), Some(KilledBy::Memory));
    let out = sandbox.exec(["echo", "next"]).unwrap();
    assert_eq!(out.killed_by(), None);
}

#[test]
fn usage_is_that_of_all_processes() {
    let client = client();
    let sandbox = limited(&client, "usage");
    let script = "python3 -c 'a = bytearray(100 << 20); [i for i in range(3000000)]'; true";
    let usage = sandbox
        .run(Command::shell(script))
        .unwrap()
        .usage()
        .unwrap();
    let mib = usage.peak_memory() >> 20;
    assert!((100..256).contains(&mib), "{usage:?}");
    assert!(usage.cpu_time() > Duration::from_millis(10), "{usage:?}");
    let small = sandbox.run(["true"]).unwrap().usage().unwrap();
    assert!(small.peak_memory() < 20 << 20, "{small:?}");
}
