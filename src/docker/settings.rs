//! The settings of a backend.

use std::sync::Arc;
use std::time::Duration;

use super::image::{OnPull, Pull};
use super::options::Options;

/// Settings of a backend.
pub(super) struct Settings {
    pub(super) options: Options,
    /// Path of the agent's program on the host. It is UTF-8, because the Engine API is JSON.
    pub(super) agent_path: String,
    pub(super) pull: Pull,
    pub(super) on_pull_progress: Option<Arc<OnPull>>,
    /// Timeout of create, without the time for pulling an image.
    pub(super) create_timeout: Duration,
    pub(super) pull_timeout: Duration,
    /// The agents are reached by ports on the loopback interface instead of sockets.
    pub(super) loopback_port: bool,
}
