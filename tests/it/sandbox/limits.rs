//! What sandboxes may take, and how it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use noxrunner::{Client, Command, Enforced, ErrorKind, Isolation, LocalBackend, SandboxSpec};

use super::{client, shell};

#[test]
fn memory_is_limited_for_one_process_and_for_all_together() {
    let client = client();
    let spec = SandboxSpec::new().memory("256Mi");
    let sandbox = client.create("memory", spec).unwrap();
    sandbox.write("kept", "x").unwrap();
    let alone = "try: a = bytearray(400 << 20)\nexcept MemoryError: print('refused')";
    assert_eq!(
        sandbox.exec(["python3", "-c", alone]).unwrap().stdout(),
        "refused\n"
    );
    let many = "for i in 1 2 3 4; do python3 -c 'import time; a = bytearray(100 << 20); time.sleep(3); print(1)' & done; wait";
    let held = shell(&sandbox, many);
    assert!(held.matches('1').count() <= 2, "{held}");
    assert_eq!(sandbox.read("kept").unwrap(), b"x");
}

#[test]
fn storage_is_limited_and_a_full_one_is_an_error() {
    let client = client();
    let spec = SandboxSpec::new().storage("8Mi");
    let sandbox = client.create("storage", spec).unwrap();
    let full = shell(&sandbox, "head -c 20000000 /dev/zero > big; stat -c %s big");
    assert!(full.contains("No space left"), "{full}");
    let error = sandbox.write("more", vec![1; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(!sandbox.exists("more").unwrap());
    shell(&sandbox, "rm big");
    sandbox.write("more", vec![1; 1 << 20]).unwrap();
}

#[test]
fn much_storage_is_on_disk_limited_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let spec = || SandboxSpec::new().memory("64Mi").storage("40Mi");
    for kept in [false, true] {
        let backend = LocalBackend::builder()
            .state_dir(dir.path())
            .persistent(kept);
        let backend = backend.build().unwrap();
        let storage = backend.limits(&spec()).unwrap().storage();
        assert_eq!(storage.enforced(), Enforced::Approximate);
        let client = Client::with_backend(backend);
        let sandbox = client.create("disk", spec()).unwrap();
        sandbox.write("in", "x").unwrap();
        assert_eq!(
            shell(&sandbox, "cat in; id -un; stat -c %U in"),
            "xsandbox\nsandbox\n"
        );
        let fs_type = shell(&sandbox, "stat -f -c %T /workspace /usr");
        let types: Vec<&str> = fs_type.lines().collect();
        println!("/workspace is on {types:?}");
        // One file, and then many.
        let big = sandbox.exec(Command::shell(
            "head -c 60000000 /dev/zero > big; stat -c %s big",
        ));
        assert_eq!(big.unwrap().stdout(), format!("{}\n", 40 << 20));
        let more =
            "i=0; while :; do head -c 9000000 /dev/zero > more-$i; i=$((i+1)); sleep 0.1; done";
        let out = sandbox
            .exec(Command::shell(more).timeout(Duration::from_secs(20)))
            .unwrap();
        assert_eq!((out.exit_code(), out.timed_out()), (137, false));
        assert_eq!(shell(&sandbox, "rm -f big more-*; ls"), "in\n");
        shell(&sandbox, "mkdir -p a/b; touch a/b/c; chmod 000 a/b a");
        assert!(sandbox.delete().unwrap());
        let part = dir.path().join(if kept { "persistent" } else { "disks" });
        assert_eq!(fs::read_dir(part).unwrap().count(), 0);
    }
}

#[test]
fn sandboxes_on_disk_leave_each_others_files_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let spec = || SandboxSpec::new().memory("64Mi").storage("40Mi");
    // Without namespaces, sandboxes of root have to come there as somebody else.
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
        // As a process that was killed leaves it.
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
fn a_cpu_limit_is_whole_cpus() {
    let client = client();
    let spec = SandboxSpec::new().cpu("500m");
    let sandbox = client.create("cpu", spec).unwrap();
    assert_eq!(shell(&sandbox, "nproc"), "1\n");
    assert_eq!(
        shell(&sandbox, "taskset -p -c 0-63 $$ >/dev/null 2>&1; nproc"),
        "1\n"
    );
}

#[test]
fn limits_can_be_read_and_what_means_nothing_is_told() {
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
        SandboxSpec::new().cpu("half"),
        SandboxSpec::new().storage("-1"),
    ] {
        let error = client.create("odd", spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let sandbox = client
        .create("image", SandboxSpec::new().image("python:3"))
        .unwrap();
    assert_eq!(sandbox.info().unwrap().ignored(), ["image"]);
}
