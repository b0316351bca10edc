//! Quantities of memory, storage and CPU.

use super::printed::check_shown;
use crate::quantity::{parse_bytes, parse_cpu};

/// Parses a quantity. The value agrees with that of a float, and parses as itself.
pub fn quantities(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let parsed = parse_bytes("limit", text, 0);
    check_quantity(&parsed, text);
    if let Ok(bytes) = parsed {
        let again = parse_bytes("limit", &bytes.to_string(), bytes);
        assert_eq!(again.ok(), Some(bytes));
        assert!(parse_bytes("limit", text, bytes + 1).is_err());
    }
    let cpu = parse_cpu(text);
    check_quantity(
        &cpu,
        &match text.strip_suffix('m') {
            Some(millis) => millis.to_owned(),
            None => format!("{text}k"),
        },
    );
    if let Ok(millis) = cpu {
        assert_eq!(parse_cpu(&format!("{millis}m")).ok(), Some(millis));
    }
}

/// Compares a quantity with a float, where that is precise enough.
fn check_quantity(parsed: &crate::Result<u64>, text: &str) {
    let parsed = match parsed {
        Ok(parsed) => *parsed,
        Err(e) => return check_shown(e),
    };
    assert!((1..=i64::MAX as u64).contains(&parsed));
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let units = "m=1e-3|=1|k=1e3|M=1e6|G=1e9|T=1e12|P=1e15|E=1e18|\
                 Ki=1024|Mi=1048576|Gi=1073741824|Ti=1099511627776|Pi=1125899906842624|\
                 Ei=1152921504606846976";
    let mut units = units.split('|').filter_map(|unit| unit.split_once('='));
    let expected: f64 = match units.find(|(name, _)| *name == suffix) {
        Some((_, factor)) => {
            number.parse::<f64>().expect("it is a number")
                * factor.parse::<f64>().expect("it is a number")
        }
        None => text.parse().expect("it has an exponent"),
    };
    let difference = parsed as f64 - expected;
    let precision = expected * 1e-12;
    assert!(
        -precision <= difference && difference <= 1.0 + precision,
        "{text}: {parsed}"
    );
}
