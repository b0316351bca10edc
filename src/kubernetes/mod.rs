//! The Kubernetes backend: sandboxes in pods, through an agent in each.

mod agent;
mod api;
mod backend;
mod builder;
mod create;
mod credentials;
mod key_file;
mod kubectl;
mod labels;
mod merge;
mod pod;
mod pod_spec;
mod refusal;
mod sandboxes;
mod source;
mod status;
mod sweep;
mod token;
mod watch;

pub use self::agent::PodAccess;
pub use self::backend::KubernetesBackend;
pub use self::builder::KubernetesBackendBuilder;
