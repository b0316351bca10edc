//! Standard input, source code and directory listings, on every kind of backend.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use noxrunner::{
    Cancel, Client, Command, Contents, EntryKind, ErrorKind, Language, Sandbox, SandboxSpec, Stdin,
};

use crate::backends::{assert_timed_out, on_each_backend, own_dirs, reported};
use crate::support::in_parallel;
use crate::support::plain_server::PlainServer;
use crate::support::processes::with_longer_times;

on_each_backend!(run_all);

type Check = fn(&Sandbox);

const CHECKS: &[(&str, Check)] = &[
    ("stdin arrives unchanged", stdin),
    ("stdin can be a reader", stdin_reader),
    ("source code runs as a file", code),
    ("source code may be long", long_code),
    ("custom language", own_language),
    ("failures are reported", failures),
    ("environment variables arrive unchanged", variables),
    ("many arguments", many_arguments),
    ("listing of unusual names", list),
    ("listing of a large directory", long_list),
];

fn run_all(client: &Client) {
    in_parallel(CHECKS.iter().enumerate(), 3, |(n, (name, check))| {
        println!("helpers: {name}");
        let spec = SandboxSpec::new().ttl(Duration::from_secs(300));
        let sandbox = client.create(format!("helpers-{n}"), spec).unwrap();
        check(&sandbox);
        assert_nothing_left(&sandbox, name);
        assert!(sandbox.delete().unwrap());
    });
}

fn assert_nothing_left(sandbox: &Sandbox, name: &str) {
    for dir in own_dirs(sandbox) {
        let look = Command::shell("ls -A | grep noxrunner-").workdir(*dir);
        assert_eq!(sandbox.exec(look).unwrap().stdout(), "", "{name}: {dir}");
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

fn stdin(sandbox: &Sandbox) {
    for bytes in [Vec::new(), b"\0\xff\n".to_vec(), noise(3_000_001)] {
        let out = sandbox.exec(Command::shell("cat >got; cat").stdin(&*bytes));
        assert!(out.unwrap().success());
        assert!(sandbox.read("got").unwrap() == bytes);
    }
    // Arguments, environment and workdir still apply.
    sandbox.run(["mkdir", "a dir"]).unwrap();
    let command = Command::shell("read -r x; echo \"$x $K $0 $1\"; pwd; exit 3");
    let command = command.arg("it's").arg("{file} $x").env("K", "a b");
    let out = sandbox
        .exec(command.workdir("a dir").stdin("in\n"))
        .unwrap();
    assert_eq!(out.exit_code(), reported(sandbox, 3));
    let text = out.stdout();
    assert!(text.starts_with("in a b it's {file} $x\n"), "{text}");
    assert!(text.ends_with("/a dir\n"), "{text}");
    for dir in own_dirs(sandbox) {
        let out = sandbox.exec(Command::shell("cat; pwd").workdir(*dir).stdin("in\n"));
        let text = out.unwrap().stdout().into_owned();
        let expected = (text.starts_with("in\n/"), text.trim_end().ends_with(dir));
        assert_eq!(expected, (true, true), "{text}");
    }
}

fn stdin_reader(sandbox: &Sandbox) {
    let command = Command::from(["wc", "-c"]);
    let command = command.stdin(Stdin::reader(std::io::repeat(b'x').take(5_000_000)));
    let out = sandbox.exec(command.clone()).unwrap();
    assert_eq!(out.stdout().trim(), "5000000");
    let error = sandbox.exec(command).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(format!("{error:#}").contains("earlier run"), "{error}");
}

fn code(sandbox: &Sandbox) {
    let out = sandbox.run_code(Language::SH, "echo \"it's\"\nexit 3\n");
    let out = out.unwrap();
    assert_eq!(
        (out.exit_code(), &*out.stdout()),
        (reported(sandbox, 3), "it's\n")
    );
    let command = Command::code(Language::SH, "read -r x; echo \"$x $1 $K\"");
    let command = command.arg("a b").env("K", "c").stdin("in\n");
    assert_eq!(sandbox.exec(command).unwrap().stdout(), "in a b c\n");
    for (language, source) in [
        (Language::BASH, "[[ 42 == 4? ]] && echo ${BASH_VERSION:+42}"),
        (Language::PYTHON, "print(6 * 7)"),
        (Language::NODE, "console.log(6 * 7)"),
    ] {
        let program = language.file_name().to_owned();
        let out = sandbox.run_code(language, source).unwrap();
        match out.exit_code() {
            // The interpreter is not installed, for example beside busybox.
            code if code == reported(sandbox, 127) => {
                println!("helpers: no interpreter for {program} here")
            }
            code => assert_eq!((code, &*out.stdout()), (0, "42\n"), "{}", out.stderr()),
        }
    }
    let out = sandbox.run_code(
        Language::PYTHON,
        "def f():\n    raise ValueError('x')\n\nf()\n",
    );
    let out = out.unwrap();
    if !out.stderr().contains("not found") {
        assert_eq!(out.exit_code(), reported(sandbox, 1));
        let traceback = out.stderr();
        assert!(traceback.contains("main.py\", line 4"), "{traceback}");
    }
}

fn long_code(sandbox: &Sandbox) {
    // Longer than the kernel's limit for one argument.
    let mut source = "# a line of a comment\n".repeat(50_000);
    source.push_str("echo end\n");
    assert!(source.len() > 1_000_000);
    assert_eq!(
        sandbox.run_code(Language::SH, source).unwrap().stdout(),
        "end\n"
    );
}

fn own_language(sandbox: &Sandbox) {
    let count = Language::new("text", ["sh", "-c", "wc -l <\"$0\"; echo \"$1\"", "{file}"]);
    let count = Command::code(count.unwrap(), "a\nb\n").arg("{file}");
    let out = sandbox.exec(count).unwrap();
    let text = out.stdout();
    let mut lines = text.lines().map(str::trim);
    assert_eq!((lines.next(), lines.next()), (Some("2"), Some("{file}")));
}

fn failures(sandbox: &Sandbox) {
    let missing = sandbox
        .exec(Command::new("no-such-program").stdin("x"))
        .unwrap();
    assert_eq!(missing.exit_code(), reported(sandbox, 127));
    assert!(
        missing.stderr().contains("no-such-program"),
        "{}",
        missing.stderr()
    );
    for command in [
        Command::new("true").stdin("x"),
        Command::code(Language::SH, "true"),
    ] {
        let error = sandbox.exec(command.workdir("missing")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert!(format!("{error:#}").contains("missing"), "{error}");
    }
    // An exit code of 126 from the command itself is passed on.
    let out = sandbox.exec(Command::shell("echo x >&2; exit 126").stdin("x"));
    assert_eq!(out.unwrap().exit_code(), reported(sandbox, 126));
    let out = with_longer_times(Duration::from_secs(1), |timeout| {
        let slow = Command::code(Language::SH, "echo started; sleep 100");
        let out = sandbox.exec(slow.timeout(timeout));
        let is_early = out.as_ref().is_ok_and(|out| out.stdout_bytes().is_empty());
        (!is_early).then_some(out)
    });
    assert_timed_out(out, "started\n");
    let cancel = Cancel::new();
    cancel.cancel();
    let slow = Command::new("cat").stdin("x").cancel_on(&cancel);
    assert!(sandbox.exec(slow).is_err());
    let broken = Stdin::reader(Broken);
    let error = sandbox.exec(Command::new("cat").stdin(broken)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

/// Names that the wrapper script could use itself, or that a shell changes or drops.
fn variables(sandbox: &Sandbox) {
    if own_dirs(sandbox).len() == 1 {
        // The server refuses most of these names.
        return;
    }
    let names = [
        "file", "dir", "count", "at", "arg", "mark", "workdir", "stat", "IFS", "CDPATH", "ENV",
        "a.b", "FOO-BAR", "OLDPWD", "RANDOM", "SHLVL", "nx_dir", "PS1",
    ];
    let with = |command: Command| {
        names
            .iter()
            .fold(command, |c, name| c.env(*name, "a:b {file}"))
    };
    let wanted = |text: &str| {
        for name in names {
            let line = format!("{name}=a:b {{file}}");
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    };
    wanted(
        &sandbox
            .exec(with(Command::new("env")).stdin("x"))
            .unwrap()
            .stdout(),
    );
    let job = sandbox.spawn(with(Command::new("env"))).unwrap();
    let mut text = String::new();
    job.stdout().read_to_string(&mut text).unwrap();
    wanted(&text);
    let own = Language::new("x", ["env", "SOURCE={file}", "env"]).unwrap();
    let out = sandbox
        .exec(with(Command::code(own, "")).stdin("x"))
        .unwrap();
    wanted(&out.stdout());
    let source = |line: &str| line.starts_with("SOURCE=/") && line.ends_with("/x");
    assert!(out.stdout().lines().any(source), "{}", out.stdout());
    // The command's PATH does not apply to the wrapper script.
    let nowhere = Command::new("no-such-program").env("PATH", "/nowhere");
    let out = sandbox.exec(nowhere.clone().stdin("x")).unwrap();
    assert_eq!(out.exit_code(), 127, "{}", out.stderr());
    assert_eq!(
        sandbox.spawn(nowhere).unwrap().wait().unwrap().exit_code(),
        127
    );
}

fn many_arguments(sandbox: &Sandbox) {
    let arguments = (0..8000).map(|n| n.to_string());
    let count: Command = ["sh", "-c", "cat; echo $#", "sh"]
        .into_iter()
        .map(str::to_owned)
        .chain(arguments)
        .collect();
    let out = sandbox.exec(count.stdin("in ").timeout(Duration::from_secs(20)));
    assert_eq!(out.unwrap().stdout(), "in 8000\n");
}

fn list(sandbox: &Sandbox) {
    assert_eq!(sandbox.list(".").unwrap(), []);
    sandbox
        .write("d/file", Contents::from("12345").mode(0o640))
        .unwrap();
    let odd = "cd d; mkdir dir; chmod 1711 dir; ln -s /nowhere link; mkfifo fifo; : >.hidden; : >-rf; : >'a  b'; : >\"$(printf 'x\\ny')\"; : >\"$(printf '\\377')\"; : >'$HOME'; : >'!'; : >'\nfoo'";
    sandbox.exec(Command::shell(odd)).unwrap().check().unwrap();
    for path in ["d", "./d/", "/workspace/d"] {
        let entries = sandbox.list(path).unwrap();
        let names: Vec<_> = entries.iter().map(|e| e.name().as_bytes()).collect();
        let wanted: [&[u8]; 12] = [
            b"\nfoo", b"!", b"$HOME", b"-rf", b".hidden", b"a  b", b"dir", b"fifo", b"file",
            b"link", b"x\ny", b"\xff",
        ];
        assert_eq!(names, wanted);
        let of = |name: &str| entries.iter().find(|e| e.name() == name).unwrap();
        let file = of("file");
        assert_eq!(
            (file.kind(), file.size(), file.mode()),
            (EntryKind::File, 5, 0o640)
        );
        let age = std::time::SystemTime::now().duration_since(file.modified());
        assert!(age.unwrap() < Duration::from_secs(600));
        assert_eq!(
            (of("dir").kind(), of("dir").mode()),
            (EntryKind::Directory, 0o1711)
        );
        assert_eq!(of("link").kind(), EntryKind::Symlink);
        assert_eq!(of("fifo").kind(), EntryKind::Other);
    }
    for dir in own_dirs(sandbox) {
        let create = Command::shell("mkdir t; : >t/x").workdir(*dir);
        sandbox.exec(create).unwrap().check().unwrap();
        let entries = sandbox.list(format!("{dir}/t")).unwrap();
        assert_eq!(entries[0].name(), "x");
    }
    assert!(!sandbox.list("/usr").unwrap().is_empty());
    for missing in ["no/such", "d/link"] {
        let error = sandbox.list(missing).unwrap_err();
        assert!(missing == "d/link" || error.is_not_found(), "{error:?}");
        assert!(format!("{error:#}").contains(missing), "{error}");
    }
    let error = sandbox.list("d/file").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(
        format!("{error:#}").contains("is not a directory"),
        "{error}"
    );
    assert_eq!(
        sandbox.list("").unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

fn long_list(sandbox: &Sandbox) {
    // More than fits into the output of one exec.
    let names = "n=0; while [ $n -lt 7000 ]; do : >$n-$LONG; n=$((n + 1)); done";
    let names = Command::shell(names).env("LONG", "x".repeat(200));
    sandbox
        .run(names.timeout(Duration::from_secs(180)))
        .unwrap();
    let entries = sandbox.list("/workspace").unwrap();
    assert_eq!(entries.len(), 7000);
    assert!(entries.iter().all(|entry| entry.name().len() > 200));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the disk is gone"))
    }
}

#[test]
fn stdin_without_sh_or_upload_is_unsupported() {
    let path = tempfile::tempdir().unwrap();
    for tool in ["cat", "rm", "true"] {
        let found = ["/bin", "/usr/bin"].map(|dir| std::path::Path::new(dir).join(tool));
        let found = found.iter().find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(found, path.path().join(tool)).unwrap();
    }
    let Some(server) = PlainServer::start(&["--path", path.path().to_str().unwrap()]) else {
        return;
    };
    let sandbox = server.client().create("no sh", SandboxSpec::new()).unwrap();
    let error = sandbox.exec(Command::new("cat").stdin("x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        format!("{error:#}").contains("need `sh` in the sandbox"),
        "{error}"
    );
    let left = sandbox.download_archive("/workspace").unwrap();
    let mut left = tar::Archive::new(flate2::read::GzDecoder::new(left));
    assert_eq!(left.entries().unwrap().count(), 0);

    let Some(server) = PlainServer::start(&["--minimal"]) else {
        return;
    };
    let sandbox = server
        .client()
        .create("minimal", SandboxSpec::new())
        .unwrap();
    let error = sandbox.exec(Command::new("cat").stdin("x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        format!("{error:#}").contains("this backend has no uploads"),
        "{error}"
    );
}
