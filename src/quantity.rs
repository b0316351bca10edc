//! Parses Kubernetes quantities: `512Mi` of memory, `500m` of a CPU.

use crate::error::Error;

/// Maximum value of a limit. Kubernetes and the kernel's file sizes have the same maximum.
const MAX: u128 = i64::MAX as u128;

/// Defaults of the limits of local sandboxes, in bytes.
#[cfg(any(feature = "docker", feature = "local", feature = "server"))]
pub(crate) const DEFAULT_MEMORY: u64 = 1 << 30;
#[cfg(any(feature = "docker", feature = "local", feature = "server"))]
pub(crate) const DEFAULT_STORAGE: u64 = 512 << 20;

/// Minimum of a memory limit: less is too small for a shell. Docker has the same.
pub(crate) const MIN_MEMORY: u64 = 6 << 20;

/// Minimum of a storage limit.
pub(crate) const MIN_STORAGE: u64 = 1 << 20;

/// Parses a quantity of memory or storage and returns it in bytes, rounded up. `name` names the field
/// in errors. Less than `min` is refused, because nothing could run with it.
pub(crate) fn parse_bytes(name: &str, text: &str, min: u64) -> Result<u64, Error> {
    let invalid = |problem: &str| Error::invalid(format!("{name} {text:?} {problem}"));
    let bytes = split(text).and_then(|(number, suffix)| {
        let (factor, exponent) = unit(suffix)?;
        scaled(number, factor, exponent)
    });
    match bytes.unwrap_or(Err("is not a Kubernetes quantity")) {
        Ok(bytes) if bytes >= min => Ok(bytes),
        Ok(bytes) => Err(invalid(&too_small(text, bytes, min))),
        Err(problem) => Err(invalid(&format!(
            "{problem}: use for example 512Mi, 1G or 1073741824"
        ))),
    }
}

/// Describes the problem with a limit that is too small, and what was probably meant.
fn too_small(text: &str, bytes: u64, min: u64) -> String {
    let (number, suffix) = split(text).unwrap_or((text, ""));
    let size = match suffix {
        "m" => format!("{number} thousandths of a byte"),
        _ => format!("{bytes} bytes"),
    };
    let min = min >> 20;
    format!("is {size}, less than the minimum of {min}Mi: did you mean \"{number}Mi\"?")
}

/// Parses a quantity of CPU and returns it in thousandths of a CPU, rounded up.
pub(crate) fn parse_cpu(text: &str) -> Result<u64, Error> {
    let millis = split(text).and_then(|(number, suffix)| match suffix {
        "" => scaled(number, 1, 3),
        "m" => scaled(number, 1, 0),
        _ => None,
    });
    let millis = millis.unwrap_or(Err("is not a number of CPUs"));
    millis.map_err(|problem| {
        Error::invalid(format!(
            "cpu limit {text:?} {problem}: use for example 500m, 1 or 2.5"
        ))
    })
}

/// Splits a quantity into number and suffix. Signs are not accepted: a limit cannot be negative.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    text.split_at_checked(end.unwrap_or(text.len()))
}

/// Returns a suffix as a factor and a power of ten.
fn unit(suffix: &str) -> Option<(u128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        // An exponent that does not fit into an i16 exceeds every limit.
        _ => (
            1,
            suffix.strip_prefix(['e', 'E'])?.parse::<i16>().ok()?.into(),
        ),
    })
}

/// Returns `number * factor * 10^exponent`, rounded up, or `None` if `number` is not a number. The
/// error is the problem with a number that cannot be a limit.
fn scaled(number: &str, factor: u128, exponent: i32) -> Option<Result<u64, &'static str>> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits = || whole.bytes().chain(fraction.bytes()).map(|c| c - b'0');
    if digits().all(|digit| digit == 0) {
        return Some(Err("is zero"));
    }
    let exact = || {
        let product = digits()
            .try_fold(0_u128, |sum, digit| {
                sum.checked_mul(10)?.checked_add(digit.into())
            })?
            .checked_mul(factor)?;
        let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let power = 10_u128.checked_pow(exponent.unsigned_abs());
        if exponent < 0 {
            // A divisor that overflows is larger than any product: the result is rounded up to 1.
            return Some(power.map_or(1, |power| product.div_ceil(power)));
        }
        product.checked_mul(power?)
    };
    Some(match exact() {
        Some(value) if value <= MAX => Ok(value as u64),
        _ => Err("is too large"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> Option<u64> {
        parse_bytes("memory limit", text, 0).ok()
    }

    fn cpu(text: &str) -> Option<u64> {
        parse_cpu(text).ok()
    }

    #[test]
    fn byte_quantities_follow_kubernetes() {
        let cases = "1073741824=1073741824|512Mi=536870912|0.5Gi=536870912|.5Gi=536870912|\
                     1.Ki=1024|1.5G=1500000000|1.10k=1100|1k=1000|1e3=1000|1e+3=1000|\
                     12E6=12000000|1500e-3=2|5E=5000000000000000000|7Ei=8070450532247928832|\
                     1Ti=1099511627776|1Pi=1125899906842624|1T=1000000000000|1P=1000000000000000|\
                     1m=1|1000m=1|1001m=2|0.1=1|9223372036854775807=9223372036854775807|\
                     1.0000000000000000000000000000000000000000Ki=1024|\
                     0.0000000000000000000000000000000000000001Ki=1";
        for (text, expected) in cases.split('|').filter_map(|case| case.split_once('=')) {
            assert_eq!(bytes(text), expected.parse().ok(), "{text}");
        }
    }

    #[test]
    fn invalid_byte_quantities_are_rejected() {
        let wrong = "| |.|0|0Gi|0.00|0e400|-1|+1| 1|1 |1 Gi|1,5G|1_000|512MB|512mb|1K|1ki|1g|\
                     Gi|1e|1e3Ki|1ee3|1e3.5|1.2.3|1..2|0x10|1Ä|١Gi|1\0|NaN|inf|\
                     9223372036854775808|8Ei|1e19|1e400|1e99999999999|\
                     99999999999999999999999999999999999999999";
        for text in wrong.split('|') {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn cpu_quantities_are_in_thousandths() {
        let cases = [
            ("500m", 500),
            ("1", 1000),
            ("0.5", 500),
            ("2.5", 2500),
            ("1.0001", 1001),
        ];
        for (text, expected) in cases
            .into_iter()
            .chain([("0.1m", 1), (".25", 250), ("64", 64_000)])
        {
            assert_eq!(cpu(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "0",
            "0m",
            "-1",
            "1 ",
            "1k",
            "1Gi",
            "1e3",
            "half",
            "9223372036854776",
        ] {
            assert_eq!(cpu(text), None, "{text:?}");
        }
    }

    #[test]
    fn error_names_the_field_and_shows_examples() {
        let text = |result: Result<u64, Error>| result.unwrap_err().to_string();
        assert_eq!(
            text(parse_bytes("memory limit", "512MB", 0)),
            "memory limit \"512MB\" is not a Kubernetes quantity: \
             use for example 512Mi, 1G or 1073741824"
        );
        assert!(text(parse_bytes("storage", "0", 0)).starts_with("storage \"0\" is zero: "));
        assert!(text(parse_bytes("storage", "16Ei", 0)).contains("is too large"));
        assert_eq!(
            text(parse_cpu("half")),
            "cpu limit \"half\" is not a number of CPUs: use for example 500m, 1 or 2.5"
        );
    }

    #[test]
    fn limits_that_are_too_small_are_refused_with_the_likely_meaning() {
        let text = |limit| {
            let result = parse_bytes("memory limit", limit, 6 << 20);
            result.unwrap_err().to_string()
        };
        assert_eq!(
            text("512m"),
            "memory limit \"512m\" is 512 thousandths of a byte, less than the minimum of 6Mi: did you mean \"512Mi\"?"
        );
        let rest = "less than the minimum of 6Mi: did you mean \"128Mi\"?";
        assert_eq!(
            text("128"),
            format!("memory limit \"128\" is 128 bytes, {rest}")
        );
        assert_eq!(
            text("128k"),
            format!("memory limit \"128k\" is 128000 bytes, {rest}")
        );
        assert_eq!(
            parse_bytes("memory limit", "6Mi", 6 << 20).unwrap(),
            6 << 20
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*", number in "[0-9.eE+-]{0,60}[kKMGTPEim]{0,2}") {
            for text in [text, number] {
                let _ = (bytes(&text), cpu(&text));
            }
        }

        #[test]
        fn plain_numbers_are_unchanged(n in 1..=i64::MAX as u64) {
            prop_assert_eq!(bytes(&n.to_string()), Some(n));
            prop_assert_eq!(cpu(&format!("{n}m")), Some(n));
        }

        #[test]
        fn suffixes_multiply(n in 1_u64..1 << 40, at in 0_usize..12) {
            let binary = at / 6;
            let suffix = ["k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][at];
            let base = [1000_u128, 1024][binary];
            let product = u128::from(n) * base.pow((at % 6) as u32 + 1);
            let expected = u64::try_from(product).ok().filter(|bytes| *bytes <= i64::MAX as u64);
            prop_assert_eq!(bytes(&format!("{n}{suffix}")), expected);
        }

        #[test]
        fn fractions_are_rounded_up(whole in 0_u64..1 << 30, part in 1_u64..1_000_000) {
            let exact = u128::from(whole) * 1_000_000 + u128::from(part);
            let text = format!("{whole}.{part:06}");
            prop_assert_eq!(bytes(&format!("{text}Mi")), Some((exact << 20).div_ceil(1_000_000) as u64));
            prop_assert_eq!(cpu(&text), Some(exact.div_ceil(1000) as u64));
        }
    }
}
