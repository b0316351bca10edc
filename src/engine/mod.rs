//! What the backends of container engines and of Kubernetes share.

mod agent_program;
mod sandbox_name;

pub(crate) use self::agent_program::{AgentProgram, BUILD_COMMAND};
pub(crate) use self::sandbox_name::sandbox_name;
#[cfg(feature = "docker")]
pub(crate) use self::sandbox_name::scoped_sandbox_name;
