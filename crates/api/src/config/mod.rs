//! What operators set in Knative's ConfigMaps, which are read live from Dhow's own namespace. Pure.
//!
//! One file per ConfigMap, each with its keys, their defaults and what they may be. A value that cannot be is refused where
//! Dhow serves the API itself; elsewhere the default takes its place, and [`complaints`] says so.

mod domain;
mod gc;
pub mod network;
mod template;

use std::collections::BTreeMap;

use jiff::SignedDuration;

pub use domain::Domains;
pub use gc::Gc;
pub use network::Network;
pub use template::{Host, Template};

/// The data of a ConfigMap.
pub type Data = BTreeMap<String, String>;

/// What is wrong with one key, and what it must be.
pub type Complaint = (String, String);

/// The ConfigMaps that are read.
pub const NAMES: [&str; 3] = [Network::NAME, Domains::NAME, Gc::NAME];

/// What is wrong with one of [`NAMES`].
pub fn complaints(name: &str, data: &Data) -> Vec<Complaint> {
    let mut reader = Reader::new(data);
    match name {
        Network::NAME => drop(Network::read(&mut reader)),
        Domains::NAME => drop(Domains::read(&mut reader)),
        Gc::NAME => drop(Gc::read(&mut reader)),
        _ => {}
    }
    reader.complaints
}

/// Reads keys and remembers what was wrong with them.
pub struct Reader<'a> {
    data: &'a Data,
    complaints: Vec<Complaint>,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a Data) -> Self {
        Self { data, complaints: vec![] }
    }

    /// The value of a key as `parse` understands it; absent, empty or senseless: the default.
    fn get<T>(&mut self, key: &str, default: T, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some(text) = self.data.get(key).map(|text| text.trim()).filter(|text| !text.is_empty()) else {
            return default;
        };
        parse(text).unwrap_or_else(|why| {
            self.complaints.push((key.to_owned(), format!("{text:?} {why}")));
            default
        })
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        self.get(key, default, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "enabled" => Ok(true),
            "false" | "disabled" => Ok(false),
            _ => Err("is neither true nor false".into()),
        })
    }

    /// A length of time, or that there is none.
    fn span_or_none(&mut self, key: &str, default: SignedDuration) -> Option<SignedDuration> {
        self.get(key, Some(default), |text| match text {
            gc::DISABLED => Ok(None),
            text => span(text).map(Some).ok_or_else(|| "is no duration, such as 30s or 5m".into()),
        })
    }
}

fn span(text: &str) -> Option<SignedDuration> {
    crate::serving::scaling::seconds(text).filter(|s| *s >= 0.0).map(SignedDuration::from_secs_f64)
}
