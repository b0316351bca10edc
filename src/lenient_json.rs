//! Reading JSON of servers that deviate from the protocol, so that one bad character or type does not
//! cost a whole response.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Parses JSON. If it is invalid, parses it again with its strings repaired.
pub(crate) fn from_slice<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|_| serde_json::from_str(&repair(json)))
}

/// Makes strings valid: bytes that are not UTF-8 and lone surrogates become U+FFFD, control characters
/// are escaped, and unknown escapes are kept as text. `NaN` and `Infinity`, which Python writes, become
/// null.
fn repair(json: &[u8]) -> String {
    let text = String::from_utf8_lossy(json);
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut repaired = String::with_capacity(rest.len());
    let mut in_string = false;
    loop {
        let special = |c: char| c == '"' || in_string && (c == '\\' || c.is_ascii_control());
        let (before, special) = rest.split_at(rest.find(special).unwrap_or(rest.len()));
        repaired.push_str(&if in_string {
            Cow::from(before)
        } else {
            without_nan(before)
        });
        let taken = match special.as_bytes().first() {
            None => return repaired,
            Some(b'"') => {
                in_string = !in_string;
                repaired.push('"');
                1
            }
            Some(b'\\') => repair_escape(special, &mut repaired),
            Some(control) => {
                repaired.push_str(&format!("\\u{control:04x}"));
                1
            }
        };
        rest = &special[taken..];
    }
}

fn without_nan(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return text.into();
    }
    let text = text.replace("NaN", "null");
    let text = text
        .replace("-Infinity", "null")
        .replace("Infinity", "null");
    text.into()
}

/// Appends the escape at the start of `text`, and returns how many bytes of `text` it was.
fn repair_escape(text: &str, repaired: &mut String) -> usize {
    let (valid, taken) = match (text.as_bytes().get(1), code_unit(text)) {
        (Some(b'u'), Some(0xd800..=0xdbff)) if is_low_surrogate(&text[6..]) => (&text[..12], 12),
        (Some(b'u'), Some(0xd800..=0xdfff)) => ("\\ufffd", 6),
        (Some(b'u'), Some(_)) => (&text[..6], 6),
        (Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'), _) => (&text[..2], 2),
        _ => ("\\\\", 1),
    };
    repaired.push_str(valid);
    taken
}

fn is_low_surrogate(text: &str) -> bool {
    matches!(code_unit(text), Some(0xdc00..=0xdfff))
}

/// Parses `\u` and four hexadecimal digits.
fn code_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let all_digits = digits.bytes().all(|b| b.is_ascii_hexdigit());
    all_digits.then(|| u16::from_str_radix(digits, 16).ok())?
}

/// Reads a whole number, which may be written as `1.0`.
pub(crate) fn whole<'de, D: Deserializer<'de>, T: TryFrom<i64>>(json: D) -> Result<T, D::Error> {
    let value = Value::deserialize(json)?;
    let invalid = || D::Error::custom(format!("{value} is not a whole number in range"));
    to_whole(&value).ok_or_else(invalid)
}

/// Reads a whole number as [`whole`] does, or null.
pub(crate) fn optional_whole<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    json: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(json)?;
    let invalid = || D::Error::custom(format!("{value} is not a whole number in range"));
    match value {
        Value::Null => Ok(None),
        _ => to_whole(&value).map(Some).ok_or_else(invalid),
    }
}

fn to_whole<T: TryFrom<i64>>(value: &Value) -> Option<T> {
    let float = |value: &Value| value.as_f64().filter(|number| number.fract() == 0.0);
    let number = value.as_i64();
    let number = number.or_else(|| float(value).map(|number| number as i64))?;
    T::try_from(number).ok()
}

/// Reads a number of which the caller can do without: a fraction is rounded, and anything else but a
/// number that is not negative is `None`.
pub(crate) fn rounded<'de, D: Deserializer<'de>>(json: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(json)?;
    let float = value.as_f64().filter(|number| *number >= 0.0);
    Ok(value.as_u64().or(float.map(|number| number.round() as u64)))
}

/// Reads text. Null becomes empty text, and any other value its JSON.
pub(crate) fn text<'de, D: Deserializer<'de>, T: From<String>>(json: D) -> Result<T, D::Error> {
    Ok(T::from(match Value::deserialize(json)? {
        Value::String(text) => text,
        Value::Null => String::new(),
        value => value.to_string(),
    }))
}

/// Reads a value that the caller can do without. Of values that are not known, such as those of a later
/// version, this returns the default.
pub(crate) fn known<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    json: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(json)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repaired(json: &[u8]) -> String {
        from_slice::<String>(json).unwrap()
    }

    #[test]
    fn bad_characters_become_replacement_characters() {
        assert_eq!(repaired(br#""caf\udce9 ok""#), "caf\u{fffd} ok");
        assert_eq!(repaired(br#""a\ud83d""#), "a\u{fffd}");
        assert_eq!(
            repaired(br#""\ud83d\ud83d\ude00\ude00""#),
            "\u{fffd}😀\u{fffd}"
        );
        assert_eq!(repaired(br#""\uD83Dx\\ud800\"""#), "\u{fffd}x\\ud800\"");
        assert_eq!(repaired(b"\"caf\xe9\""), "caf\u{fffd}");
        assert_eq!(
            repaired(b"\"\xed\xa0\x80\\n\""),
            "\u{fffd}\u{fffd}\u{fffd}\n"
        );
    }

    #[test]
    fn raw_control_characters_and_unknown_escapes_are_kept() {
        assert_eq!(repaired(b"\"a\nb\x1b[0m\x00\""), "a\nb\u{1b}[0m\0");
        assert_eq!(repaired(br#""\x1b \u12 \'""#), r"\x1b \u12 \'");
        assert_eq!(repaired(br#""\x \u00e9\ud83d\ude00""#), "\\x é😀");
        assert_eq!(repaired(b"\xef\xbb\xbf\"bom\""), "bom");
        let value = from_slice::<Value>(br#"{"a": NaN, "b": [-Infinity], "c": "NaN\x"}"#).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"a": null, "b": [null], "c": "NaN\\x"})
        );
    }

    #[test]
    fn truncated_json_stays_truncated() {
        for json in [
            &b"\"a\\"[..],
            b"\"a\\u12",
            b"\"a\\ud800",
            b"{\"a\": \"\xff",
            b"",
        ] {
            assert!(from_slice::<Value>(json).unwrap_err().is_eof(), "{json:?}");
        }
    }

    proptest! {
        #[test]
        fn any_string_content_is_readable(content in prop::collection::vec(any::<u8>(), 0..40)) {
            let content: Vec<u8> = content.into_iter().filter(|b| !b"\"\\".contains(b)).collect();
            from_slice::<String>(&[b"\"", &content[..], b"\""].concat()).unwrap();
        }

        #[test]
        fn valid_json_is_not_changed(text in "\\PC*") {
            let json = serde_json::to_string(&text).unwrap();
            let again: String = serde_json::from_str(&repair(json.as_bytes())).unwrap();
            prop_assert_eq!(again, text);
        }
    }
}
