//! Address and credentials of the API server.

/// The address and the credentials of the API server.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) server: String,
    /// The namespace that the source names.
    pub(super) namespace: Option<String>,
    pub(super) ca_pem: Option<Vec<u8>>,
    /// The client's certificates and its private key.
    pub(super) identity_pem: Option<Vec<u8>>,
    pub(super) token: Option<String>,
}
