//! Containers of Docker and Podman.

use super::serve::ServeProcess;
use super::*;
use crate::support::docker::{DOCKER, Engine, PODMAN, image};

/// Returns the arguments that choose an engine.
fn options(engine: &Engine) -> [String; 3] {
    let docker = format!("--docker={}", engine.socket());
    [docker, "--agent".to_owned(), engine.agent().to_owned()]
}

fn run(user: &User, engine: &Engine, args: &[&str]) -> CommandOutput {
    let options = options(engine);
    let all: Vec<&str> = options
        .iter()
        .map(String::as_str)
        .chain(args.iter().copied())
        .collect();
    user.run(&all)
}

#[test]
fn commands_run_in_containers() {
    for variable in [DOCKER, PODMAN] {
        let Some(engine) = Engine::new_or_skip(variable, "the command on containers") else {
            continue;
        };
        let user = User::new();
        let image = image();
        let echo = [
            "run",
            "--image",
            &image,
            "--",
            "sh",
            "-c",
            "echo hi; exit 7",
        ];
        assert_output(&run(&user, &engine, &echo), 7, "hi\n", "");
        let id = format!("command-{}", std::process::id());
        let created = run(
            &user,
            &engine,
            &["create", &id, "--image", &image, "--mem", "64Mi"],
        );
        assert_output(&created, 0, "", "✓ Sandbox created: nox-");
        // Another process finds the sandbox.
        fs::write(user.home.path().join("f"), "text").unwrap();
        assert_output(
            &run(&user, &engine, &["cp", "f", &format!("{id}:g")]),
            0,
            "",
            "✓",
        );
        assert_output(&run(&user, &engine, &["cat", &id, "g"]), 0, "text", "");
        let job = run(
            &user,
            &engine,
            &["exec", "--detach", &id, "sh", "-c", "echo job"],
        );
        assert!(
            job.stderr
                .contains(&format!("noxrc --docker={} logs -f", engine.socket()))
        );
        let job = job.stdout.trim().rsplit_once(' ').unwrap().1.to_owned();
        assert_output(&run(&user, &engine, &["wait", &id, &job]), 0, "", "");
        assert_output(
            &run(&user, &engine, &["delete", &id]),
            0,
            "",
            "✓ Sandbox deleted\n",
        );
        assert_output(
            &run(&user, &engine, &["exec", &id, "true"]),
            125,
            "",
            "no such sandbox",
        );
    }
}

#[test]
fn options_of_containers_are_checked() {
    let user = User::new();
    assert_output(
        &user.run(&["--docker", "--local", "health"]),
        2,
        "",
        "cannot be used with",
    );
    assert_output(&user.run(&["--docker-port", "health"]), 2, "", "--docker");
    for args in [
        ["--local", "health", "--docker=/x"],
        ["--runtime=runsc", "--local", "health"],
        ["health", "--agent=/bin/noxrc", "--local"],
    ] {
        assert_output(&user.run(&args), 2, "", "--docker");
    }
    // Options may stand on both sides of the subcommand.
    let both = user.run(&["--docker-port", "health", "--docker=/no/such.sock"]);
    assert_output(&both, 1, "", "Start Docker, or Podman");
    let no_engine = user.run(&["--docker=/no/such.sock", "health"]);
    assert_output(&no_engine, 1, "", "cannot connect to unix:///no/such.sock");
    let tcp = user.run(&["--docker=tcp://127.0.0.1:2375", "health"]);
    assert_output(&tcp, 1, "", "only Unix sockets are supported");
    let image = user.run(&["serve", "--image", "python:3.12"]);
    assert_output(
        &image,
        1,
        "",
        "--image and --allow-image are for containers only",
    );
    let checks = user.run(&["--docker=/no/such.sock", "conformance"]);
    assert_output(&checks, 1, "", "conformance checks a server");
}

#[test]
fn doctor_checks_engines() {
    let Some(engine) = Engine::new_or_skip(DOCKER, "noxrc doctor with an engine") else {
        return;
    };
    let user = User::new();
    let checked = run(&user, &engine, &["--json", "doctor"]);
    let value: Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(value["containers"][0]["works"], true, "{value}");
    assert!(
        checked.stderr.contains("✓ Containers: Docker"),
        "{}",
        checked.stderr
    );
    // The program of the tests is not static.
    let options = format!("--docker={}", engine.socket());
    let checked = user.run(&[&options, "doctor"]);
    assert!(
        checked.stderr.contains("cannot find a static noxrc"),
        "{}",
        checked.stderr
    );
}

#[test]
fn server_allows_some_images() {
    let Some(engine) = Engine::new_or_skip(DOCKER, "noxrc --docker serve") else {
        return;
    };
    let user = User::new();
    let (options, image) = (options(&engine), image());
    let mut args: Vec<&str> = options.iter().map(String::as_str).collect();
    args.extend([
        "--listen",
        "127.0.0.1:0",
        "--image",
        &image,
        "--allow-image",
        &image,
    ]);
    let server = ServeProcess::start(&user, &args);
    let client = |args: &[&str]| {
        let mut command = user.command(args);
        let token = server.token().unwrap_or_default();
        command
            .env("NOXRUNNER_BASE_URL", server.url())
            .env("NOXRUNNER_TOKEN", token);
        run_command(&mut command)
    };
    assert_output(
        &client(&["run", "--", "echo", "default"]),
        0,
        "default\n",
        "",
    );
    assert_output(
        &client(&["run", "--image", &image, "--", "echo", "named"]),
        0,
        "named\n",
        "",
    );
    let refused = client(&["run", "--image", "other:1", "--", "true"]);
    assert_output(
        &refused,
        125,
        "",
        "image \"other:1\" is not allowed on this server",
    );
    server.stop();
}

#[test]
fn registry_credentials_come_from_the_docker_configuration() {
    let Some(engine) = Engine::new_or_skip(DOCKER, "pulls from a registry") else {
        return;
    };
    let Ok(registry) = std::env::var("NOXRUNNER_TEST_REGISTRY") else {
        let _ = writeln!(std::io::stderr(), "skipped without NOXRUNNER_TEST_REGISTRY");
        return;
    };
    let user = User::new();
    let config = |json: &str| {
        fs::create_dir_all(user.home.path().join(".docker")).unwrap();
        fs::write(user.home.path().join(".docker/config.json"), json).unwrap();
    };
    let image = format!("{registry}/busybox:1");
    let pull = || {
        let name = image.replace('/', "%2F");
        engine.api("DELETE", &format!("/images/{name}?force=true"), "");
        run(
            &user,
            &engine,
            &["run", "--image", &image, "--", "echo", "pulled"],
        )
    };
    assert_output(&pull(), 125, "", &format!("cannot pull image \"{image}\""));
    // "puller:wrong" and "puller:let-me-in".
    config(&format!(
        r#"{{"auths": {{"{registry}": {{"auth": "cHVsbGVyOndyb25n"}}}}}}"#
    ));
    assert_output(&pull(), 125, "", "unauthorized");
    config(&format!(
        r#"{{"auths": {{"{registry}": {{"auth": "cHVsbGVyOmxldC1tZS1pbg=="}}}}}}"#
    ));
    assert_output(&pull(), 0, "pulled\n", "");
    let helper = user.home.path().join("docker-credential-ours");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = \"get {registry}\" ] || exit 1\n\
         echo '{{\"ServerURL\": \"\", \"Username\": \"puller\", \"Secret\": \"let-me-in\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    config(r#"{"credsStore": "ours"}"#);
    assert_output(&pull(), 125, "", "docker-credential-ours");
    let path = format!("{}:/usr/bin:/bin", user.home.path().display());
    let name = image.replace('/', "%2F");
    engine.api("DELETE", &format!("/images/{name}?force=true"), "");
    let mut args: Vec<String> = options(&engine).into();
    args.extend(["run", "--image", &image, "--", "echo", "helped"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let helped = run_command(user.command(&args).env("PATH", path));
    assert_output(&helped, 0, "helped\n", "");
}
