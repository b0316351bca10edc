//! Pseudo-terminals of a sandbox.

use std::time::Duration;

use noxrunner::Command;

use super::{client, create, shell};

#[test]
fn programs_can_create_terminals() {
    let sandbox = create(&client(), "terminals");
    let in_pty = "import pty,os,sys\n\
        child, fd = pty.fork()\n\
        if child == 0: os.execvp('sh', ['sh', '-c', 'tty; test -t 0 && echo terminal; echo in > /dev/tty'])\n\
        text = b''\n\
        try:\n\
        \x20 while True: text += os.read(fd, 99) or sys.exit()\n\
        except OSError: pass\n\
        print(text.decode())";
    let out = sandbox.run(["python3", "-c", in_pty]).unwrap();
    let text = out.stdout().replace('\r', "");
    assert_eq!(text, "/dev/pts/0\nterminal\nin\n\n");
    // The command itself has no terminal.
    let own = shell(
        &sandbox,
        "tty; echo x 2>/dev/null > /dev/tty && echo written; ls /dev/pts",
    );
    assert!(own.starts_with("not a tty\nptmx\n"), "{own}");
}

#[test]
fn terminals_are_private_and_limited() {
    let client = client();
    let (one, other) = (create(&client, "one"), create(&client, "other"));
    let open = "import os,time\n\
        count = 0\n\
        try:\n\
        \x20 while count < 200: os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY); count += 1\n\
        except OSError as e: print(count, e.errno)";
    let out = one.run(Command::from(["python3", "-c", open]).timeout(Duration::from_secs(60)));
    assert_eq!(out.unwrap().stdout(), format!("64 {}\n", libc::ENOSPC));
    let hold = "import os,time\nm,s=os.openpty()\nopen('/tmp/up','w').close()\ntime.sleep(60)";
    one.run(Command::shell("setsid python3 -c \"$CODE\" >/dev/null 2>&1 & until [ -e /tmp/up ]; do sleep 0.05; done").env("CODE", hold))
        .unwrap();
    assert_eq!(shell(&one, "ls /dev/pts"), "0\nptmx\n");
    assert_eq!(shell(&other, "ls /dev/pts"), "ptmx\n");
}
