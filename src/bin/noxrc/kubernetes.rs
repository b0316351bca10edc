//! `kubernetes`.

use noxrunner::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::{Args, KubernetesSubcommand, ManifestArgs};
use crate::console::Console;

/// The manifest, with names in braces for what the options set.
const MANIFEST: &str = include_str!("manifest.yaml");

/// Default namespace of the manifest.
const NAMESPACE: &str = "noxrunner";

pub(crate) fn kubernetes(
    args: &Args,
    subcommand: &KubernetesSubcommand,
    console: &Console,
) -> Result<()> {
    let KubernetesSubcommand::Manifest(options) = subcommand;
    let text = manifest(args, options)?;
    console.data(text.as_bytes());
    console.value(&json!({"manifest": text}));
    Ok(())
}

fn manifest(args: &Args, options: &ManifestArgs) -> Result<String> {
    let kubernetes = &args.backend.kubernetes;
    let namespace = kubernetes.namespace.as_deref().unwrap_or(NAMESPACE);
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    check("--namespace", namespace, is_name)?;
    let Some(agent_image) = kubernetes.agent_image.as_deref() else {
        let text = "no agent image: set one with --agent-image, it has a static noxrc at /noxrc";
        return Err(Error::new(ErrorKind::InvalidInput, text));
    };
    check("--agent-image", agent_image, is_image)?;
    let mut image = String::new();
    if let Some(name) = &options.image {
        check("--image", name, is_image)?;
        image = format!("            - --image={name}\n");
    }
    let text = MANIFEST
        .replace("{namespace}", namespace)
        .replace("{agent_image}", agent_image)
        .replace("{image}", &image)
        .replace("{replicas}", &options.replicas.to_string())
        .replace("{max_pods}", &options.max_pods.to_string());
    Ok(text)
}

fn is_image(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-/:@".contains(c)
}

/// Refuses characters that would mean something else in YAML.
fn check(option: &str, value: &str, is_valid: impl Fn(char) -> bool) -> Result<()> {
    if !value.is_empty() && value.chars().all(is_valid) {
        return Ok(());
    }
    let text = format!("{option} {value:?}: not a valid name");
    Err(Error::new(ErrorKind::InvalidInput, text))
}
