//! Limits, images, users and mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use noxrunner::{Client, Command, ErrorKind, KilledBy, Pull, SandboxSpec};

use super::on_each_engine;
use crate::support::ErrorText as _;
use crate::support::docker::{Engine, image, user_image};

on_each_engine!(
    images_with_another_user_work,
    limits_are_enforced,
    impossible_settings_are_refused_by_name,
    later_specs_do_not_change_a_sandbox,
    storage_beyond_the_memory_is_on_disk,
    commands_cannot_write_beside_the_socket,
    mounts_are_shown,
    missing_images_are_reported,
    old_sandboxes_need_no_image,
    agent_that_ends_is_quoted,
);

fn images_with_another_user_work(engine: &Engine) {
    let client = engine.client();
    let spec = SandboxSpec::new().image(user_image());
    let sandbox = client.create("user", spec).unwrap();
    assert_eq!(sandbox.run(["id", "-u"]).unwrap().stdout(), "1000\n");
    sandbox.write("f", "x").unwrap();
    assert_eq!(sandbox.read("f").unwrap(), b"x");
    assert!(sandbox.delete().unwrap());
    let backend = engine.builder().user("1234:99").build().unwrap();
    let sandbox = Client::with_backend(backend)
        .create("user", SandboxSpec::new())
        .unwrap();
    let out = sandbox
        .run(Command::shell("id -u; id -g; touch /tmp/f f"))
        .unwrap();
    assert_eq!(out.stdout(), "1234\n99\n");
    assert!(sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

fn limits_are_enforced(engine: &Engine) {
    let backend = engine.builder().pids(20).build().unwrap();
    let client = Client::with_backend(backend);
    let spec = SandboxSpec::new().memory("64Mi").storage("4Mi").cpu("500m");
    let sandbox = client.create("limits", spec).unwrap();
    if !engine.has_cgroups() {
        // The caller gets to know.
        assert_eq!(sandbox.info().unwrap().ignored(), ["cpu", "memory"]);
        return;
    }
    // A command over the memory limit is killed, and the sandbox lives on.
    let hungry = "a=x; while :; do a=$a$a; done";
    let out = sandbox.exec(Command::shell(hungry)).unwrap();
    assert_eq!(
        (out.exit_code(), out.killed_by()),
        (137, Some(KilledBy::Memory)),
        "{out:?}"
    );
    for dir in ["/workspace", "/tmp"] {
        let fill = Command::shell("dd if=/dev/zero of=full bs=1M count=8; rm full").workdir(dir);
        let out = sandbox.exec(fill).unwrap();
        assert!(out.stderr().contains("No space left"), "{dir}: {out:?}");
    }
    let fork = "for i in $(seq 40); do sleep 5 & done; kill $(jobs -p)";
    let out = sandbox.exec(Command::shell(fork)).unwrap();
    assert!(out.stderr().contains("fork"), "{out:?}");
    let id = engine.only_container();
    let (_, container) = engine.api("GET", &format!("/containers/{id}/json"), "");
    let container: serde_json::Value = serde_json::from_str(&container).unwrap();
    let host = &container["HostConfig"];
    assert_eq!(host["Memory"], 64 << 20);
    assert_eq!(host["NanoCpus"], 500_000_000);
    let status = sandbox.run(["cat", "/proc/self/status"]).unwrap();
    let status = status.stdout();
    assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(sandbox.delete().unwrap());
    engine.assert_nothing_left();
}

fn impossible_settings_are_refused_by_name(engine: &Engine) {
    let client = engine.client();
    for (spec, text) in [
        (SandboxSpec::new().memory("512MB"), "memory limit \"512MB\""),
        (SandboxSpec::new().memory("1Mi"), "memory limit \"1Mi\""),
        (SandboxSpec::new().cpu("many"), "cpu limit \"many\""),
        (SandboxSpec::new().storage("0"), "storage limit \"0\""),
        (SandboxSpec::new().image(""), "image"),
        (SandboxSpec::new().image("a b"), "image \"a b\""),
    ] {
        let error = client.create("impossible", spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:#}");
        assert!(error.chain().contains(text), "{error:#}");
    }
    // The engine's own words, for a setting that only it can check.
    let backend = engine.builder().runtime("no-such-runtime").build().unwrap();
    let client = Client::with_backend(backend);
    let error = client.create("impossible", SandboxSpec::new()).unwrap_err();
    let text = error.chain();
    assert!(text.contains("no-such-runtime"), "{text}");
    for builder in [
        engine.builder().network("no-such-network"),
        engine.builder().user("no-such-user"),
    ] {
        let client = Client::with_backend(builder.clone().build().unwrap());
        let error = client.create("impossible", SandboxSpec::new()).unwrap_err();
        let text = error.chain();
        assert!(text.contains("the engine answered"), "{text}");
        assert!(text.contains("no-such"), "{text}");
    }
    let builder = engine.builder().mount("/no/such/directory", "/data", true);
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(
        error
            .chain()
            .contains("cannot mount \"/no/such/directory\""),
        "{error:#}"
    );
    engine.assert_nothing_left();
}

fn later_specs_do_not_change_a_sandbox(engine: &Engine) {
    let always = engine.always_ignored();
    let client = engine.client();
    let first = SandboxSpec::new().memory("64Mi");
    client.create("later", first.clone()).unwrap();
    let ignored = |client: &Client, spec: SandboxSpec| {
        let sandbox = client.create("later", spec).unwrap();
        sandbox.info().unwrap().ignored().to_vec()
    };
    for client in [client.clone(), engine.client()] {
        assert_eq!(ignored(&client, first.clone()), always);
        let other = SandboxSpec::new().memory("128Mi").cpu("1").image("other:1");
        assert_eq!(ignored(&client, other), ["cpu", "image", "memory"]);
        assert_eq!(ignored(&client, SandboxSpec::new().image(image())), always);
    }
    assert_eq!(engine.containers().len(), 1);
    assert!(client.sandbox("later").unwrap().delete().unwrap());
}

fn storage_beyond_the_memory_is_on_disk(engine: &Engine) {
    let client = engine.client();
    let ignored = [engine.always_ignored(), &["storage"]].concat();
    for image in [image(), user_image()] {
        let spec = SandboxSpec::new()
            .memory("64Mi")
            .storage("10Gi")
            .image(image);
        let sandbox = client.create("disk", spec.clone()).unwrap();
        assert_eq!(sandbox.info().unwrap().ignored(), ignored);
        let fill = Command::shell("head -c 100000000 /dev/zero > big; stat -c %s big");
        assert_eq!(sandbox.run(fill).unwrap().stdout(), "100000000\n");
        let again = engine.client().create("disk", spec).unwrap();
        assert_eq!(again.info().unwrap().ignored(), ignored);
        assert!(sandbox.delete().unwrap());
    }
    engine.assert_nothing_left();
}

fn commands_cannot_write_beside_the_socket(engine: &Engine) {
    let client = engine.client();
    for (id, image) in [("root", image()), ("user", user_image())] {
        let sandbox = client.create(id, SandboxSpec::new().image(image)).unwrap();
        let touch = "cd /.noxrunner/run; chmod 777 .; touch x; mkdir y; ln -s /x agent.sock; ls -A";
        let out = sandbox.exec(Command::shell(touch)).unwrap();
        assert_eq!(out.stdout(), "", "{out:?}");
        // A new backend still reaches the agent.
        let other = engine.client();
        other.sandbox(id).unwrap().run(["true"]).unwrap();
        let program = sandbox.exec(["touch", "/.noxrunner/noxrc"]).unwrap();
        assert!(!program.success(), "{program:?}");
        assert!(sandbox.delete().unwrap());
    }
    engine.assert_nothing_left();
}

fn mounts_are_shown(engine: &Engine) {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("in"), "from the host").unwrap();
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = data.path().to_str().unwrap();
    let builder = engine.builder().mount(path, "/data", true);
    let builder = builder.mount(path, "/workspace", false);
    let client = Client::with_backend(builder.build().unwrap());
    let sandbox = client.create("mounts", SandboxSpec::new()).unwrap();
    let out = sandbox.run(["cat", "/data/in", "in"]).unwrap();
    assert_eq!(out.stdout(), "from the hostfrom the host");
    assert!(!sandbox.exec(["touch", "/data/out"]).unwrap().success());
    sandbox.run(["touch", "out"]).unwrap();
    assert!(data.path().join("out").exists());
    assert!(sandbox.delete().unwrap());
    assert!(data.path().join("in").exists());
    engine.assert_nothing_left();
}

fn missing_images_are_reported(engine: &Engine) {
    let missing = || SandboxSpec::new().image("localhost:1/noxrunner/no-such-image:7");
    let error = engine.client().create("missing", missing()).unwrap_err();
    let text = error.chain();
    assert!(
        text.contains("cannot pull image \"localhost:1/noxrunner/no-such-image:7\""),
        "{text}"
    );
    let backend = engine.builder().pull(Pull::Never).build().unwrap();
    let error = Client::with_backend(backend)
        .create("missing", missing())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.chain().contains("pulling is disabled"), "{error:#}");
    engine.assert_nothing_left();
}

fn old_sandboxes_need_no_image(engine: &Engine) {
    let client = engine.client();
    client.create("old", SandboxSpec::new()).unwrap();
    let without_image = || {
        let builder = noxrunner::DockerBackend::builder().socket(engine.socket());
        let builder = builder.agent(engine.agent());
        let builder = builder.socket_dir(engine.dir.path().join("sockets"));
        Client::with_backend(builder.build().unwrap())
    };
    let spec = SandboxSpec::new().ttl(Duration::from_secs(100));
    without_image().create("old", spec.clone()).unwrap();
    let error = without_image().create("new", spec).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.chain().contains("no image: set"), "{error:#}");
    assert!(client.sandbox("old").unwrap().delete().unwrap());
}

fn agent_that_ends_is_quoted(engine: &Engine) {
    // Static, but not an agent.
    let Ok(busybox) = fs::read("/bin/busybox") else {
        return;
    };
    let path = engine.dir.path().join("noxrc");
    fs::write(&path, busybox).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let Ok(backend) = engine.builder().agent(&path).build() else {
        // It is not static on this machine.
        return;
    };
    let error = Client::with_backend(backend).create("no-agent", SandboxSpec::new());
    let text = error.unwrap_err().chain();
    assert!(text.contains("ended before its agent answered"), "{text}");
    assert!(
        text.contains("the agent wrote: ") && text.contains("applet not found"),
        "{text}"
    );
    engine.assert_nothing_left();
}
