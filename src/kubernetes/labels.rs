//! Names of the labels and annotations of a sandbox's pod.

pub(super) const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
pub(super) const MANAGED_BY: &str = "noxrunner";

/// The hash of the session id, which is the name of the pod without its prefix.
pub(super) const HASH_LABEL: &str = "noxrunner/id-hash";

pub(super) const ID_ANNOTATION: &str = "noxrunner/session-id";

/// The spec that the sandbox was created with, as the JSON of NoxRunner v1.
pub(super) const SPEC_ANNOTATION: &str = "noxrunner/spec";

/// Random text that the agent's token is derived from, together with the secret key.
pub(super) const NONCE_ANNOTATION: &str = "noxrunner/nonce";

/// SHA-256 of the agent's token.
pub(super) const TOKEN_HASH_ANNOTATION: &str = "noxrunner/token-sha256";
