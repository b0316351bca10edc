//! `health`, `create`, `touch`, `delete`.

use noxrunner::{Error, ErrorKind, Result, Sandbox};
use serde_json::json;

use crate::args::{Args, CreateArgs};
use crate::client::client;
use crate::console::Console;

pub(crate) fn health(args: &Args, console: &Console) -> Result<()> {
    client(args)?.health()?;
    console.success("Manager is healthy");
    console.value(&json!({"healthy": true}));
    Ok(())
}

pub(crate) fn create(args: &Args, create: &CreateArgs, console: &Console) -> Result<()> {
    let sandbox = client(args)?.create(&create.id, create.spec.to_spec())?;
    let info = sandbox.info();
    let (name, expires) = info.map_or(("", ""), |i| (i.pod_name(), i.expires_at()));
    console.success(&format!("Sandbox created: {name}"));
    let ignored = info.map_or(&[][..], |info| info.ignored());
    if !ignored.is_empty() {
        let ignored = ignored.join(", ");
        console.warning(&format!("The backend ignores: {ignored}"));
    }
    let mut value =
        json!({"id": create.id, "podName": name, "expiresAt": expires, "ignored": ignored});
    if create.wait {
        value["ready"] = json!(wait(&sandbox, create, console)?);
    }
    console.value(&value);
    Ok(())
}

fn wait(sandbox: &Sandbox, create: &CreateArgs, console: &Console) -> Result<bool> {
    console.info("Waiting for pod to be ready...");
    match sandbox.wait_until_ready(create.wait_timeout, None) {
        Ok(()) => {
            console.success("Pod is ready");
            Ok(true)
        }
        // Not an error for the Python command either.
        Err(e) if e.is_timeout() || e.is_not_ready() => {
            console.warning(&format!("Pod did not become ready within timeout: {e:#}"));
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

pub(crate) fn touch(args: &Args, id: &str, console: &Console) -> Result<()> {
    client(args)?.sandbox(id)?.touch()?;
    console.success("TTL extended");
    console.value(&json!({"id": id, "touched": true}));
    Ok(())
}

pub(crate) fn delete(args: &Args, id: &str, console: &Console) -> Result<()> {
    if !client(args)?.sandbox(id)?.delete()? {
        let message = format!("no such sandbox: {id:?}");
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    console.success("Sandbox deleted");
    console.value(&json!({"id": id, "deleted": true}));
    Ok(())
}
