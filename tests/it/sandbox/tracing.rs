//! Debuggers and tracers in a sandbox.

use std::time::Duration;

use noxrunner::Command;

use super::{client, create};

/// Calls ptrace by name.
const PTRACE: &str = r"
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
TRACEME, CONT, ATTACH, SEIZE = 0, 7, 16, 0x4206
";

#[test]
fn process_can_trace_and_read_its_children() {
    let sandbox = create(&client(), "tracing");
    let code = r"
secret = ctypes.create_string_buffer(b'secret')
child = os.fork()
if child == 0:
    libc.ptrace(TRACEME, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(7)
_, status = os.waitpid(child, 0)
print('stopped', os.WIFSTOPPED(status))
class Vector(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
copy = ctypes.create_string_buffer(6)
ours, theirs = Vector(ctypes.addressof(copy), 6), Vector(ctypes.addressof(secret), 6)
libc.process_vm_readv(child, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
print('read', copy.raw.decode())
libc.ptrace(CONT, child, 0, 0)
print('exited', os.WEXITSTATUS(os.waitpid(child, 0)[1]))
";
    let out = sandbox.run(["python3", "-c", &format!("{PTRACE}{code}")]);
    assert_eq!(
        out.unwrap().stdout(),
        "stopped True\nread secret\nexited 7\n"
    );
}

/// The parent of a command is its supervisor, which has no use for the command's stops.
#[test]
fn command_that_asks_for_a_tracer_runs_to_its_end() {
    let sandbox = create(&client(), "traced");
    for (action, code) in [
        (
            "os.kill(os.getpid(), signal.SIGCONT); print('on', flush=True); os._exit(3)",
            3,
        ),
        (
            "print('on', flush=True); os.kill(os.getpid(), signal.SIGTERM)",
            128 + 15,
        ),
        (
            "print('on', flush=True); os.execvp('sh', ['sh', '-c', 'exit 4'])",
            4,
        ),
    ] {
        let code_text = format!("{PTRACE}libc.ptrace(TRACEME, 0, 0, 0)\n{action}");
        let command = Command::from(["python3", "-c", &code_text]).timeout(Duration::from_secs(60));
        let out = sandbox.exec(command).unwrap();
        assert_eq!(
            (out.exit_code(), &*out.stdout()),
            (code, "on\n"),
            "{action}"
        );
        assert!(!out.timed_out());
    }
}
