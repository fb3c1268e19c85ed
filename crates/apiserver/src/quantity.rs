//! Quantities, such as `1500m` and `64Mi`: what they are worth, and how Kubernetes writes them. Pure.

/// In billionths, the smallest part that there is.
const ONE: i128 = 1_000_000_000;
/// Suffixes of a thousandfold each, from billionths on.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
/// And of 1024-fold each, from one on.
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    billionths: i128,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

impl Quantity {
    /// `None`: it is none, or so large that no machine has as much.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') {
            return None;
        }
        let (form, factor) = scale(suffix)?;
        let digits: i128 = format!("0{whole}{part}").parse().ok()?;
        let places = 10i128.checked_pow(u32::try_from(part.len()).ok()?)?;
        // What is smaller than a billionth counts as one.
        let (factor, below) = factor;
        let scaled = digits.checked_mul(factor)?;
        let divisor = places.checked_mul(below)?;
        let billionths = scaled / divisor + i128::from(scaled % divisor != 0);
        Some(Self { billionths: if negative { -billionths } else { billionths }, form })
    }

    pub fn is_negative(self) -> bool {
        self.billionths < 0
    }

    pub fn is_whole(self) -> bool {
        self.billionths % ONE == 0
    }

    /// What two are worth, however they are written.
    pub fn compare(self, other: Self) -> std::cmp::Ordering {
        self.billionths.cmp(&other.billionths)
    }

    /// The shortest way to write it with a whole number.
    pub fn text(self) -> String {
        let Self { billionths, form } = self;
        if form == Form::Binary && billionths % ONE == 0 && (billionths / ONE).abs() >= 1024 {
            let (number, times) = reduced(billionths / ONE, 1024, BINARY.len() - 1);
            return format!("{number}{}", BINARY[times]);
        }
        if billionths == 0 {
            return "0".to_owned();
        }
        let (number, times) = reduced(billionths, 1000, DECIMAL.len() - 1);
        match (form, times) {
            (Form::Exponent, times) if times != 3 => {
                let exponent = i64::try_from(times).unwrap_or_default() * 3 - 9;
                format!("{number}e{exponent}")
            }
            _ => format!("{number}{}", DECIMAL[times]),
        }
    }
}

fn reduced(mut number: i128, by: i128, most: usize) -> (i128, usize) {
    let mut times = 0;
    while times < most && number % by == 0 {
        (number, times) = (number / by, times + 1);
    }
    (number, times)
}

/// What a suffix makes of one, in billionths, as a fraction.
fn scale(suffix: &str) -> Option<(Form, (i128, i128))> {
    if let Some(times) = BINARY.iter().skip(1).position(|known| *known == suffix) {
        return Some((Form::Binary, (1024i128.pow(u32::try_from(times).ok()? + 1) * ONE, 1)));
    }
    if let Some(times) = DECIMAL.iter().position(|known| *known == suffix) {
        return Some((Form::Decimal, (1000i128.pow(u32::try_from(times).ok()?), 1)));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10i128.checked_pow(exponent.unsigned_abs())?;
    Some((Form::Exponent, if exponent < 0 { (ONE, power) } else { (ONE.checked_mul(power)?, 1) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_again() {
        for (text, want) in [
            ("1", Some("1")),
            ("0.5", Some("500m")),
            ("1000m", Some("1")),
            ("1024Mi", Some("1Gi")),
            ("64Mi", Some("64Mi")),
            ("1000Ki", Some("1000Ki")),
            ("0.5Gi", Some("512Mi")),
            ("1e3", Some("1e3")),
            ("1E", Some("1E")),
            ("100000", Some("100k")),
            ("-1k", Some("-1k")),
            ("0Mi", Some("0")),
            (".1n", Some("1n")),
            ("x", None),
            ("", None),
            ("1x", None),
            ("1.2.3", None),
        ] {
            assert_eq!(Quantity::parse(text).map(Quantity::text).as_deref(), want, "{text}");
        }
        let worth = |text: &str| Quantity::parse(text).unwrap();
        assert!(worth("1Gi").compare(worth("1G")).is_gt() && worth("1").compare(worth("1000m")).is_eq());
        assert!(worth("-1").is_negative() && !worth("0.5").is_whole());
    }
}
