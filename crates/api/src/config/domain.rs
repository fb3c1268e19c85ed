//! `config-domain`: each key is a domain, its value which Routes have their hosts in it.

use std::collections::BTreeMap;

use super::{Data, Reader};

type Labels = BTreeMap<String, String>;

/// The domains, each with the labels that a Route must have; none for the default one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Domains(Vec<(String, Labels)>);

impl Domains {
    pub const NAME: &str = "config-domain";
    /// Routes of this domain are not to be reached from outside.
    pub const LOCAL: &str = "svc.cluster.local";

    pub fn of(data: &Data) -> Self {
        Self::read(&mut Reader::new(data))
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let keys: Vec<String> = reader.data.keys().filter(|key| !key.starts_with('_')).cloned().collect();
        let mut domains: Vec<(String, Labels)> = keys
            .into_iter()
            .filter_map(|domain| {
                let labels = reader.get(&domain, Some(Labels::new()), |text| selector(text).map(Some))?;
                Some((domain, labels))
            })
            .collect();
        // The most specific first; the order of names decides between equals.
        domains.sort_by_key(|(_, labels)| std::cmp::Reverse(labels.len()));
        Self(domains)
    }

    /// The domain of a Route with these labels, unless nothing is said about it.
    pub fn find(&self, labels: Option<&Labels>) -> Option<&str> {
        let has = |(key, value): (&String, &String)| labels.and_then(|l| l.get(key)) == Some(value);
        self.0.iter().find(|(_, wanted)| wanted.iter().all(has)).map(|(domain, _)| domain.as_str())
    }
}

/// `selector:` and one label a line below it: the only YAML that is used here.
fn selector(text: &str) -> Result<Labels, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let wrong = || "is not \"selector:\" with a label on each line below it".to_owned();
    if lines.next() != Some("selector:") {
        return Err(wrong());
    }
    let unquoted = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    lines.map(|line| line.split_once(':').map(|(k, v)| (unquoted(k), unquoted(v))).ok_or_else(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_domain_is_chosen() {
        let data = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let labels =
            |text: &str| text.split(',').filter_map(|l| l.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
        let all: Data = data(&[
            ("_example", "anything"),
            ("example.com", ""),
            ("example.org", "selector:\n  app: prod\n"),
            ("blue.example.org", "selector:\n  app: prod\n  \"team\": 'blue'"),
            ("svc.cluster.local", "selector:\n  app: secret"),
        ]);
        for (of, want) in [
            ("", "example.com"),
            ("app=prod", "example.org"),
            ("app=prod,team=blue", "blue.example.org"),
            ("team=blue", "example.com"),
            ("app=secret", Domains::LOCAL),
        ] {
            assert_eq!(Domains::of(&all).find(Some(&labels(of))), Some(want), "{of}");
        }
        let wrong = data(&[("example.com", "selector: {a: b}")]);
        assert_eq!(super::super::complaints(Domains::NAME, &wrong).len(), 1);
        assert_eq!(Domains::of(&Data::new()).find(None), None);
    }
}
