//! A `plan.rs` decides and does nothing else: no waiting, no clock, no input or output, no client.

use super::sources::Source;

const FORBIDDEN: [&str; 12] = [
    "async ",
    ".await",
    "tokio",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::time::Instant",
    "std::time::SystemTime",
    "Timestamp::now",
    "kube::Client",
    "kube::Api",
    "kube::api::Api",
];

pub fn check(sources: &[Source]) -> Vec<String> {
    let plans = sources.iter().filter(|s| s.path.ends_with("/plan.rs"));
    let lines = plans.flat_map(|s| s.product_lines().into_iter().enumerate().map(move |(i, line)| (s, i, line)));
    lines
        .filter(|(_, _, line)| !line.trim_start().starts_with("//"))
        .filter_map(|(source, i, line)| {
            let word = FORBIDDEN.iter().find(|word| line.contains(**word))?;
            Some(format!("{}:{}: a plan must not use `{}`", source.path, i + 1, word.trim()))
        })
        .collect()
}
