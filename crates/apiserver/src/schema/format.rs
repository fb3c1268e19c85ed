//! Formats and patterns of strings, as Kubernetes understands them.

use std::net::{Ipv4Addr, Ipv6Addr};

use regex::Regex;

/// Whether a text is of the format; formats that are not known demand nothing.
pub fn is_of(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => is_duration(text),
        "byte" => is_base64(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "hostname" => is_hostname(text),
        "email" => is_email(text),
        "uri" => is_uri(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some('3')),
        "uuid4" => is_uuid(text, Some('4')),
        "uuid5" => is_uuid(text, Some('5')),
        "bsonobjectid" => text.len() == 24 && is_hex(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && is_hex(digits)
        }
        _ => true,
    }
}

/// Of texts, without the hyphens that some have.
const KNOWN: [&str; 24] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
];

/// Whether values of the type have such a format.
pub fn is_known(form: &str, format: &str) -> bool {
    match form {
        "" | "string" => KNOWN.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// Go's kind of pattern: classes such as `\d` are about ASCII.
pub fn pattern(text: &str) -> Result<Regex, String> {
    const MOST: usize = 1 << 20;
    let mut translated = String::with_capacity(text.len());
    let mut in_class = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), in_class) {
                (Some('d'), false) => translated += "[0-9]",
                (Some('w'), false) => translated += "[0-9A-Za-z_]",
                (Some('s'), false) => translated += "[\\t\\n\\f\\r ]",
                (Some('D'), _) => translated += "[^0-9]",
                (Some('W'), _) => translated += "[^0-9A-Za-z_]",
                (Some('S'), _) => translated += "[^\\t\\n\\f\\r ]",
                (Some('d'), true) => translated += "0-9",
                (Some('w'), true) => translated += "0-9A-Za-z_",
                (Some('s'), true) => translated += "\\t\\n\\f\\r ",
                (Some('b'), false) => translated += "(?-u:\\b)",
                (Some('B'), false) => translated += "(?-u:\\B)",
                (Some(escaped), _) => translated.extend(['\\', escaped]),
                (None, _) => translated.push('\\'),
            },
            '[' if in_class => translated += if chars.as_str().starts_with(':') { "[" } else { "\\[" },
            '[' => {
                in_class = true;
                translated.push('[');
                for first in ["^", "]"] {
                    if let Some(rest) = chars.as_str().strip_prefix(first) {
                        translated += if first == "]" { "\\]" } else { first };
                        chars = rest.chars();
                    }
                }
            }
            ']' if in_class => {
                in_class = translated.ends_with(':')
                    && translated.rfind("[:").is_some_and(|at| !translated[at..].contains(']'));
                translated.push(']');
            }
            // Rust's classes have operators that Go's have not.
            '&' | '~' | '-' if in_class && chars.as_str().starts_with(c) => translated.extend(['\\', c]),
            c => translated.push(c),
        }
    }
    let built = regex::RegexBuilder::new(&translated).size_limit(MOST).build();
    built.map_err(|error| format!("error parsing regexp: {}", error.to_string().lines().last().unwrap_or_default()))
}

fn is_hex(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_base64(text: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text.replace(['\r', '\n'], "")).is_ok()
}

/// Go's durations, such as `1h30m`, and a few words for longer ones.
fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 20] = [
        "ns", "us", "µs", "μs", "ms", "s", "m", "h", "d", "w", "nanos", "micros", "millis", "sec", "min", "hr",
        "hours", "days", "weeks", "day",
    ];
    let mut rest = text.trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after.trim_start();
        let end = unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len());
        if number.parse::<f64>().is_err() || !UNITS.contains(&&unit[..end]) {
            return false;
        }
        rest = unit[end..].trim_start();
        any = true;
    }
    any
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    address.parse::<Ipv4Addr>().is_ok() && length <= 32 || address.parse::<Ipv6Addr>().is_ok() && length <= 128
}

fn is_mac(text: &str) -> bool {
    let separated = |by: char| {
        let parts: Vec<&str> = text.split(by).collect();
        matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|part| part.len() == 2 && is_hex(part))
    };
    separated(':') || separated('-')
}

fn is_hostname(text: &str) -> bool {
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 255 && text.split('.').all(label)
}

fn is_email(text: &str) -> bool {
    let Some((user, host)) = text.rsplit_once('@') else { return false };
    !user.is_empty() && !user.contains([' ', '@', '<', '>']) && is_hostname(host)
}

fn is_uri(text: &str) -> bool {
    // As Go's ParseRequestURI: an absolute URI or an absolute path.
    text.starts_with('/')
        || text.split_once(':').is_some_and(|(scheme, rest)| {
            !rest.is_empty()
                && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.contains(|c: char| c.is_ascii_control() || c == ' ')
        })
}

fn is_uuid(text: &str, version: Option<char>) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let shaped = match parts.as_slice() {
        [whole] => whole.len() == 32,
        parts => parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]),
    };
    let digits: String = parts.concat();
    shaped && is_hex(&digits) && version.is_none_or(|version| digits.chars().nth(12) == Some(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2026-01-02T03:04:05Z", "2026-01-02"),
            ("date", "2026-01-02", "2026-13-02"),
            ("duration", "1h30m", "1 fortnight"),
            ("duration", "1.5s", ""),
            ("byte", "aGk=", "a"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("hostname", "a.example", "-a"),
            ("email", "a@b.example", "a"),
            ("uri", "http://a/b", "a b"),
            ("uuid", "123e4567-e89b-42d3-a456-426614174000", "123"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("hexcolor", "#ffffff", "#fffff"),
        ] {
            assert!(is_of(format, good), "{format} {good}");
            assert!(!is_of(format, bad), "{format} {bad}");
        }
        assert!(is_of("something else", "anything"));
    }

    #[test]
    fn patterns() {
        for (pattern_text, good, bad) in [
            (r"^\d+$", "12", "١٢"),
            (r"^[\w-]+$", "a-b", "é"),
            (r"^[^\s]+$", "ab", "a b"),
            (r"^[[:alpha:]]+$", "ab", "1"),
            (r"^[a&&b]+$", "a&b", "c"),
            (r"^[]a]$", "]", "b"),
        ] {
            let regex = pattern(pattern_text).unwrap();
            assert!(regex.is_match(good) && !regex.is_match(bad), "{pattern_text}");
        }
        assert!(pattern("a(").is_err());
    }
}
