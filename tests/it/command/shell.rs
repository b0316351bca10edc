//! `noxrc shell` with lines from stdin.

use super::User;

#[test]
fn shell_reads_lines_and_keeps_state() {
    let user = User::new();
    user.local(&["create", "a"]);
    let lines = "mkdir 'a b'\ncd 'a b'\npwd\ncd ~\npwd\ncd -\npwd\nexport A='x y' B=1\nunset B\n\
        echo \"$A-$B\"\necho 'two\nlines'\nls | wc -l\nfalse\ntouch\nhelp\n\nexit\necho never\n";
    let out = user.run_with_stdin(&["--local", "shell", "a"], lines);
    assert_eq!(out.code, 0);
    let expected =
        "/workspace/a b\n/workspace\n/workspace/a b\n/workspace/a b\nx y-\ntwo\nlines\n0\n";
    assert!(out.stdout.starts_with(expected), "{:?}", out.stdout);
    assert!(out.stdout.contains("Ctrl-D") && !out.stdout.contains("never"));
    assert!(
        out.stderr.contains("⚠ Command exited with code 1\n"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("✓ TTL extended\n"));
    let missing = user.run_with_stdin(&["--local", "shell", "missing"], "true\n");
    assert!(
        missing.stderr.contains("no such sandbox"),
        "{}",
        missing.stderr
    );
}

#[test]
fn cd_without_a_directory_goes_to_the_workspace() {
    let user = User::new();
    user.local(&["create", "a"]);
    let lines = "export HOME=/tmp\ncd /\ncd\npwd\ncd -\ncd ~\npwd\ncd nowhere || echo failed\n";
    let out = user.run_with_stdin(&["--local", "shell", "a"], lines);
    assert_eq!(
        out.stdout, "/workspace\n/\n/tmp\nfailed\n",
        "{}",
        out.stderr
    );
}

#[test]
fn shell_exits_with_the_last_code_or_that_of_exit() {
    let user = User::new();
    user.local(&["create", "a"]);
    let code = |lines: &str| user.run_with_stdin(&["--local", "shell", "a"], lines).code;
    assert_eq!(code("true\nsh -c 'exit 7'\n"), 7);
    assert_eq!(code("false\ntrue\n"), 0);
    assert_eq!(code("exit 3\ntouch /workspace/never\n"), 3);
    assert_eq!(code("test -e /workspace/never || exit 4\ntrue\n"), 4);
    assert_eq!(code("false\nexit\n"), 1);
    let missing = user.run_with_stdin(&["--local", "shell", "missing"], "true\n");
    assert_eq!(missing.code, 125, "{}", missing.stderr);
}

#[test]
fn shell_runs_loops_and_here_documents_over_several_lines() {
    let user = User::new();
    user.local(&["create", "a"]);
    let lines = "for i in 1 2\ndo\n  echo $i\ndone\ncat <<EOF\nit's\ntext\nEOF\n\
        if true\nthen\n  cd /tmp\nfi\npwd\nf() {\n  echo f\n}; f\necho a |\n  cat\n";
    let out = user.run_with_stdin(&["--local", "shell", "a"], lines);
    assert_eq!(
        out.stdout, "1\n2\nit's\ntext\n/tmp\nf\na\n",
        "{}",
        out.stderr
    );
}
