//! Workers: each uses one sandbox after the other through a proxy.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use noxrunner::{Client, Command, Output, Result};

use crate::expiring::Expiring;
use crate::ledger::{Call, EXEC_TIMEOUT, JOB_WAIT, TIMEOUT};
use crate::proxy::FaultProxy;
use crate::random::Random;
use crate::run::{self, Soak};
use crate::tracked::{Fate, LATE, LOG, NONCE, TrackedSandbox, is_unexpected};

/// The largest file that is written. All files of a sandbox must fit into its memory.
const MAX_FILE_BITS: u64 = 20;

pub(crate) struct Worker<'a> {
    soak: &'a Soak<'a>,
    proxy: &'a FaultProxy,
    client: Client,
    direct: Client,
    random: Random,
    name: String,
    /// Number of the next sandbox, line or file.
    next: u64,
    expiring: Expiring<'a>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        soak: &'a Soak<'a>,
        proxy: &'a FaultProxy,
        number: usize,
        random: Random,
    ) -> Worker<'a> {
        Worker {
            soak,
            proxy,
            client: run::client(&proxy.url()),
            direct: soak.server.client(),
            random,
            name: format!("soak-{}-{number}", std::process::id()),
            next: 0,
            expiring: Expiring::new(soak),
        }
    }

    /// Works until the end of the soak.
    pub(crate) fn work(mut self) {
        while self.soak.sleep(self.random.millis(0..300)) {
            self.expiring.check_due();
            let id = self.new_name("sandbox");
            let Some(mut tracked) = self.create(&id, 0, Vec::new()) else {
                continue;
            };
            self.use_sandbox(&mut tracked);
            if tracked.is_gone && self.random.percent(50) {
                self.use_again(tracked);
            }
        }
        self.expiring.check_all();
    }

    /// Returns a name that nothing else has.
    fn new_name(&mut self, what: &str) -> String {
        self.next += 1;
        format!("{}-{what}-{}", self.name, self.next)
    }

    /// Creates a sandbox, and prepares it without faults.
    fn create(
        &mut self,
        id: &str,
        generation: u32,
        lines: Vec<(String, Fate)>,
    ) -> Option<TrackedSandbox> {
        let soak = self.soak;
        let created = Instant::now();
        let sandbox = soak.ledger.call(Call::Create, id, || {
            self.client.create(id, soak.backend.spec())
        });
        let last_put = Instant::now();
        let Ok(sandbox) = sandbox else {
            self.leave(id, self.renewable_until());
            return None;
        };
        let mut tracked = TrackedSandbox {
            id: id.to_owned(),
            sandbox,
            direct: self.direct.sandbox(id).unwrap(),
            nonce: format!("{id}-{generation}"),
            key: format!("{id} #{generation}"),
            created,
            renewed: created,
            last_put,
            renewable_until: last_put,
            is_deleted: false,
            is_gone: false,
            lines,
            files: Vec::new(),
        };
        let marker = soak.marker();
        let prepare = format!(
            "sleep {marker} </dev/null >/dev/null 2>&1 & : > {LOG} && echo {} > {NONCE}",
            tracked.nonce
        );
        let _running = soak.server.running();
        match tracked.direct.run(Command::shell(prepare)) {
            Ok(_) => soak.losses.expose(&tracked.key, &marker),
            Err(e) => {
                tracked.note_error(soak, "prepare", &e);
                self.leave(id, last_put);
                return None;
            }
        }
        Some(tracked)
    }

    /// Leaves a sandbox to its TTL, which a call may renew until this time.
    fn leave(&mut self, id: &str, renewable_until: Instant) {
        let renewed = renewable_until.max(Instant::now());
        let gone_by = renewed + self.soak.backend.ttl() + LATE;
        self.expiring.add(id, gone_by);
    }

    /// Returns the time until which a call that has just failed may renew a TTL.
    fn renewable_until(&self) -> Instant {
        Instant::now() + self.soak.backend.unacknowledged()
    }

    /// Makes calls until the sandbox is gone or has served long enough, and checks what it contains.
    fn use_sandbox(&mut self, tracked: &mut TrackedSandbox) {
        let calls = 10 + self.random.below(40);
        for _ in 0..calls {
            if !self.soak.sleep(self.random.millis(0..100)) {
                break;
            }
            if tracked.renewed.elapsed() > self.soak.backend.ttl() / 3 {
                self.touch(tracked);
            }
            self.call(tracked);
            if tracked.is_gone {
                break;
            }
        }
        if !tracked.is_gone {
            tracked.verify(self.soak);
        }
        if tracked.is_gone {
            self.soak.ledger.count("sandboxes lost");
            self.check_stays_gone(tracked);
            self.leave(&tracked.id, tracked.renewable_until);
        } else if self.random.percent(70) {
            self.delete(tracked);
        } else {
            self.leave(&tracked.id, tracked.renewable_until);
        }
        self.soak.losses.forget(&tracked.key);
    }

    /// Creates a sandbox that is gone again. No command may run in it a second time.
    fn use_again(&mut self, tracked: TrackedSandbox) {
        let lines = tracked.lines.into_iter().map(|(line, fate)| match fate {
            Fate::Ran | Fate::NotRun => (line, Fate::NotRun),
            Fate::Unknown => (line, Fate::Unknown),
        });
        let lines = lines.collect();
        if let Some(mut again) = self.create(&tracked.id, 1, lines) {
            self.use_sandbox(&mut again);
        }
    }

    fn call(&mut self, tracked: &mut TrackedSandbox) {
        match self.random.below(100) {
            0..30 => self.exec(tracked, Call::Exec, ""),
            30..35 => self.exec(tracked, Call::Exec, "sleep 1; "),
            35..42 => self.exec(tracked, Call::ExecLive, "echo starts >&2; sleep 0.2; "),
            42..49 => self.exec_process(tracked),
            49..50 => self.run_process(),
            50..68 => self.write(tracked),
            68..83 => self.read(tracked),
            83..88 => self.upload_dir(tracked),
            88..93 => self.job(tracked),
            93..97 => self.touch(tracked),
            _ => self.put_again(tracked),
        }
    }

    /// Notes an error. One that only damaged bytes explain breaks a promise if none were damaged.
    fn note<T>(&self, tracked: &mut TrackedSandbox, call: Call, result: &Result<T>) {
        let Err(e) = result else { return };
        tracked.note_error(self.soak, &format!("{call:?}"), e);
        if !tracked.is_gone
            && is_unexpected(e)
            && self.proxy.is_faithful()
            && !tracked.may_be_gone(self.soak)
        {
            let text = format!("{call:?}: unexpected {}: {e:#}", e.kind());
            self.soak.ledger.broken(&tracked.key, &text);
        }
    }

    fn exec(&mut self, tracked: &mut TrackedSandbox, call: Call, before: &str) {
        let line = self.new_name("line");
        let script = format!("{before}echo {line} >> {LOG}; cat {NONCE}");
        let command = Command::shell(script).timeout(EXEC_TIMEOUT);
        let sandbox = tracked.sandbox.clone();
        let result = self.soak.ledger.call(call, &tracked.key, || match call {
            Call::ExecLive => sandbox.exec_live(command, |_| Ok(())),
            _ => sandbox.exec(command),
        });
        let fate = match &result {
            Ok(out) if out.success() => Fate::Ran,
            Ok(_) => Fate::Unknown,
            Err(e) => Fate::of_error(e),
        };
        self.note(tracked, call, &result);
        if let Ok(out) = &result {
            self.check_output(tracked, call, out);
        }
        tracked.lines.push((line, fate));
    }

    fn check_output(&self, tracked: &mut TrackedSandbox, call: Call, out: &Output) {
        // Damaged text may still be text.
        let is_right = out.stdout() == format!("{}\n", tracked.nonce) || !self.proxy.is_faithful();
        if out.success() && is_right {
            return;
        }
        if tracked.may_be_replaced(self.soak) {
            tracked.is_gone = true;
        } else if out.success() || !tracked.may_be_gone(self.soak) {
            let text = format!("{call:?} wrote {out:?}");
            self.soak.ledger.broken(&tracked.key, &text);
        }
    }

    /// Returns a `noxrc` that uses the proxy.
    fn noxrc(&self) -> Process {
        let home = self.soak.client_home();
        let mut command = Process::new(env!("CARGO_BIN_EXE_noxrc"));
        command
            .args(["--base-url", &self.proxy.url()])
            .args(["--timeout", &TIMEOUT.as_secs().to_string()])
            .env_clear()
            .env("HOME", &home)
            .env("TMPDIR", &home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Runs a command by `noxrc`, which is often killed.
    fn exec_process(&mut self, tracked: &mut TrackedSandbox) {
        let line = self.new_name("line");
        let started = Instant::now();
        let mut child = self
            .noxrc()
            .args(["exec", "--timeout-seconds"])
            .args([&EXEC_TIMEOUT.as_secs().to_string(), &tracked.id])
            .args(["sh", "-c", &format!("echo {line} >> {LOG}")])
            .spawn()
            .unwrap();
        if self.random.percent(60) {
            self.kill_soon(&mut child, 150);
        }
        let code = child.wait().unwrap().code();
        let outcome = code.map_or("killed".to_owned(), |code| format!("code {code}"));
        let (id, took) = (&tracked.key, started.elapsed());
        self.soak
            .ledger
            .ended(Call::ExecProcess, id, took, outcome, "");
        let fate = match code {
            Some(0) => Fate::Ran,
            _ => Fate::Unknown,
        };
        tracked.lines.push((line, fate));
    }

    /// Kills a `noxrc` that has a sandbox of its own, which is then left to its TTL.
    fn run_process(&mut self) {
        let mut child = self
            .noxrc()
            .args([
                "run",
                "--ttl",
                &self.soak.backend.ttl().as_secs().to_string(),
            ])
            .args(["sleep", &self.soak.marker()])
            .spawn()
            .unwrap();
        self.kill_soon(&mut child, 1000);
        child.wait().unwrap();
    }

    fn kill_soon(&mut self, child: &mut Child, millis: u64) {
        thread::sleep(self.random.millis(0..millis));
        // It may have ended.
        let _ = child.kill();
        self.soak.ledger.count("killed: client");
    }

    fn write(&mut self, tracked: &mut TrackedSandbox) {
        let bits = self.random.below(MAX_FILE_BITS + 1);
        let length = self.random.below(1 << bits);
        let content = Arc::new(self.random.bytes(length));
        let path = self.new_name("file");
        let sandbox = tracked.sandbox.clone();
        let result = self.soak.ledger.call(Call::Write, &tracked.key, || {
            sandbox.write(&path, content.as_slice())
        });
        self.note(tracked, Call::Write, &result);
        if result.is_ok() {
            tracked.files.push((path, content));
        }
    }

    fn read(&mut self, tracked: &mut TrackedSandbox) {
        let Some((path, content)) = self.random.choose(&tracked.files).cloned() else {
            return;
        };
        let sandbox = tracked.sandbox.clone();
        let result = self
            .soak
            .ledger
            .call(Call::Read, &tracked.key, || sandbox.read(&path));
        self.note(tracked, Call::Read, &result);
        if result.is_ok_and(|found| found != *content) {
            let text = format!("{path} was read, but is not what was written");
            self.soak.ledger.broken(&tracked.key, &text);
        }
    }

    fn upload_dir(&mut self, tracked: &mut TrackedSandbox) {
        let dest = self.new_name("dir");
        let sample = &self.soak.sample_dir;
        let sandbox = tracked.sandbox.clone();
        let result = self.soak.ledger.call(Call::UploadDir, &tracked.key, || {
            sandbox.upload_dir(&sample.path, &dest)
        });
        self.note(tracked, Call::UploadDir, &result);
        if result.is_ok() {
            let at_dest = |path: &Path| Path::new(&dest).join(path).display().to_string();
            let files = sample.files.iter();
            tracked
                .files
                .extend(files.map(|(path, content)| (at_dest(path), Arc::clone(content))));
        }
    }

    fn job(&mut self, tracked: &mut TrackedSandbox) {
        let line = self.new_name("line");
        let command = Command::shell(format!("echo {line} >> {LOG}; echo done"));
        let sandbox = tracked.sandbox.clone();
        let spawned = self
            .soak
            .ledger
            .call(Call::Spawn, &tracked.key, || sandbox.spawn(command));
        self.note(tracked, Call::Spawn, &spawned);
        let fate = match spawned {
            Ok(job) => {
                let call = Call::WaitForJob;
                let waited = self
                    .soak
                    .ledger
                    .call(call, &tracked.key, || job.wait_timeout(JOB_WAIT));
                self.note(tracked, call, &waited);
                match waited {
                    Ok(Some(status)) if status.exit_code() == 0 => Fate::Ran,
                    _ => Fate::Unknown,
                }
            }
            Err(e) => Fate::of_error(&e),
        };
        tracked.lines.push((line, fate));
    }

    fn touch(&mut self, tracked: &mut TrackedSandbox) {
        let started = Instant::now();
        let sandbox = tracked.sandbox.clone();
        let result = self
            .soak
            .ledger
            .call(Call::Touch, &tracked.key, || sandbox.touch());
        self.note(tracked, Call::Touch, &result);
        if result.is_ok() {
            tracked.renewed = started;
        } else {
            tracked.renewable_until = self.renewable_until();
        }
    }

    /// Creates the sandbox although it exists, which renews its TTL and changes nothing else.
    fn put_again(&mut self, tracked: &mut TrackedSandbox) {
        if tracked.may_be_gone(self.soak) {
            return;
        }
        let started = Instant::now();
        let (client, spec) = (&self.client, self.soak.backend.spec());
        let result = self.soak.ledger.call(Call::Create, &tracked.key, || {
            client.create(&tracked.id, spec)
        });
        tracked.last_put = Instant::now();
        if result.is_err() {
            tracked.renewable_until = self.renewable_until();
        } else if !tracked.may_be_gone(self.soak) {
            tracked.renewed = started;
        }
    }

    fn delete(&mut self, tracked: &mut TrackedSandbox) {
        tracked.is_deleted = true;
        let sandbox = tracked.sandbox.clone();
        let result = self
            .soak
            .ledger
            .call(Call::Delete, &tracked.key, || sandbox.delete());
        match result {
            Ok(_) => self.check_stays_gone(tracked),
            Err(_) => self.leave(&tracked.id, tracked.renewable_until),
        }
    }

    /// No call may be answered by a new sandbox that no one has created.
    fn check_stays_gone(&self, tracked: &TrackedSandbox) {
        let soak = self.soak;
        let _running = soak.server.running();
        if tracked.last_put.elapsed() < LATE {
            return;
        }
        let probe = Command::new("true").timeout(Duration::from_secs(5));
        match tracked.direct.exec(probe) {
            Err(e) if e.is_sandbox_gone() => soak.ledger.count("lost sandboxes that stay gone"),
            result => {
                let text = format!("answers although it is gone: {result:?}");
                soak.ledger.broken(&tracked.key, &text);
            }
        }
    }
}

/// A directory to upload.
pub(crate) struct SampleDir {
    path: PathBuf,
    /// The paths in the directory, and the contents.
    files: Vec<(PathBuf, Arc<Vec<u8>>)>,
}

impl SampleDir {
    pub(crate) fn create(path: PathBuf, random: &mut Random) -> SampleDir {
        let mut files = Vec::new();
        for number in 0..8 {
            let file = PathBuf::from(format!("sub{}/file{number}", number % 3));
            let bits = random.below(15);
            let length = random.below(1 << bits);
            let content = random.bytes(length);
            let full = path.join(&file);
            std::fs::create_dir_all(full.parent().unwrap()).unwrap();
            std::fs::write(full, &content).unwrap();
            files.push((file, Arc::new(content)));
        }
        SampleDir { path, files }
    }
}
