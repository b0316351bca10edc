"""A NoxRunner v1 server over plain directories, for tests. It isolates nothing.

It shares no code with the library, so that each can be tested against the other. Below its root, sandbox N
has N/workspace as its /workspace and N/tmp as its /tmp. Only the paths of a request are translated; commands
see the machine's files. With --fault the server breaks one rule of the protocol, next to the code that
implements the rule.

The server prints its address and exits at the end of its stdin. It needs Linux, for /proc and pidfd.
"""
import argparse, base64, contextlib, gzip, http, http.server, io, itertools, json, os, re, selectors, shutil, signal
import socket, subprocess, sys, tarfile, tempfile, threading, time, urllib.parse, uuid

MIB = 1 << 20
OUTPUT_CAP = 1_000_000
PATH = os.environ.get("PATH", os.defpath)
CREATE_FIELDS = {"ttlSeconds", "image", "cpuLimit", "memoryLimit", "ephemeralStorageLimit"}
OPTIONS = argparse.Namespace()
ONE_EXEC = threading.Lock()

def fault(name):
    return OPTIONS.fault == name

class Failure(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status

def need(condition, text):
    if not condition: raise Failure(400, text)

def is_positive(value):
    return type(value) is int and value > 0  # a bool is an int in Python, but not in JSON

# Sandboxes

class Sandbox:
    def __init__(self, number, mark, home, workspace):
        self.pod_name = f"plain-{number}"
        # In the environment of every process, so that processes are found in any session.
        self.mark = mark
        self.home, self.workspace, self.tmp = home, workspace, os.path.join(home, "tmp")
        self.ready = time.time() + OPTIONS.slow_start
        os.makedirs(self.workspace, exist_ok=True)
        os.makedirs(self.tmp, exist_ok=True)
        # Held while a command starts or files are written, so that neither happens after the end.
        self.lock, self.gone = threading.Lock(), False

    def live_for(self, ttl):
        self.ttl, self.expires = ttl, time.time() + ttl

    def expired(self):
        if fault("ttl-expires"): return False
        return time.time() >= self.expires

    def locate(self, path):
        path = "/" + os.path.normpath(os.path.join("/workspace", path)).lstrip("/")
        top, _, rest = path[1:].partition("/")
        own = {"workspace": self.workspace, "tmp": self.tmp}.get(top)
        return os.path.join(own, rest).rstrip("/") if own else path

    def locate_files(self, path):
        """Like locate, but refuses paths outside, to which a link of a command may lead."""
        real = os.path.realpath(self.locate(path))
        own = any((real + "/").startswith(top + "/") for top in (self.workspace, self.tmp))
        need(own, f"{path}: not below /workspace or /tmp")
        return real

    def end(self, kill=True, keep_files=False):
        with self.lock:
            self.gone = True
        if kill: kill_marked(self.mark)
        if not keep_files: remove(self.home)

class Store:
    def __init__(self, root):
        self.made_root = root is None or not os.path.isdir(root)
        root = root or tempfile.mkdtemp(prefix="plain-server-")
        os.makedirs(root, exist_ok=True)
        self.root = os.path.realpath(root)
        self.mark = f"NOXRUNNER_SANDBOX={uuid.uuid4()}."
        self.numbers = itertools.count(1)
        self.shared = os.path.join(self.root, "shared")
        self.made, self.kept, self.sandboxes = [self.shared], {}, {}
        self.lock, self.closed = threading.Lock(), False

    def find(self, id):
        sandbox = self.sandboxes.get(id)
        return None if sandbox is None or sandbox.expired() else sandbox

    def ensure(self, id, ttl):
        with self.lock:
            if self.closed: raise Failure(503, "the server is ending")
            sandbox, old = self.find(id), self.sandboxes.get(id)
            if fault("create-idempotent"): sandbox = None
            if sandbox is not None:
                if not fault("create-repeats-ttl"): sandbox.live_for(ttl)
                return sandbox
            sandbox = self.make(self.kept.pop(id, None))
            sandbox.live_for(ttl)
            self.sandboxes[id] = sandbox
        if old is not None: old.end()
        return sandbox

    def make(self, home):
        number = next(self.numbers)
        while home is None:
            try:
                home = os.path.join(self.root, str(number))
                os.mkdir(home)
                self.made.append(home)
            except FileExistsError:  # another server uses the same root
                home, number = None, next(self.numbers)
        workspace = os.path.join(self.shared if fault("ids-apart") else home, "workspace")
        # The final dot keeps the mark of sandbox 1 from matching that of sandbox 10.
        return Sandbox(number, f"{self.mark}{number}.", home, workspace)

    def take(self, id):
        with self.lock:
            sandbox = self.find(id)
            if sandbox is None: return None
            del self.sandboxes[id]
            # Only one rule is broken: deleted files do not come back in the next sandbox.
            if fault("ids-apart") and not self.sandboxes: remove(self.shared)
            return sandbox

    def sweep(self):
        while True:
            time.sleep(0.2)
            with self.lock:
                expired = [id for id, sandbox in self.sandboxes.items() if sandbox.expired()]
                expired = [self.sandboxes.pop(id) for id in expired]
            for sandbox in expired:
                sandbox.end()

    def close(self):
        with self.lock:
            self.closed, sandboxes = True, list(self.sandboxes.values())
        for sandbox in sandboxes:
            sandbox.end()
        kill_marked(self.mark)  # processes that a fault has spared
        for directory in [self.root] if self.made_root else self.made:
            remove(directory)

def kill_marked(mark):
    """Kills the processes with the mark in their environment. Repeated, because they may fork meanwhile."""
    for _ in range(200):
        found = False
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # The process may have ended or belong to another user.
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
                if mark.encode() in environ.read():
                    found = True
                    os.kill(int(pid), signal.SIGKILL)
        if not found: return
        time.sleep(0.01)

def remove(directory):
    for base, directories, _ in os.walk(directory):
        for path in (os.path.join(base, name) for name in directories):
            # A command may have removed its own permissions for a directory.
            with contextlib.suppress(OSError):
                if not os.path.islink(path): os.chmod(path, 0o700)
    shutil.rmtree(directory, ignore_errors=True)

# Commands

def collect(process, deadline):
    """Waits for the command and returns its two streams and whether it timed out.

    It does not wait for the end of the pipes, which a background child may keep open.
    """
    timed_out, pidfd, out, err = False, os.pidfd_open(process.pid), bytearray(), bytearray()
    pipes = {process.stdout: out, process.stderr: err}
    with selectors.DefaultSelector() as watch:
        watch.register(pidfd, selectors.EVENT_READ)
        for pipe in pipes:
            watch.register(pipe, selectors.EVENT_READ)
            os.set_blocking(pipe.fileno(), False)
        while True:
            # Polled before reading, so that no output from before the exit is missed.
            ended = process.poll() is not None
            if fault("background-holds"): ended = ended and not pipes
            if not ended and time.monotonic() >= deadline:
                timed_out = ended = True
                stop(process)
            for pipe, output in list(pipes.items()):
                try:
                    block = os.read(pipe.fileno(), MIB)  # more than a pipe can hold
                except BlockingIOError:
                    continue
                # Without a cap, memory would be the limit.
                cap = 64 * MIB if fault("exec-output-cap") else OUTPUT_CAP
                if fault("exec-long-output"): cap += 1
                output += block[: cap - len(output)]
                if not block:
                    watch.unregister(pipe)
                    pipe.close()
                    del pipes[pipe]
            if ended: break
            watch.select(deadline - time.monotonic())
    os.close(pidfd)
    for pipe in pipes:
        threading.Thread(target=drain, args=[pipe], daemon=True).start()
    return bytes(out), bytes(err), timed_out

def stop(process):
    with contextlib.suppress(ProcessLookupError):
        kill = os.kill if fault("exec-timeout-children") else os.killpg
        kill(process.pid, signal.SIGKILL)
    process.wait()

def drain(pipe):
    """Reads on, so that a background child is not stopped by a full or closed pipe."""
    os.set_blocking(pipe.fileno(), True)
    while os.read(pipe.fileno(), MIB):
        pass
    pipe.close()

def decode(output):
    if fault("exec-long-output") and len(output) > OUTPUT_CAP: raise Failure(500, "too much output")
    text = output.decode(errors="replace")
    if fault("exec-not-utf8") and text.encode() != output: raise Failure(500, "the output is not UTF-8")
    return text

def exec_answer(exit_code, stdout, stderr, started, live):
    if live: return event_answer(exit_code, stdout, stderr, started)
    answer = {"exitCode": exit_code, "stdout": decode(stdout), "stderr": decode(stderr)}
    if not fault("exec-answer"): answer["durationMs"] = int((time.monotonic() - started) * 1000)
    return json_answer(200, answer)

def event_answer(exit_code, stdout, stderr, started):
    """The extension for live output, except that the events are sent after the command has ended."""
    blocks = [(name, stream[at:at + 65536]) for name, stream in (("stdout", stdout), ("stderr", stderr))
              for at in range(0, len(stream), 65536)]
    events = [f"event: {name}\r\ndata: {base64.b64encode(block).decode()}\r\n\r\n" for name, block in blocks]
    answer = {"exitCode": exit_code, "durationMs": int((time.monotonic() - started) * 1000)}
    events += [": a comment\n\n", f"event: exit\ndata: {json.dumps(answer)}\n\n"]
    return 200, "text/event-stream", "".join(events).encode()

def find_workdir(sandbox, request):
    if fault("exec-default-workdir") and "workdir" not in request: return sandbox.tmp
    if fault("exec-workdir"): return sandbox.workspace
    workdir = request.get("workdir", "/workspace")
    need(isinstance(workdir, str), "workdir is not a string")
    if fault("exec-relative-workdir"): need(workdir.startswith("/"), f"workdir {workdir} is relative")
    path = sandbox.locate(workdir)
    need(os.path.isdir(path), f"workdir {workdir} is not a directory")
    return path

def run(sandbox, request, live):
    started = time.monotonic()
    cmd, env, timeout = request.get("cmd"), request.get("env", {}), request.get("timeoutSeconds", 30)
    need(isinstance(cmd, list) and all(isinstance(arg, str) for arg in cmd), "cmd is not a list of strings")
    need(not any("\0" in arg for arg in cmd), "cmd has a NUL")
    if fault("exec-empty-command") and not cmd: return exec_answer(0, b"", b"", started, live)
    need(cmd, "cmd is empty")
    need(isinstance(env, dict) and all(isinstance(value, str) for value in env.values()),
         "env is not an object of strings")
    if fault("exec-environment"): env = {}
    if fault("exec-bad-timeout") and timeout in (0, -1): timeout = 30
    need(is_positive(timeout), "timeoutSeconds is not a positive integer")
    timeout = min(timeout, 10**6)  # the longest time that a selector accepts
    if fault("exec-timeout"): timeout = 20
    workdir = find_workdir(sandbox, request)

    exec_mark = f"NOXRUNNER_EXEC={uuid.uuid4()}"
    marks = dict(mark.split("=") for mark in (sandbox.mark, exec_mark))
    env = {"PATH": OPTIONS.path, "HOME": sandbox.workspace, "LANG": "C.UTF-8", "TMPDIR": sandbox.tmp} | env | marks
    if fault("exec-no-expansion"):
        cmd = [re.sub(r"\$(\w+|\{\w+\})", lambda m: env.get(m[1].strip("{}"), m[0]), arg) for arg in cmd]
    if fault("exec-large-argument"): cmd = [os.fsencode(arg)[:4096].decode(errors="ignore") for arg in cmd]
    if fault("exec-arguments"): cmd = ["sh", "-c", " ".join(cmd)]
    # With --path, these are the only programs of the sandbox.
    if OPTIONS.path != PATH: cmd[0] = re.sub("^(/usr)?/bin/", "", cmd[0])
    # A name with a slash is relative to the command's workdir, not to the server's.
    program = shutil.which(os.path.join(workdir, cmd[0]) if "/" in cmd[0] else cmd[0], path=env["PATH"])
    if program is None:
        if fault("exec-not-found"): raise Failure(500, f"{cmd[0]}: not found")
        return exec_answer(127, b"", f"{cmd[0]}: not found\n".encode(errors="replace"), started, live)
    stdin = subprocess.DEVNULL
    if fault("exec-stdin"): stdin = subprocess.PIPE
    with sandbox.lock:
        if sandbox.gone: raise Failure(404, "no such sandbox")
        process = subprocess.Popen(cmd, executable=program, cwd=workdir, env=env, stdin=stdin, bufsize=0,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    out, err, timed_out = collect(process, started + timeout)
    if OPTIONS.kill_children or fault("background-child") or fault("jobs"): kill_marked(exec_mark)

    if fault("exec-streams"): out, err = out + err, b""
    code = process.returncode
    if timed_out:
        code = 124
        if fault("exec-timeout-code"): code = 1
        if fault("exec-timeout-output"): out = err = b""
    elif code < 0:
        code = 128 - code
        if fault("exec-signal"): code = 0
        if fault("exec-signal-code"): code = 1
    elif code > 0 and fault("exec-exit-code"):
        raise Failure(500, f"the command exited with {code}")
    return exec_answer(code, out, err, started, live)

# Archives

def place(dest, name):
    """The path of an entry. To be called after the earlier entries exist, because they may be links."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if fault("upload-stays-inside") and ".." in parts:
        parts = os.path.normpath("/".join(parts)).split("/")
        up = parts.count("..")
        # At most one level up, so that a test cannot overwrite files of its machine.
        return os.path.join(os.path.dirname(dest) if up else dest, *parts[up:])
    need(not name.startswith("/") and ".." not in parts, f"{name}: leads out of the destination")
    path = dest
    for part in parts[:-1]:
        path = os.path.join(path, part)
        need(not os.path.islink(path), f"{name}: goes through a symbolic link")
    return os.path.join(path, *parts[-1:])

def extract(tar, dest):
    directories = []
    for entry in tar:
        name = entry.name
        if fault("files-names"): name = re.sub(r"[^\x00-\x7f]", "_", name)
        path = place(dest, name)
        if path == dest: continue  # many archives begin with "."
        need(entry.isdir() or entry.isreg() or entry.issym() or entry.islnk(), f"{name}: unsupported file type")
        if fault("files-empty") and entry.isreg() and entry.size == 0: continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if entry.isdir():
            need(not os.path.islink(path), f"{name}: goes through a symbolic link")
            os.makedirs(path, exist_ok=True)
            directories.append((path, entry.mode & 0o777))
            continue
        if os.path.lexists(path):
            if fault("upload-replaces"): continue
            # Removed first, because it may be a link or a running program.
            os.unlink(path)
        if entry.issym():
            os.symlink(entry.linkname, path)
        elif entry.islnk():
            os.link(place(dest, entry.linkname), path, follow_symlinks=False)
        else:
            extract_file(tar.extractfile(entry), entry.mode & 0o777, path)
    # Last and innermost first, because a mode may forbid writing into the directory.
    for path, mode in reversed(directories):
        os.chmod(path, mode)
        if fault("files-empty-directories") and not os.listdir(path): os.rmdir(path)
    # tarfile takes a damaged header for the end and does not read gzip's checksum.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"): raise tarfile.ReadError("damaged header")
    while tar.fileobj.read(MIB):
        pass

def extract_file(content, mode, path):
    with open(path, "xb") as file:
        while block := content.read(MIB):
            if fault("files-round-trip"): block = block.replace(b"\0", b" ")
            if fault("files-large"): block = block[: MIB - file.tell()]
            file.write(block)
    if fault("files-modes"): mode = 0o644
    os.chmod(path, mode)

def pack(paths):
    """An archive of these files, each under its name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, name in paths:
            # A command may remove the file meanwhile.
            with contextlib.suppress(FileNotFoundError):
                add(tar, path, name)
    if fault("download-gzip"): return packed.getvalue()
    return gzip.compress(packed.getvalue(), 1)

def add(tar, path, name):
    is_link = os.path.islink(path)
    if not (is_link or os.path.isfile(path) or os.path.isdir(path)): return  # a socket, a device
    # Every hard link gets the content. By default, the second name would be a link to the first.
    tar.dereference = not is_link
    if fault("files-links") and os.path.exists(path): tar.dereference = True
    info = tar.gettarinfo(path, name)
    info.mtime = int(info.mtime)  # a fraction would need an extended header for each file
    if not info.isreg(): return tar.addfile(info)
    with open(path, "rb") as file:
        tar.addfile(info, file)

def below(top):
    start = top
    if fault("download-relative"): start = os.path.dirname(top)
    for base, directories, files in os.walk(top):
        for path in (os.path.join(base, name) for name in sorted(directories + files)):
            yield path, os.path.relpath(path, start)

# Calls: each takes the store, the id, the path from the query if any, and the body

def json_answer(status, value):
    # An error may name a path that is not UTF-8.
    return status, "application/json", json.dumps(value, ensure_ascii=False).encode(errors="replace")

def error_answer(status, text, in_json=True):
    return json_answer(status, {"error": text}) if in_json else (status, "text/plain", text.encode(errors="replace"))

def archive_answer(paths):
    content_type = "application/x-tar"
    if fault("download-type"): content_type = "application/octet-stream"
    return 200, content_type, pack(paths)

EMPTY = 200, "text/plain", b""
DELETED = 204, None, b""

def read_json(body, bad=400):
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(body.read())
    if not isinstance(value, dict): raise Failure(bad, "the body is not a JSON object")
    return value

def known(store, id):
    sandbox = store.find(id)
    if sandbox is None: raise Failure(404, "no such sandbox")
    if time.time() < sandbox.ready: raise Failure(503, "not ready yet")
    return sandbox

def create(store, id, path, body):
    spec = read_json(body, bad=500 if fault("create-bad-json") else 400)
    if fault("create-defaults"): need(spec, "ttlSeconds is missing")
    if fault("create-unknown-fields"): need(spec.keys() <= CREATE_FIELDS, "unknown field")
    ttl = spec.get("ttlSeconds", 900)
    if fault("create-bad-ttl") and ttl in (0, -1): ttl = 900
    # Within the range of a date.
    need(is_positive(ttl) and ttl < 10**10, "ttlSeconds is not a positive integer of a sensible size")
    sandbox = store.ensure(id, ttl)
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(sandbox.expires))
    answer = {"podName": sandbox.pod_name, "expiresAt": expires}
    if fault("create-answer"): del answer["podName"]
    if fault("create-expiry"): answer["expiresAt"] = "soon"
    return json_answer(200, answer)

def touch(store, id, path, body):
    if fault("touch-unknown") and store.find(id) is None: return EMPTY
    sandbox = known(store, id)
    if fault("touch-ok"): raise Failure(500, "touch is broken")
    if not fault("touch-extends"): sandbox.live_for(sandbox.ttl)
    return EMPTY

def execute(store, id, path, body):
    if (fault("exec-unknown") or OPTIONS.recreate) and store.find(id) is None: store.ensure(id, 900)
    sandbox, request = known(store, id), read_json(body)
    alone = fault("exec-concurrent") or fault("exec-parallel")
    if alone and not ONE_EXEC.acquire(blocking=fault("exec-parallel")): raise Failure(500, "another exec is running")
    try:
        return run(sandbox, request, "text/event-stream" in body.accept and not fault("exec-live"))
    finally:
        if alone: ONE_EXEC.release()

def upload(store, id, path, body):
    if fault("upload-unknown") and store.find(id) is None: return EMPTY
    sandbox = known(store, id)
    dest = sandbox.locate_files(path)
    if fault("upload-dest") and not os.path.isdir(dest): raise Failure(404, f"{path}: no such directory")
    with sandbox.lock:
        if sandbox.gone: raise Failure(404, "no such sandbox")
        try:
            os.makedirs(dest, exist_ok=True)
            with tarfile.open(fileobj=body, mode="r:*") as tar:
                extract(tar, dest)
        except Failure:
            raise
        except Exception as error:  # each kind of compression has its own
            if fault("upload-bad-archive"): return EMPTY
            raise Failure(400, f"bad archive: {error}") from error
    return EMPTY

def download(store, id, path, body):
    if fault("download-unknown") and store.find(id) is None: return archive_answer([])
    src = known(store, id).locate_files(path)
    if fault("download-missing") and not os.path.exists(src): return archive_answer([])
    if fault("download-file") and os.path.isfile(src): raise Failure(404, f"{path}: not a directory")
    if os.path.isdir(src): return archive_answer(below(src))
    if os.path.isfile(src): return archive_answer([(src, os.path.basename(os.path.normpath(path)))])
    raise Failure(404, f"{path}: no such file or directory")

def delete(store, id, path, body):
    if fault("delete-gone") and store.find(id): return DELETED
    sandbox = store.take(id)
    if sandbox is None: raise Failure(500 if fault("delete-twice") else 404, "no such sandbox")
    sandbox.end(kill=not fault("delete-ends-processes"), keep_files=fault("delete-releases"))
    if fault("delete-releases"): store.kept[id] = sandbox.home
    if fault("delete-answer"): raise Failure(500, "delete is broken")
    return DELETED

CALLS = {("PUT",): create, ("POST", "exec"): execute, ("DELETE",): delete}
MORE_CALLS = {("POST", "touch"): touch, ("POST", "files", "upload"): upload, ("GET", "files", "download"): download}

# HTTP

def session_id(segment):
    id = urllib.parse.unquote_to_bytes(segment.encode("latin-1")).decode()
    if fault("ids-reserved"): id = re.split("[/?#]", id)[0]
    need(id not in ("", ".", ".."), f"{id!r} is not an id")
    return id

def health():
    return 200, "application/json" if fault("health-text") else "text/plain", b"fine" if fault("health-ok") else b"OK"

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        # First, or the next request on this connection would start with the body.
        try:
            body = self.read_body()
        except ValueError:
            self.close_connection = True
            return error_answer(400, "the length of the body is not clear")
        path, _, query = self.path.partition("?")
        if (self.command, path) == ("GET", "/healthz"): return health()
        if OPTIONS.token and self.headers["Authorization"] != f"Bearer {OPTIONS.token}":
            return error_answer(401, "send the token: Authorization: Bearer TOKEN")
        calls = CALLS if OPTIONS.minimal else CALLS | MORE_CALLS
        # Split before decoding, because an id may contain slashes.
        match path.split("/"):
            case ["", "v1", "sandboxes", segment, *rest] if (self.command, *rest) in calls:
                return self.answer_to(calls[self.command, *rest], segment, query, body)
        if fault("unknown-route"): return json_answer(200, {})
        return error_answer(404, f"there is no {self.command} {path}")

    def answer_to(self, call, segment, query, body):
        query = urllib.parse.parse_qs(query, errors="surrogateescape")
        path = query.get("dest" if call is upload else "src", ["/workspace"])[0]
        in_json = call in (create, execute)
        if fault("error-json"): in_json = False
        try:
            return call(self.server.store, session_id(segment), path, body)
        except Failure as failure:
            return error_answer(failure.status, str(failure), in_json)
        except ValueError as error:  # not UTF-8, a NUL in a path or an argument, "=" in a variable's name
            return error_answer(400, str(error), in_json)
        except Exception as error:
            return error_answer(500, repr(error), in_json)

    def read_body(self):
        body = tempfile.SpooledTemporaryFile(MIB)
        body.accept = self.headers.get("Accept", "")
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline(1000).partition(b";")[0], 16):
                self.copy(size, body)
                self.rfile.readline(1000)
            while self.rfile.readline(65537).strip():
                pass  # trailers
        else:
            # A touch often has no body and no length.
            self.copy(int(self.headers.get("Content-Length", 0)), body)
        body.seek(0)
        return body

    def copy(self, size, body):
        if size < 0: raise ValueError("negative size")
        while size:
            block = self.rfile.read(min(size, MIB))
            if not block: raise ConnectionError("the body was cut")
            body.write(block)
            size -= len(block)

    def handle_call(self):
        status, content_type, body = self.answer()
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"]
        if content_type: lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        if self.close_connection: lines += ["Connection: close"]
        # Corked, the end of the connection arrives with the answer. A moment later, a fast client would already
        # have sent its next request.
        if OPTIONS.close: self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        # In one write, so that a small response is one packet.
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)
        if OPTIONS.close:
            self.connection.shutdown(socket.SHUT_WR)
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_OPTIONS = handle_call

    def log_message(self, format, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # with the default of 5, some of many connections would wait for a second

    def handle_error(self, request, client_address):
        # Clients may disconnect at any time.
        if not isinstance(sys.exc_info()[1], ConnectionError): super().handle_error(request, client_address)

def read_options():
    with open(__file__) as source:
        faults = sorted(set(re.findall(r'fault\("([a-z0-9-]+)"\)', source.read())))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="directory of the sandboxes; defaults to a new temporary directory")
    parser.add_argument("--path", default=PATH, help="the PATH of commands")
    parser.add_argument("--fault", choices=faults, metavar="NAME", help=f"break a rule: {', '.join(faults)}")
    parser.add_argument("--kill-children", action="store_true", help="the end of an exec ends its background processes")
    parser.add_argument("--token", help="the bearer token that all calls but health need")
    parser.add_argument("--minimal", action="store_true", help="without touch, upload and download")
    parser.add_argument("--slow-start", type=float, default=0, help="seconds for which a new sandbox answers 503")
    parser.add_argument("--recreate", action="store_true", help="exec creates a missing sandbox")
    parser.add_argument("--close", action="store_true", help="close after each response without announcing it")
    parser.parse_args(namespace=OPTIONS)

def main():
    read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    store = Store(OPTIONS.root)
    try:
        server = Server(("127.0.0.1", 0), Handler)
        server.store = store
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=store.sweep, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        while os.read(0, 65536):
            pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        store.close()

if __name__ == "__main__":
    main()
