//! `health`, `create`, `touch`, `delete`.

use noxrunner::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::{Args, Create};
use crate::connect::client;
use crate::say::Say;

pub(crate) fn health(args: &Args, say: &Say) -> Result<()> {
    client(args)?.health()?;
    say.success("Manager is healthy");
    say.value(&json!({"healthy": true}));
    Ok(())
}

pub(crate) fn create(args: &Args, create: &Create, say: &Say) -> Result<()> {
    let sandbox = client(args)?.create(&create.id, create.spec.to_spec())?;
    let info = sandbox.info();
    let (name, expires) = info.map_or(("", ""), |i| (i.pod_name(), i.expires_at()));
    say.success(&format!("Sandbox created: {name}"));
    let ignored = info.map_or(&[][..], |info| info.ignored());
    if !ignored.is_empty() {
        say.warning(&format!(
            "The backend takes no notice of: {}",
            ignored.join(", ")
        ));
    }
    let mut ready = None;
    if create.wait {
        say.info("Waiting for pod to be ready...");
        ready = Some(match sandbox.wait_until_ready(create.wait_timeout, None) {
            Ok(()) => {
                say.success("Pod is ready");
                true
            }
            // No failure to the Python command either.
            Err(e) if e.kind() == ErrorKind::Timeout => {
                say.warning(&format!("Pod did not become ready within timeout: {e}"));
                false
            }
            Err(e) => return Err(e),
        });
    }
    let mut value =
        json!({"id": create.id, "podName": name, "expiresAt": expires, "ignored": ignored});
    if let Some(ready) = ready {
        value["ready"] = json!(ready);
    }
    say.value(&value);
    Ok(())
}

pub(crate) fn touch(args: &Args, id: &str, say: &Say) -> Result<()> {
    client(args)?.sandbox(id)?.touch()?;
    say.success("TTL extended");
    say.value(&json!({"id": id, "touched": true}));
    Ok(())
}

pub(crate) fn delete(args: &Args, id: &str, say: &Say) -> Result<()> {
    if !client(args)?.sandbox(id)?.delete()? {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no sandbox {id:?}"),
        ));
    }
    say.success("Sandbox deleted");
    say.value(&json!({"id": id, "deleted": true}));
    Ok(())
}
