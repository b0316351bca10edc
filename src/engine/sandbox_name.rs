//! Names of containers and pods.

use crate::session_id::SessionId;

/// Returns the name of a sandbox's container or pod: `nox-` and a hash of the session id in 32 hexadecimal
/// digits. Other ids can have the same hash, so a label with the whole id must be compared.
#[cfg(feature = "kubernetes")]
pub(crate) fn sandbox_name(id: &SessionId) -> String {
    format!("nox-{}", name_hash(id.as_str().as_bytes()))
}

/// Same as `sandbox_name`, but a different one for each scope.
#[cfg(feature = "docker")]
pub(crate) fn scoped_sandbox_name(scope: &str, id: &SessionId) -> String {
    // Neither can contain a NUL byte.
    let text = format!("{scope}\0{}", id.as_str());
    format!("nox-{}", name_hash(text.as_bytes()))
}

/// Returns a hash for a name, in 32 hexadecimal digits. It does not protect against collisions on purpose.
pub(crate) fn name_hash(bytes: &[u8]) -> String {
    format!("{:032x}", fnv1a_128(bytes))
}

/// FNV-1a with 128 bits, from the reference of its authors.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mix = |hash: u128, byte: &u8| (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
    bytes.iter().fold(BASIS, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable() {
        // From the test vectors of the reference.
        assert_eq!(name_hash(b"a"), "d228cb696f1a8caf78912b704e4a8964");
    }

    #[test]
    #[cfg(feature = "kubernetes")]
    fn names_are_those_of_objects() {
        let name = sandbox_name(&SessionId::new("demo/ä").unwrap());
        assert_eq!(name.len(), 36);
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    }

    #[test]
    #[cfg(feature = "docker")]
    fn names_in_scopes_differ() {
        let (a, b) = (SessionId::new("a").unwrap(), SessionId::new("b").unwrap());
        let names =
            [("x", &a), ("x", &b), ("y", &a)].map(|(scope, id)| scoped_sandbox_name(scope, id));
        assert_eq!(names[0], scoped_sandbox_name("x", &a));
        assert!(names[0] != names[1] && names[0] != names[2] && names[1] != names[2]);
        assert_eq!(names[0].len(), 36);
    }
}
