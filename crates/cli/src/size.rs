//! Sizes as people write them: `256MiB`, `1G`, `4096`.

/// Bytes. A bare number is bytes; `K`, `M`, `G`, with or without `i` and `B`, are powers of 1024.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return Err(format!("{text:?} is no size; write one like 256MiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size; write one like 256MiB"))?;
    number.checked_mul(factor).filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is out of range"))
}

pub fn show(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (text, want) in [
            ("4096", Some(4096)),
            ("256MiB", Some(256 << 20)),
            ("256 mi", Some(256 << 20)),
            ("1G", Some(1 << 30)),
            ("2kb", Some(2048)),
            ("", None),
            ("0", None),
            ("1T", None),
            ("-1", None),
            ("99999999999999999999", None),
            ("99999999999999G", None),
        ] {
            assert_eq!(parse(text).ok(), want, "{text}");
        }
        assert_eq!((show(10), show(1536), show(3 << 20)), ("10 B".into(), "1.5 KiB".into(), "3.0 MiB".into()));
    }
}
