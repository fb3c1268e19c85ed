//! Kubernetes quantities, as far as limits need them: `128Mi`, `500m`, `1.5`, `1e9`. Pure.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const SUFFIXES: [(&str, f64); 16] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("", 1.0),
];

/// Whole units, rounded up as Kubernetes does. `None` for what is no quantity, or is negative.
pub fn units(quantity: &Quantity) -> Option<u64> {
    scaled(quantity, 1.0)
}

/// Thousandths, rounded up.
pub fn millis(quantity: &Quantity) -> Option<u64> {
    scaled(quantity, 1e3)
}

fn scaled(quantity: &Quantity, by: f64) -> Option<u64> {
    let text = quantity.0.trim();
    let (number, factor) = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
    let plain = number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    let value = number.parse::<f64>().ok().filter(|_| plain)? * factor * by;
    // What a multiplication of floats may be off by must not round a whole number up.
    let whole = if (value - value.round()).abs() < 1e-9 * value.abs().max(1.0) { value.round() } else { value.ceil() };
    (whole >= 0.0 && whole < u64::MAX as f64).then_some(whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (text, whole, thousandths) in [
            ("1", Some(1), Some(1000)),
            ("500m", Some(1), Some(500)),
            ("0.1", Some(1), Some(100)),
            ("1.5", Some(2), Some(1500)),
            ("128Mi", Some(134_217_728), Some(134_217_728_000)),
            ("1.5Gi", Some(1_610_612_736), Some(1_610_612_736_000)),
            ("1e3", Some(1000), Some(1_000_000)),
            ("2k", Some(2000), Some(2_000_000)),
            ("1E", Some(1_000_000_000_000_000_000), None),
            ("100n", Some(1), Some(1)),
            ("0", Some(0), Some(0)),
            ("-1", None, None),
            ("", None, None),
            ("Mi", None, None),
            ("1Zi", None, None),
            ("inf", None, None),
            ("NaN", None, None),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((units(&quantity), millis(&quantity)), (whole, thousandths), "{text}");
        }
    }
}
