//! The HTTP backend: the seven calls with their deadlines and retries. Only this module uses ureq.

mod backend;
mod base_url;
mod builder;
mod call;
mod connect;
mod errors;
mod live;
#[cfg(feature = "conformance")]
mod raw;
#[cfg(any(feature = "docker", feature = "kubernetes"))]
mod rest;
mod retry;
mod socket;
mod stream;
mod transport;

pub use self::backend::HttpBackend;
pub use self::builder::HttpBackendBuilder;
#[cfg(feature = "conformance")]
pub(crate) use self::raw::{Endpoint, RawResponse};
#[cfg(any(feature = "docker", feature = "kubernetes"))]
pub(crate) use self::rest::{RestBody, RestClient, RestResponse, RestSettings, RestStream};
pub use self::retry::Retry;
