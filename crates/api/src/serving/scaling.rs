//! Which annotations of Knative's autoscaler and controllers say something, and which say nothing that can be done.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::rules::Complaint;

const GROUP: &str = "autoscaling.knative.dev/";
const MISPLACED: &str = "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work";
const LONGEST_WINDOW: f64 = 3600.0;

type Annotations = BTreeMap<String, String>;

/// Of a Service, a Configuration or a Route itself.
pub fn of_owner(meta: &ObjectMeta) -> Vec<Complaint> {
    let path = "metadata.annotations";
    let mut all = vec![];
    let Some(annotations) = &meta.annotations else { return all };
    for key in annotations.keys().filter(|key| key.starts_with(GROUP)) {
        all.push(Complaint::new(path, format!("invalid key name {key:?}")).because(MISPLACED));
    }
    all.extend(whole_seconds(path, annotations, "rollout-duration"));
    all
}

/// Of a Revision's template.
pub fn of_template(path: &str, meta: &ObjectMeta) -> Vec<Complaint> {
    let Some(annotations) = &meta.annotations else { return vec![] };
    let mut all = scales(path, annotations);
    all.extend(percentages(path, annotations));
    all.extend(periods(path, annotations));
    all.extend(whole_seconds(path, annotations, "progress-deadline"));
    all
}

/// An annotation in its present spelling (`min-scale`) or the older one (`minScale`): its key and value.
pub fn find<'a>(annotations: &'a Annotations, key: &str) -> Option<(&'a str, &'a str)> {
    let (group, name) = key.split_once('/')?;
    let mut parts = name.split('-');
    let mut older = format!("{group}/{}", parts.next().unwrap_or_default());
    for part in parts {
        older.extend(part.chars().take(1).map(|c| c.to_ascii_uppercase()));
        older.extend(part.chars().skip(1));
    }
    let found = annotations.get_key_value(key).or_else(|| annotations.get_key_value(&older))?;
    Some((found.0.as_str(), found.1.as_str()))
}

fn scaling<'a>(annotations: &'a Annotations, name: &str) -> Option<(&'a str, &'a str)> {
    find(annotations, &format!("{GROUP}{name}"))
}

fn scales(path: &str, annotations: &Annotations) -> Vec<Complaint> {
    let mut all = vec![];
    let mut read = |name: &str| {
        let (key, value) = scaling(annotations, name)?;
        match value.parse::<i64>() {
            Ok(number) if (0..=i64::from(i32::MAX)).contains(&number) => return Some(number),
            Ok(_) => all.push(Complaint::bounds(format!("{path}.{key}"), value, (0, i64::from(i32::MAX)))),
            Err(_) => all.push(Complaint::invalid(format!("{path}.{key}"), value)),
        }
        None
    };
    let (least, most) = (read("min-scale").unwrap_or(0), read("max-scale").unwrap_or(0));
    let activation = read("activation-scale");
    read("initial-scale");
    let at = |name: &str| format!("{path}.{GROUP}{name}");
    if most != 0 && most < least {
        let message = format!("max-scale={most} is less than min-scale={least}");
        all.push(Complaint::new(format!("{}, {}", at("max-scale"), at("min-scale")), message));
    }
    let wrong = activation.and_then(|number| match number {
        n if least > n => Some(format!("min-scale={least} is greater than activation-scale={n}")),
        n if most != 0 && most < n => Some(format!("max-scale={most} is less than activation-scale={n}")),
        n if n < 2 => Some(format!("activation-scale={n} must be greater than 1")),
        _ => None,
    });
    all.extend(wrong.map(|message| Complaint::new(at("activation-scale"), message)));
    all
}

fn percentages(path: &str, annotations: &Annotations) -> Vec<Complaint> {
    let mut all = vec![];
    let bounded = [
        ("panic-window-percentage", (1.0, 100.0)),
        ("panic-threshold-percentage", (110.0, 1000.0)),
        ("target-utilization-percentage", (1.0, 100.0)),
    ];
    for (name, (least, most)) in bounded {
        let Some((key, value)) = scaling(annotations, name) else { continue };
        match value.parse::<f64>() {
            Err(_) => all.push(Complaint::invalid(format!("{path}.{key}"), value)),
            Ok(number) if !(least..=most).contains(&number) => {
                all.push(Complaint::new(format!("{path}.{key}"), format!("expected {least} <= {value} <= {most}")));
            }
            Ok(_) => {}
        }
    }
    if let Some((key, value)) = scaling(annotations, "target") {
        match value.parse::<f64>() {
            Err(_) => all.push(Complaint::invalid(format!("{path}.{key}"), value)),
            Ok(number) if number.is_nan() || number < 0.01 => {
                all.push(Complaint::new(format!("{path}.{key}"), format!("target {value} should be at least 0.01")));
            }
            Ok(_) => {}
        }
    }
    if let Some((key, value)) = scaling(annotations, "target-burst-capacity") {
        let fits = |number: f64| number >= 0.0 || number == -1.0;
        if !value.parse::<f64>().is_ok_and(fits) {
            all.push(Complaint::invalid(format!("{path}.{key}"), value));
        }
    }
    all
}

fn periods(path: &str, annotations: &Annotations) -> Vec<Complaint> {
    let mut all = vec![];
    for (name, least, whole) in
        [("window", 6.0, true), ("scale-down-delay", 0.0, true), ("scale-to-zero-pod-retention-period", 0.0, false)]
    {
        let Some((key, value)) = scaling(annotations, name) else { continue };
        let at = || format!("{path}.{key}");
        match seconds(value) {
            None => all.push(Complaint::invalid(at(), value)),
            Some(given) if !(least..=LONGEST_WINDOW).contains(&given) => {
                all.push(Complaint::new(at(), format!("expected {least}s <= {value} <= 1h0m0s")));
            }
            Some(given) if whole && given.fract() != 0.0 => {
                all.push(Complaint::new(at(), "must be specified with at most second precision"));
            }
            Some(_) => {}
        }
    }
    all
}

fn whole_seconds(path: &str, annotations: &Annotations, name: &str) -> Option<Complaint> {
    let (key, value) =
        find(annotations, &format!("serving.knative.dev/{name}")).filter(|(_, value)| !value.is_empty())?;
    let at = format!("{path}.{key}");
    match seconds(value) {
        None => Some(Complaint::invalid(at, value)),
        Some(given) if given.fract() != 0.0 => {
            Some(Complaint::new(at, format!("{name}={value} is not at second precision")))
        }
        Some(given) if given < 0.0 => Some(Complaint::new(at, format!("{name}={value} must be positive"))),
        Some(_) => None,
    }
}

/// A length of time as Go writes it: `1h30m`, `2.5s`, `-10ms`.
pub fn seconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut total = (!rest.is_empty()).then_some(0.0)?;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..end])?;
        total += number * unit;
        rest = &rest[end..];
    }
    Some(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(pairs: &[(&str, &str)]) -> ObjectMeta {
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() }
    }

    #[test]
    fn templates() {
        for (name, value, want) in [
            ("min-scale", "3", ""),
            ("minScale", "-1", "expected 0 <= -1 <= 2147483647: a.autoscaling.knative.dev/minScale"),
            ("max-scale", "many", "invalid value: many: a.autoscaling.knative.dev/max-scale"),
            (
                "activation-scale",
                "1",
                "activation-scale=1 must be greater than 1: a.autoscaling.knative.dev/activation-scale",
            ),
            ("target", "0.001", "target 0.001 should be at least 0.01: a.autoscaling.knative.dev/target"),
            ("target-burst-capacity", "-2", "invalid value: -2: a.autoscaling.knative.dev/target-burst-capacity"),
            ("target-burst-capacity", "-1", ""),
            ("window", "5s", "expected 6s <= 5s <= 1h0m0s: a.autoscaling.knative.dev/window"),
            ("window", "6.5s", "must be specified with at most second precision: a.autoscaling.knative.dev/window"),
            ("window", "1m", ""),
            (
                "panic-threshold-percentage",
                "100",
                "expected 110 <= 100 <= 1000: a.autoscaling.knative.dev/panic-threshold-percentage",
            ),
        ] {
            let got: Vec<String> = of_template("a", &meta(&[(&format!("{GROUP}{name}"), value)]))
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(got.join("; "), want, "{name} {value}");
        }
        let crossed = meta(&[("autoscaling.knative.dev/min-scale", "3"), ("autoscaling.knative.dev/max-scale", "2")]);
        assert!(of_template("a", &crossed)[0].message.starts_with("max-scale=2 is less than min-scale=3"));
    }

    #[test]
    fn owners() {
        let misplaced = of_owner(&meta(&[("autoscaling.knative.dev/min-scale", "1")]));
        assert_eq!(misplaced[0].details, MISPLACED);
        let given = |value| of_owner(&meta(&[("serving.knative.dev/rollout-duration", value)]));
        assert_eq!(given("2m"), []);
        assert_eq!(given("1.5s")[0].message, "rollout-duration=1.5s is not at second precision");
        assert_eq!(given("-1s")[0].message, "rollout-duration=-1s must be positive");
    }

    #[test]
    fn lengths_of_time() {
        for (text, want) in [
            ("1h30m", Some(5400.0)),
            ("2.5s", Some(2.5)),
            ("-10ms", Some(-0.01)),
            ("0", Some(0.0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1d", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }
}
