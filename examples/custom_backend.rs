//! A custom backend that wraps another one, counts the calls and refuses some commands. Needs no server:
//!
//!     cargo run --example custom_backend

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use noxrunner::{
    Backend, Client, Command, Error, ErrorKind, LocalBackend, Output, Result, SandboxInfo,
    SandboxSpec, SessionId, Upload,
};

/// Counts the calls and allows only some programs.
struct Guarded<B> {
    inner: B,
    allowed: &'static [&'static str],
    calls: Arc<Mutex<BTreeMap<&'static str, u32>>>,
}

impl<B> Guarded<B> {
    fn count(&self, call: &'static str) -> &B {
        if let Ok(mut calls) = self.calls.lock() {
            *calls.entry(call).or_default() += 1;
        }
        &self.inner
    }
}

impl<B: Backend> Backend for Guarded<B> {
    fn health(&self) -> Result<()> {
        self.count("health").health()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        self.count("create").create(id, spec)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.count("touch").touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        let program = command
            .get_args()
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        if !self.allowed.contains(&program) {
            return Err(Error::new(
                ErrorKind::Unauthorized,
                format!("the program {program} is not allowed"),
            ));
        }
        self.count("exec").exec(id, command)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        self.count("upload").upload(id, dest, archive)
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        self.count("download").download(id, src)
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.count("delete").delete(id)
    }
}

fn main() -> Result<()> {
    let calls = Arc::default();
    let client = Client::with_backend(Guarded {
        inner: LocalBackend::new()?,
        allowed: &["echo", "cat"],
        calls: Arc::clone(&calls),
    });

    let sandbox = client.create(format!("custom-{}", std::process::id()), SandboxSpec::new())?;
    sandbox.write("greeting", "hello")?;
    println!(
        "cat printed {:?}",
        sandbox.run(["cat", "greeting"])?.stdout()
    );
    println!("{}", sandbox.run(["rm", "-rf", "/"]).unwrap_err());
    sandbox.delete()?;

    println!(
        "{:?}",
        calls.lock().map(|calls| calls.clone()).unwrap_or_default()
    );
    Ok(())
}
