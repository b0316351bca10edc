//! Fuzz target for the messages between the library and the holder.

use std::fmt::Debug;

use super::encoding::Encoding;
use super::protocol::{EndRequest, HolderReply, HolderRequest, Payload, Setup, StartReport};

/// Decodes messages. What was decoded survives a round trip, and truncated messages are refused.
///
/// # Panics
///
/// If one of these properties does not hold.
pub fn holder_messages(data: &[u8]) {
    round_trip::<Setup>(data);
    round_trip::<StartReport>(data);
    round_trip::<HolderRequest>(data);
    round_trip::<EndRequest>(data);
    round_trip::<Payload>(data);
    if let Some((reply, usage)) = HolderReply::decode(data) {
        let encoded = reply.encode(&usage);
        assert_eq!(HolderReply::decode(&encoded), Some((reply, usage)));
    }
}

fn round_trip<T: Encoding + Debug + PartialEq>(data: &[u8]) {
    let Some(message) = T::decode(data) else {
        return;
    };
    let encoded = message.encode();
    assert!(encoded.len() <= data.len());
    for length in 0..encoded.len() {
        assert_eq!(T::decode(&encoded[..length]), None);
    }
    assert_eq!(T::decode(&encoded), Some(message));
}
