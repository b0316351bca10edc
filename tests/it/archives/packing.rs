//! Excluded files of uploads, and symbolic links.

use noxrunner::{Pack, Symlinks};

use super::*;
use crate::support::ErrorText as _;

/// A small project, with links in and out of it.
fn project() -> Scratch {
    let dir = Scratch::new();
    for path in [
        "src/a.c",
        "src/a.o",
        "src/deep/b.o",
        "target/x",
        ".git/config",
        "empty/",
        "outside/f",
    ] {
        let path = dir.join("p").join(path);
        if path.to_string_lossy().ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }
    fs::rename(dir.join("p/outside"), dir.join("outside")).unwrap();
    symlink("a.c", dir.join("p/src/link.c")).unwrap();
    symlink("../outside", dir.join("p/out")).unwrap();
    dir
}

/// Returns the paths in the sandbox after an upload, sorted. Links end with `@`.
fn uploaded(pack: &Pack) -> Vec<String> {
    let dir = project();
    let (sandbox, _state) = local();
    sandbox.upload_dir_with(dir.join("p"), "p", pack).unwrap();
    paths_in(&sandbox)
}

fn paths_in(sandbox: &Sandbox) -> Vec<String> {
    let list =
        "cd p && find . -mindepth 1 -type l -printf '%P@\\n' -o -mindepth 1 -printf '%P\\n' | sort";
    let out = sandbox.run(Command::shell(list)).unwrap();
    out.stdout().lines().map(str::to_owned).collect()
}

#[test]
fn excluded_paths_are_left_out() {
    let pack = Pack::new()
        .exclude("*.o")
        .exclude("/target")
        .exclude(".git/");
    assert_eq!(
        uploaded(&pack),
        ["empty", "out@", "src", "src/a.c", "src/deep", "src/link.c@"]
    );
}

#[test]
fn filter_sees_relative_paths() {
    let pack = Pack::new().filter(|path| path.starts_with("src") && path != Path::new("src/deep"));
    assert_eq!(
        uploaded(&pack),
        ["src", "src/a.c", "src/a.o", "src/link.c@"]
    );
}

#[test]
fn links_are_kept_followed_or_skipped() {
    let only = |links| {
        Pack::new()
            .exclude("*.o")
            .exclude("target")
            .exclude(".git")
            .symlinks(links)
    };
    let rest = ["empty", "src", "src/a.c", "src/deep"];
    let with = |paths: &[&'static str]| {
        let mut all = [&rest, paths].concat();
        all.sort_unstable();
        all
    };
    assert_eq!(
        uploaded(&only(Symlinks::Keep)),
        with(&["out@", "src/link.c@"])
    );
    assert_eq!(uploaded(&only(Symlinks::Skip)), rest);
    let followed = with(&["out", "out/f", "src/link.c"]);
    assert_eq!(uploaded(&only(Symlinks::Follow)), followed);
    // The rules apply to paths in the upload, also behind links.
    let without = only(Symlinks::Follow).exclude("out/f");
    assert_eq!(uploaded(&without), with(&["out", "src/link.c"]));
}

#[test]
fn links_that_cannot_be_followed_are_errors() {
    let follow = Pack::new().symlinks(Symlinks::Follow);
    for (link, target, expected) in [
        ("loop", ".", "a directory that contains it"),
        ("sub/up", "../..", "a directory that contains it"),
        ("broken", "nothing", "does not exist"),
        ("self", "self", "symbolic links"),
        ("device", "/dev/null", "it is a device"),
    ] {
        let dir = Scratch::new();
        fs::create_dir_all(dir.join("p/sub")).unwrap();
        symlink(target, dir.join("p").join(link)).unwrap();
        let (sandbox, _state) = local();
        let error = sandbox.upload_dir_with(dir.join("p"), ".", &follow);
        let text = error.unwrap_err().chain();
        assert!(text.contains(expected) && text.contains(link), "{text}");
        let skipped = follow.clone().exclude(link.rsplit('/').next().unwrap());
        sandbox
            .upload_dir_with(dir.join("p"), ".", &skipped)
            .unwrap();
    }
}

#[test]
fn two_links_to_one_directory_are_followed() {
    let dir = Scratch::new();
    fs::create_dir_all(dir.join("p")).unwrap();
    fs::create_dir_all(dir.join("shared/sub")).unwrap();
    fs::write(dir.join("shared/sub/f"), "x").unwrap();
    for link in ["a", "b"] {
        symlink("../shared", dir.join("p").join(link)).unwrap();
    }
    let (sandbox, _state) = local();
    let follow = Pack::new().symlinks(Symlinks::Follow);
    sandbox
        .upload_dir_with(dir.join("p"), "p", &follow)
        .unwrap();
    assert_eq!(
        paths_in(&sandbox),
        ["a", "a/sub", "a/sub/f", "b", "b/sub", "b/sub/f"]
    );
}

#[test]
fn directories_among_named_contents_have_rules() {
    let dir = project();
    let (sandbox, _state) = local();
    let sources = Contents::dir(dir.join("p/src"), Pack::new().exclude("*.o"));
    let files = Files::new().add("p/code", sources).add("p/run.sh", "true");
    sandbox.upload(files, ".").unwrap();
    assert_eq!(
        paths_in(&sandbox),
        ["code", "code/a.c", "code/deep", "code/link.c@", "run.sh"]
    );
    let not_dir = Contents::dir(dir.join("p/src/a.c"), Pack::new());
    let error = sandbox.upload([("x", not_dir)], ".").unwrap_err();
    assert!(error.chain().contains("is not a directory"), "{error:#}");
}

#[test]
fn unsupported_pattern_fails_before_sending() {
    let dir = Scratch::new();
    let (sandbox, _state) = local();
    let error = sandbox.upload_dir_with(dir.path(), ".", &Pack::new().exclude("*.[ch]"));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.chain().contains("\"*.[ch]\""), "{error:#}");
}

#[test]
fn virtual_environment_arrives_whole() {
    let dir = Scratch::new();
    let mut venv = process::Command::new("python3");
    venv.args(["-m", "venv"]).arg(dir.join("p/env"));
    if !long_tests_or_skip("a virtual environment with pip") {
        venv.arg("--without-pip");
    }
    if !venv.output().is_ok_and(|out| out.status.success()) {
        assert!(std::env::var_os("NOXRUNNER_REQUIRE_PYTHON").is_none());
        println!("skipped: no python3 with venv");
        return;
    }
    let (sandbox, _state) = local();
    sandbox.upload_dir(dir.join("p"), "p").unwrap();
    assert_same_tree(&dir, &sandbox);
}

#[test]
fn checkout_of_many_files_arrives_whole() {
    const FILES: usize = 5000;
    let dir = Scratch::new();
    for n in 0..FILES {
        let parent = dir.join(format!("p/src/{}", n % 50));
        fs::create_dir_all(&parent).unwrap();
        fs::write(parent.join(format!("file {n}.rs")), n.to_string()).unwrap();
    }
    let git = |args: &[&str]| {
        let mut git = process::Command::new("git");
        let user = ["-c", "user.name=t", "-c", "user.email=t@example.com"];
        // A hook of a checkout sets variables that lead to its repository.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"GIT_") {
                git.env_remove(name);
            }
        }
        git.env("GIT_CONFIG_GLOBAL", "/dev/null");
        git.current_dir(dir.join("p")).args(user).args(args);
        git.output().is_ok_and(|out| out.status.success())
    };
    let committed = git(&["init", "-q"]) && git(&["add", "."]) && git(&["commit", "-qm", "all"]);
    assert!(committed || std::env::var_os("NOXRUNNER_REQUIRE_PROGRAMS").is_none());
    let (sandbox, _state) = local();
    sandbox.upload_dir(dir.join("p"), "p").unwrap();
    assert_same_tree(&dir, &sandbox);
}

/// Compares paths, contents, modes and links.
fn assert_same_tree(dir: &Scratch, sandbox: &Sandbox) {
    let list = "export LC_ALL=C; find p -printf '%P %m %y %l\\n' | sort; find p -type f -print0 | sort -z | xargs -0 cat | cksum";
    let here = process::Command::new("sh")
        .current_dir(dir.path())
        .args(["-c", list])
        .output();
    let here = String::from_utf8_lossy(&here.unwrap().stdout).into_owned();
    // Longer than the cap on the output of an exec.
    let job = sandbox.spawn(Command::shell(list)).unwrap();
    let there = job.wait_with_output().unwrap();
    let there = there.stdout();
    let lines = here.lines().count();
    assert!(
        here == there,
        "{lines} lines here, {} there",
        there.lines().count()
    );
}
