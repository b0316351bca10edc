//! `upload`, `download` and `cp`.

use super::*;

/// A user with files to upload, and the sandbox `a`.
fn user_with_files() -> User {
    let user = User::new();
    user.local(&["create", "a"]);
    fs::create_dir_all(user.path("dir/sub")).unwrap();
    fs::write(user.path("one.txt"), "1").unwrap();
    fs::write(user.path("dir/two"), "2").unwrap();
    fs::write(user.path("dir/sub/three"), [0, 255]).unwrap();
    user
}

#[test]
fn upload_and_download_transfer_files_and_directories() {
    let user = user_with_files();
    let upload = |args: &[&str]| user.local(&[&["upload", "a"], args].concat());
    let uploaded = upload(&["one.txt", "dir/two"]);
    assert_output(&uploaded, 0, "", "✓ Uploaded 2 file(s) to /workspace\n");
    let uploaded = upload(&["--dir", "dir", "--dest", "/workspace/d"]);
    assert_output(&uploaded, 0, "", "✓ Uploaded");
    let find = ["exec", "a", "sh", "-c", "find . -type f | sort"];
    let files = "./d/sub/three\n./d/two\n./one.txt\n./two\n";
    assert_output(&user.local(&find), 0, files, "");
    assert_output(&upload(&["missing"]), 1, "", "missing");
    assert_output(&upload(&["dir"]), 1, "", "--dir");
    assert_output(&upload(&[]), 1, "", "--dir");

    let download = |args: &[&str]| user.local(&[&["download", "a"], args].concat());
    let extracted = download(&["--extract", "out"]);
    assert_output(&extracted, 0, "", "✓ Extracted to out\n");
    assert_eq!(fs::read(user.path("out/d/sub/three")).unwrap(), [0, 255]);
    assert_eq!(fs::read(user.path("out/one.txt")).unwrap(), b"1");
    let downloaded = download(&["--src", "/workspace/d", "--output", "d.tar.gz"]);
    assert_output(&downloaded, 0, "", "✓ Downloaded to d.tar.gz\n");
    assert!(fs::metadata(user.path("d.tar.gz")).unwrap().len() > 100);
    assert_output(&user.local(&["cat", "a", "missing"]), 1, "", "missing");
}

#[test]
fn download_to_stdout_follows_redirections() {
    let user = user_with_files();
    for (redirection, file, start) in [
        ("| cat >", "piped", ""),
        (">", "plain", ""),
        (">>", "appended", "old\n"),
    ] {
        fs::write(user.path(file), "old\n").unwrap();
        let download = "\"$NOXRC\" --local download a --output /dev/stdout";
        let line = format!("{download} {redirection}{file}");
        let mut shell = user.shell("sh", &line);
        let out = run_command(shell.current_dir(user.path("")));
        assert_output(&out, 0, "", "Downloaded to /dev/stdout");
        let written = fs::read(user.path(file)).unwrap();
        let archive = written.strip_prefix(start.as_bytes()).unwrap();
        assert!(archive.starts_with(&[0x1f, 0x8b]), "{redirection}");
    }
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
}

#[test]
fn cp_copies_in_both_directions() {
    let user = user_with_files();
    user.local(&["upload", "a", "--dir", "dir", "--dest", "/workspace/d"]);
    for (from, to) in [
        ("one.txt", "a:copied"),
        ("one.txt", "a:into/"),
        ("one.txt", "a:d"),
        ("dir", "a:"),
        ("dir", "a:other"),
        ("a:d/sub/three", "back"),
        ("a:d", "."),
        ("a:d", "new"),
    ] {
        assert_output(&user.local(&["cp", from, to]), 0, "", "✓ Copied");
    }
    let copies = "cat copied into/one.txt d/one.txt dir/two other/two";
    let copies = user.local(&["exec", "a", "sh", "-c", copies]);
    assert_output(&copies, 0, "11122", "");
    for file in ["back", "d/sub/three", "new/sub/three"] {
        assert_eq!(fs::read(user.path(file)).unwrap(), [0, 255], "{file}");
    }
    assert_output(&user.local(&["cp", "one.txt", "two.txt"]), 1, "", "ID:PATH");
    assert_output(&user.local(&["cp", "a:missing", "x"]), 1, "", "missing");
    assert!(!user.path("x").exists());
}

#[test]
fn two_sources_with_one_name_are_refused() {
    let user = User::new();
    user.local(&["create", "a"]);
    for dir in ["A", "B"] {
        fs::create_dir(user.path(dir)).unwrap();
        fs::write(user.path(dir).join("main.py"), dir).unwrap();
    }
    let refused = |args: &[&str]| {
        let out = user.local(args);
        let expected = "A/main.py and B/main.py have the same name";
        assert!(out.stderr.contains(expected), "{args:?}: {}", out.stderr);
        out.code
    };
    assert_eq!(refused(&["upload", "a", "A/main.py", "B/main.py"]), 1);
    let upload = [
        "run",
        "--upload",
        "A/main.py",
        "--upload",
        "B/main.py",
        "true",
    ];
    assert_eq!(refused(&upload), 125);
    let download = [
        "run",
        "--download",
        "A/main.py",
        "--download",
        "B/main.py",
        "true",
    ];
    assert_eq!(refused(&download), 125);
    // Arguments that would be ignored.
    assert_eq!(
        user.local(&["upload", "a", "--dir", "A", "B/main.py"]).code,
        2
    );
    assert_eq!(
        user.local(&["download", "a", "--output", "f", "--extract", "d"])
            .code,
        2
    );
    // A link keeps its own name.
    std::os::unix::fs::symlink("A/main.py", user.path("link.py")).unwrap();
    assert_eq!(user.local(&["cp", "link.py", "a:/workspace/"]).code, 0);
    assert_eq!(user.local(&["cat", "a", "link.py"]).stdout, "A");
}

#[test]
fn failed_download_leaves_no_directory() {
    let user = User::new();
    let out = user.local(&["download", "nosuch", "--extract", "new/dir"]);
    assert_eq!(out.code, 1, "{}", out.stderr);
    assert!(!user.path("new").exists());
}
