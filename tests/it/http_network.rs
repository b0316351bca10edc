//! http_network
