//! The command in a pseudo-terminal.
#![allow(unsafe_code, reason = "std has no terminals")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::{User, signal};
use crate::support::processes::{sleeps, unique_sleep, wait_for};
use crate::support::scripted::Scripted;

struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn open(user: &User, args: &[&str]) -> Terminal {
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: both are numbers to write to; the rest may be null.
        let opened = unsafe {
            libc::openpty(
                &raw mut ours,
                &raw mut theirs,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(opened, 0);
        // SAFETY: openpty has just made both, and nobody else owns them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let mut command = user.command(args);
        command
            .env("TERM", "xterm")
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs.try_clone().unwrap()))
            .stderr(Stdio::from(theirs));
        // SAFETY: two system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(ours);
        let mut output = keyboard.try_clone().unwrap();
        assert!(output.as_raw_fd() >= 0);
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..got].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            child,
            keyboard,
            screen,
            seen: String::new(),
        }
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a text after the previous one.
    fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no {text:?} in {:?}", self.seen),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn shell_edits_lines_and_shows_the_workdir() {
    let user = User::new();
    user.local(&["create", "a"]);
    let mut terminal = Terminal::open(&user, &["--local", "shell", "a"]);
    terminal.wait_for("a:/workspace$ ");
    // The left arrow key, then a letter.
    terminal.type_in("echo ht\x1b[Di\r");
    terminal.wait_for("\nhit");
    terminal.wait_for("a:/workspace$ ");
    terminal.type_in("cd /tmp; exi\tt 3\x15cd /tmp\r");
    terminal.wait_for("a:/tmp$ ");
    terminal.type_in("(exit 3)\r");
    terminal.wait_for("a:/tmp [3]$ ");
    // Ctrl-C discards the line.
    terminal.type_in("echo dropped\x03");
    terminal.wait_for("a:/tmp [3]$ ");
    terminal.type_in("echo 'open\r");
    terminal.type_in("quote'\r");
    terminal.wait_for("\nopen\r\nquote");
    terminal.wait_for("a:/tmp$ ");
    // Ctrl-C ends a running command.
    let sleep = unique_sleep(343_002);
    terminal.type_in(&format!("sleep {sleep}\r"));
    wait_for("the command runs", || sleeps(&sleep));
    terminal.type_in("\x03");
    terminal.wait_for("$ ");
    // The arrow key recalls the previous line.
    terminal.type_in("\x1b[A\x15");
    terminal.wait_for(&format!("sleep {sleep}"));
    terminal.type_in("echo last\r");
    terminal.wait_for("\nlast");
    terminal.wait_for("$ ");
    terminal.type_in("\x04");
    assert!(terminal.child.wait().unwrap().success());
    let history = user.path(".local/state/noxrunner/history");
    let history = std::fs::read_to_string(history).unwrap();
    assert!(history.contains("echo last"), "{history}");
}

#[test]
fn shell_ends_on_sigterm_at_the_prompt() {
    let user = User::new();
    user.local(&["create", "a"]);
    let mut terminal = Terminal::open(&user, &["--local", "shell", "a"]);
    terminal.wait_for("a:/workspace$ ");
    terminal.type_in("echo one-$((1 + 1))\r");
    terminal.wait_for("one-2");
    terminal.wait_for("a:/workspace$ ");
    signal(&terminal.child, "TERM");
    assert!(!terminal.child.wait().unwrap().success());
}

#[test]
fn notices_are_coloured_in_a_terminal() {
    let user = User::new();
    let mut terminal = Terminal::open(&user, &["--local", "health"]);
    terminal.wait_for("\x1b[32m✓ Manager is healthy\x1b[0m");
    assert!(terminal.child.wait().unwrap().success());
}

#[test]
fn slow_transfer_shows_progress() {
    let user = User::new();
    user.local(&["create", "a"]);
    let mut state = 1_u32;
    let noise: Vec<u8> = (0..60_000_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    std::fs::write(user.path("noise"), noise).unwrap();
    let mut terminal = Terminal::open(&user, &["--local", "upload", "a", "noise"]);
    terminal.wait_for("MiB of 57");
    terminal.wait_for(" left");
    terminal.wait_for("Uploaded 1 file(s)");
    assert!(terminal.child.wait().unwrap().success());
    // Without a terminal, no progress is shown.
    let quiet = user.local(&["upload", "a", "noise"]);
    assert!(!quiet.stderr.contains("left"), "{}", quiet.stderr);
}

#[test]
fn upload_is_retried_under_a_progress_bar() {
    let server = Scripted::sequence(vec![(503, r#"{"error": "starting"}"#), (200, "")]);
    let user = User::new();
    std::fs::write(user.path("f"), "x").unwrap();
    let args = ["--base-url", &server.url(), "upload", "a", "f"];
    let mut terminal = Terminal::open(&user, &args);
    terminal.wait_for("Uploaded 1 file(s)");
    assert!(terminal.child.wait().unwrap().success());
    assert_eq!(server.requests().len(), 2);
}
