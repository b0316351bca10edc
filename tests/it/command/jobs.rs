//! Detached commands, each step in a separate process.

use std::io::Read;

use super::*;

/// The sandbox id and job id that `--detach` prints.
fn detached(ran: &CommandOutput) -> (String, String) {
    assert_output(
        ran,
        0,
        &ran.stdout,
        "ℹ Follow it with: noxrc --local logs -f ",
    );
    let (id, job) = ran.stdout.trim_end().split_once(' ').unwrap();
    (id.to_owned(), job.to_owned())
}

#[test]
fn detached_job_is_found_by_other_commands() {
    let user = User::new();
    fs::write(user.path("in"), "from here\n").unwrap();
    let line = "cat in; echo err >&2; while [ ! -f go ]; do sleep 0.1; done; echo end; exit 5";
    let args = ["run", "--detach", "--env", "A=1", "--upload", "in", "--"];
    let ran = user.local(&[&args[..], &["sh", "-c", line]].concat());
    let (id, job) = detached(&ran);

    let jobs = user.local(&["jobs", &id]);
    assert!(
        jobs.stdout.starts_with(&format!("{job}  running ")),
        "{}",
        jobs.stdout
    );
    let command = format!("sh -c '{line}'\n");
    assert!(jobs.stdout.ends_with(&command), "{}", jobs.stdout);
    let json = user.local(&["--json", "jobs", &id]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["jobs"][0]["state"], "running");
    assert_eq!(json["jobs"][0]["command"], json!(["sh", "-c", line]));

    wait_for("the job writes", || {
        user.local(&["logs", &id, &job]).stderr == "err\n"
    });
    assert_output(&user.local(&["logs", &id, &job]), 0, "from here\n", "err\n");
    let still = user.local(&["wait", "--timeout-seconds", "1", &id, &job]);
    assert_output(&still, 124, "", "⚠ The job is still running");
    let mut follow = user.command(&["--local", "logs", "-f", &id, &job]);
    let follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    let mut first = [0; 10];
    follow
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"from here\n", "while it runs");
    assert_output(&user.local(&["exec", &id, "touch", "go"]), 0, "", "");
    assert_output(
        &output_of(follow.wait_with_output().unwrap()),
        0,
        "end\n",
        "err\n",
    );

    assert_job_exited_with_5(&user, &id, &job);
}

fn assert_job_exited_with_5(user: &User, id: &str, job: &str) {
    assert_output(&user.local(&["wait", id, job]), 5, "", "");
    let json = user.local(&["--json", "wait", id, job]);
    let value: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (json.code, value),
        (5, json!({"id": id, "job": job, "exitCode": 5}))
    );
    let json = user.local(&["--json", "logs", "-f", id, job]);
    let value: Value = serde_json::from_str(&json.stdout).unwrap();
    let streams = (&value["stdout"], &value["stderr"], &value["exitCode"]);
    assert_eq!(
        streams,
        (&json!("from here\nend\n"), &json!("err\n"), &json!(5))
    );
    let jobs = user.local(&["jobs", id]);
    assert!(
        jobs.stdout.starts_with(&format!("{job}  exited 5 ")),
        "{}",
        jobs.stdout
    );
}

#[test]
fn detached_job_can_be_killed() {
    let user = User::new();
    user.local(&["create", "a"]);
    let id = "a";
    let sleep = unique_sleep(343_001);
    let (same, second) = detached(&user.local(&["exec", "-d", id, "sleep", &sleep]));
    assert_eq!(same, id);
    wait_for("the command runs", || sleeps(&sleep));
    assert_output(&user.local(&["kill", id, &second]), 0, "", "✓ Job killed\n");
    assert_output(&user.local(&["wait", id, &second]), 143, "", "");
    assert!(!sleeps(&sleep));

    for command in ["logs", "wait", "kill"] {
        let missing = user.local(&[command, id, "j00"]);
        let code = if command == "wait" { 125 } else { 1 };
        assert_output(&missing, code, "", "no such job");
    }
    assert_output(&user.local(&["delete", id]), 0, "", "✓ Sandbox deleted\n");
}

#[test]
fn options_that_need_a_result_conflict_with_detach() {
    let user = User::new();
    for option in [
        ["--download", "out"].as_slice(),
        &["--timeout-seconds", "5"],
        &["--ignore-exit-code"],
    ] {
        let ran = user.local(&[&["run", "--detach"], option, &["true"]].concat());
        assert_output(&ran, 2, "", "cannot be used with");
    }
    let failed = user.local(&["exec", "--detach", "missing", "true"]);
    assert_output(&failed, 125, "", "noxrc create");
}

#[test]
fn closed_pipe_ends_logs_follow() {
    let user = User::new();
    let endless = "while :; do echo line; sleep 0.1; done";
    let (id, job) = detached(&user.local(&["run", "-d", "sh", "-c", endless]));
    let logs = format!("\"$NOXRC\" --local logs -f {id} {job}");
    let line = format!("{logs} | head -1; exit ${{PIPESTATUS[0]}}");
    let mut shell = user.shell("bash", &line);
    assert_output(
        &run_command(shell.env_remove("XDG_STATE_HOME")),
        0,
        "line\n",
        "",
    );
}

#[test]
fn run_outlives_its_ttl_but_a_killed_run_does_not() {
    let user = User::new();
    let long = ["run", "--ttl", "6", "--", "sh", "-c", "sleep 9; echo end"];
    assert_output(&user.local(&long), 0, "end\n", "");
    let sleep = unique_sleep(344_001);
    let args = ["--local", "run", "--ttl", "6", "--", "sleep", &sleep];
    let mut child = user.command(&args).spawn().unwrap();
    wait_for("the command runs", || sleeps(&sleep));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("its sandbox ends", || !sleeps(&sleep));
}
