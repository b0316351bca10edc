//! Standard input that the local backend streams.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use noxrunner::{Client, Command, ErrorKind, Language, Stdin};

use super::{Check, create};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a command need not read a stdin that never ends", unread),
    ("stdin is streamed while the command runs", streamed),
    ("a command may stop reading stdin", partly_read),
    ("source code and stdin together", with_code),
    ("stdin that cannot be read ends the command", unreadable),
    ("a reader is consumed once", consumed_once),
];

const LONG: Duration = Duration::from_secs(300);

fn unread(client: &Client) {
    let sandbox = create(client, "stdin-unread");
    let (reader, writer) = UnixStream::pair().unwrap();
    let command = Command::new("true").stdin(Stdin::reader(reader));
    assert!(sandbox.exec(command.timeout(LONG)).unwrap().success());
    drop(writer);
}

fn streamed(client: &Client) {
    let sandbox = create(client, "stdin-streamed");
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.write_all(b"0\n").unwrap();
    let command = Command::new("cat")
        .stdin(Stdin::reader(reader))
        .timeout(LONG);
    let mut seen = String::new();
    let out = sandbox.exec_live(command, |chunk| {
        // Each line is written after the one before it came back.
        seen += &chunk.text();
        match seen.lines().count() {
            // In one write, so that no chunk is a part of a line.
            count @ 1..=3 => writer.write_all(format!("{count}\n").as_bytes()),
            _ => writer.shutdown(Shutdown::Write),
        }
    });
    assert!(out.unwrap().success());
    assert_eq!(seen, "0\n1\n2\n3\n");
}

fn partly_read(client: &Client) {
    let sandbox = create(client, "stdin-partly");
    let command = Command::from(["head", "-c", "3"]);
    let out = sandbox.exec(command.stdin(vec![b'x'; 10_000_000]).timeout(LONG));
    assert_eq!(out.unwrap().stdout(), "xxx");
    let endless = Stdin::reader(io::repeat(b'y'));
    let out = sandbox.exec(Command::from(["head", "-c", "300000"]).stdin(endless));
    assert_eq!(out.unwrap().stdout().len(), 300_000);
}

fn with_code(client: &Client) {
    let sandbox = create(client, "stdin-code");
    let (reader, mut writer) = UnixStream::pair().unwrap();
    let command = Command::code(Language::SH, "echo ready; read line; echo \"got $line\"");
    let command = command.stdin(Stdin::reader(reader)).timeout(LONG);
    let mut seen = String::new();
    let out = sandbox.exec_live(command, |chunk| {
        seen += &chunk.text();
        match &*seen {
            "ready\n" => writer.write_all(b"it\n"),
            _ => Ok(()),
        }
    });
    assert!(out.unwrap().success());
    assert_eq!(seen, "ready\ngot it\n");
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

fn unreadable(client: &Client) {
    let sandbox = create(client, "stdin-broken");
    let stdin = Stdin::reader((&b"one\n"[..]).chain(Broken));
    let command = Command::shell("cat; touch finished")
        .stdin(stdin)
        .timeout(LONG);
    let error = sandbox.exec(command).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = format!("{error:#}");
    assert!(
        text.ends_with("cannot read stdin: the disk is gone"),
        "{text}"
    );
    // It did not see the end of the input.
    assert!(!sandbox.exists("finished").unwrap());
}

fn consumed_once(client: &Client) {
    let sandbox = create(client, "stdin-once");
    let command = Command::new("cat").stdin(Stdin::reader(&b"x"[..]));
    assert_eq!(
        sandbox
            .exec(command.clone().timeout(LONG))
            .unwrap()
            .stdout(),
        "x"
    );
    let error = sandbox.exec(command).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:#}");
}
