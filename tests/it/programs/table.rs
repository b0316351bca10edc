//! The programs, and what each must do in a sandbox.

pub(super) struct Program {
    pub(super) name: &'static str,
    /// A shell line that succeeds on the host if the program is installed.
    pub(super) installed: &'static str,
    /// CI installs the program.
    pub(super) in_ci: bool,
    pub(super) script: &'static str,
    /// A part of the expected output.
    pub(super) prints: &'static str,
}

const fn row(
    name: &'static str,
    installed: &'static str,
    script: &'static str,
    prints: &'static str,
) -> Program {
    Program {
        name,
        installed,
        in_ci: true,
        script,
        prints,
    }
}

const fn not_in_ci(program: Program) -> Program {
    Program {
        in_ci: false,
        ..program
    }
}

pub(super) const PROGRAMS: &[Program] = &[
    row(
        "java",
        "command -v javac",
        "cat > Hello.java <<'END'
import java.util.*;
class Hello {
    public static void main(String[] args) {
        List<byte[]> live = new ArrayList<>();
        for (int i = 0; i < 100; i++) live.add(new byte[1 << 20]);
        System.out.println(\"live \" + live.size());
    }
}
END
javac -version && javac Hello.java && java Hello",
        "live 100",
    ),
    row(
        "keytool",
        "command -v keytool && test -e /etc/ssl/certs/java/cacerts",
        "keytool -list -cacerts -storepass changeit",
        "trustedCertEntry",
    ),
    not_in_ci(row("maven", "command -v mvn", "mvn -version", "Apache Maven")),
    row("os-release", "test -e /etc/os-release", ". /etc/os-release && echo \"$ID is known\"", "is known"),
    row(
        "lscpu",
        "command -v lscpu && test -d /sys/devices/system/cpu/cpu0",
        "lscpu && nproc",
        "Thread(s) per core",
    ),
    row(
        "gcc",
        "command -v gcc && command -v make",
        "printf '#include <stdio.h>\\nint main(void) { puts(\"hello\"); }' > hello.c
printf 'hello: hello.c\\n\\tgcc -O2 -o hello hello.c\\n' > Makefile && make -s && ./hello",
        "hello",
    ),
    row(
        "g++",
        "command -v g++",
        "printf '#include <iostream>\\n#include <thread>\\nint main() { std::thread([] { std::cout << \"hello\"; }).join(); }' > hello.cc
g++ -o hello hello.cc -pthread && ./hello",
        "hello",
    ),
    row(
        "address sanitizer",
        "echo 'int main;' | gcc -fsanitize=address -xc - -o /dev/null",
        "printf '#include <stdlib.h>\\nint main(int n, char **a) { char *p = malloc(8); free(p); return n > 1 ? p[0] : 0; }' > a.c
gcc -g -fsanitize=address a.c -o a && ./a && ./a x; echo \"exit $?\"",
        "heap-use-after-free",
    ),
    row(
        "leak sanitizer",
        "echo 'int main;' | gcc -fsanitize=leak -xc - -o /dev/null",
        "printf '#include <stdlib.h>\\nvoid *volatile p; int main(void) { p = malloc(77); p = 0; }' > l.c
gcc -g -fsanitize=leak l.c -o l; ./l; echo \"exit $?\"",
        "77 byte(s) leaked",
    ),
    // Its runtime does not start on every kernel.
    not_in_ci(row(
        "thread sanitizer",
        "echo 'int main(void) { return 0; }' | gcc -fsanitize=thread -xc - -o /tmp/nx-tsan.$$ && /tmp/nx-tsan.$$; code=$?; rm -f /tmp/nx-tsan.$$; exit $code",
        "printf '#include <pthread.h>\\nint n; void *f(void *p) { n++; return 0; } int main(void) { pthread_t t; pthread_create(&t, 0, f, 0); n++; pthread_join(t, 0); }' > t.c
gcc -g -fsanitize=thread t.c -o t; ./t; echo \"exit $?\"",
        "data race",
    )),
    row(
        "python threads",
        "command -v python3",
        "python3 - <<'END'
import threading
gate = threading.Event()
threads = [threading.Thread(target=gate.wait) for _ in range(300)]
for thread in threads: thread.start()
gate.set()
for thread in threads: thread.join()
print(len(threads), 'threads')
END",
        "300 threads",
    ),
    row(
        "python multiprocessing",
        "command -v python3",
        "python3 - <<'END'
import multiprocessing
with multiprocessing.Pool(4) as pool: print(sum(pool.map(abs, range(100))))
END",
        "4950",
    ),
    row(
        "python pty",
        "command -v python3",
        "python3 -c \"import pty; pty.spawn(['sh', '-c', 'test -t 1 && echo terminal'])\"",
        "terminal",
    ),
    row(
        "python venv and pip",
        "python3 -c 'import venv, ensurepip'",
        "python3 - <<'END'
import zipfile
with zipfile.ZipFile('nx_wheel-1.0-py3-none-any.whl', 'w') as wheel:
    info = 'nx_wheel-1.0.dist-info/'
    wheel.writestr('nx_wheel.py', 'print(\"from the wheel\")')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: nx-wheel\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
END
python3 -m venv env && env/bin/pip install -q --no-index ./*.whl && env/bin/python -m nx_wheel",
        "from the wheel",
    ),
    row(
        "python numpy",
        "python3 -c 'import numpy'",
        "python3 -c 'import numpy; a = numpy.ones((500, 500)); print(int((a @ a).sum()))'",
        "125000000",
    ),
    row(
        "pytest",
        "python3 -m pytest --version",
        "echo 'def test_it(tmp_path): assert tmp_path.exists()' > test_it.py && python3 -m pytest -q",
        "1 passed",
    ),
    row(
        "node",
        "command -v node",
        "cat > workers.js <<'END'
const { Worker } = require('worker_threads');
let sum = 0, left = 20;
for (let n = 0; n < 20; n++) {
  const worker = new Worker('require(\"worker_threads\").parentPort.postMessage(2)', { eval: true });
  worker.on('message', value => { sum += value; });
  worker.on('exit', () => { if (--left === 0) console.log('sum', sum); });
}
END
node workers.js",
        "sum 40",
    ),
    not_in_ci(row(
        "npm",
        "command -v npm",
        "mkdir dep && (cd dep && npm init -y >/dev/null) && npm init -y >/dev/null
npm install --offline --no-audit --no-fund ./dep && ls node_modules",
        "dep",
    )),
    row(
        "go race detector",
        "command -v go && command -v gcc",
        "export GOCACHE=/tmp/go-cache GOFLAGS=-p=2 GOTOOLCHAIN=local
printf 'module x\\n' > go.mod
printf 'package main\\nfunc main() { n := 0; c := make(chan bool); go func() { n++; c <- true }(); n++; <-c; println(n) }' > main.go
go build -race -o race . && ./race 2>&1; echo \"exit $?\"",
        "DATA RACE",
    ),
    row("perl", "command -v perl", "perl -MPOSIX -e 'print POSIX::floor(42.5), \"\\n\"'", "42"),
    row("ruby", "command -v ruby", "ruby -rjson -e 'puts JSON.generate([Thread.new { 42 }.value])'", "[42]"),
    row(
        "php",
        "php -r 'exit(extension_loaded(\"dom\") ? 0 : 1);'",
        "php -r '$d = new DOMDocument; $d->loadXML(\"<a>42</a>\"); echo json_encode([$d->textContent, mb_internal_encoding() ?? 0]);' || php -r '$d = new DOMDocument; $d->loadXML(\"<a>42</a>\"); echo json_encode([$d->textContent]);'",
        "42",
    ),
    row("lua", "command -v lua5.4", "lua5.4 -e 'print(6 * 7)'", "42"),
    row("sqlite3", "command -v sqlite3", "sqlite3 x.db 'create table t (n); insert into t values (42); select n from t;'", "42"),
    row(
        "git",
        "test -x /usr/bin/git",
        "git init -q . && git config user.email a@b && git config user.name n && echo x > f && git add f && git commit -q -m one && git log --oneline",
        "one",
    ),
    row("strace", "command -v strace", "strace -f -o trace sh -c 'ls /' && grep -c execve trace && echo traced", "traced"),
    row(
        "gdb",
        "command -v gdb && command -v gcc",
        "printf 'int f(int n) { return n; } int main(void) { return f(7); }' > g.c
gcc -g g.c -o g && gdb -batch -ex 'break f' -ex run -ex 'print n' -ex continue ./g",
        "$1 = 7",
    ),
    row(
        "valgrind",
        "command -v valgrind && command -v gcc",
        "printf '#include <stdlib.h>\\nint main(void) { char *p = malloc(4); return p[4]; }' > v.c
gcc -g v.c -o v && valgrind ./v; echo \"exit $?\"",
        "Invalid read",
    ),
    row("script", "command -v script", "script -qc 'test -t 0 && echo terminal' /dev/null", "terminal"),
    row(
        "expect",
        "command -v expect",
        "expect -c 'spawn sh -c {read answer; echo got-$answer}; send \"yes\\r\"; expect got-yes; wait'",
        "got-yes",
    ),
    row(
        "tmux",
        "command -v tmux",
        "tmux -f /dev/null new-session -d -s t 'echo in-tmux > out; tmux wait-for -S end; sleep 60' && tmux wait-for end && cat out && tmux kill-server",
        "in-tmux",
    ),
    row(
        "free pascal",
        "command -v fpc",
        "echo \"begin writeln('hello') end.\" > hello.pas && fpc -v0 hello.pas && ./hello",
        "hello",
    ),
];
