//! The templates of host names: the part of Go's templates that operators use for them.

use std::collections::BTreeMap;

/// A template that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Field(Field),
    Annotation(String),
    Label(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Name,
    Namespace,
    Domain,
    Tag,
}

/// What the placeholders stand for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub domain: &'a str,
    pub tag: &'a str,
    pub annotations: Option<&'a BTreeMap<String, String>>,
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl Template {
    pub(super) fn host() -> Self {
        use Field::{Domain, Name, Namespace};
        let dot = || Part::Text(".".into());
        Self(vec![Part::Field(Name), dot(), Part::Field(Namespace), dot(), Part::Field(Domain)])
    }

    pub(super) fn tag() -> Self {
        Self(vec![Part::Field(Field::Tag), Part::Text("-".into()), Part::Field(Field::Name)])
    }

    /// Hosts of different Routes must differ, so a template needs both names, as annotations may replace them.
    pub(super) fn parse_host(text: &str) -> Result<Self, String> {
        let template = Self::parse(text)?;
        let has = |field| template.0.contains(&Part::Field(field));
        let is_free = template.0.iter().any(|part| matches!(part, Part::Annotation(_) | Part::Label(_)));
        if has(Field::Tag) {
            return Err("names {{.Tag}}, which only tag-template has".into());
        }
        if !has(Field::Domain) || !((has(Field::Name) && has(Field::Namespace)) || is_free) {
            return Err("must contain {{.Name}}, {{.Namespace}} and {{.Domain}}".into());
        }
        Ok(template)
    }

    pub(super) fn parse_tag(text: &str) -> Result<Self, String> {
        let template = Self::parse(text)?;
        let has = |field| template.0.contains(&Part::Field(field));
        if has(Field::Tag) && has(Field::Name) {
            Ok(template)
        } else {
            Err("must contain {{.Tag}} and {{.Name}}".into())
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = vec![];
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (inner, after) = after.split_once("}}").ok_or("has a {{ without its }}")?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(placeholder(inner.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    pub fn fill(&self, host: Host<'_>) -> String {
        let entry = |of: Option<&'_ BTreeMap<String, String>>, key: &String| {
            of.and_then(|of| of.get(key)).cloned().unwrap_or_default()
        };
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(Field::Name) => host.name.to_owned(),
            Part::Field(Field::Namespace) => host.namespace.to_owned(),
            Part::Field(Field::Domain) => host.domain.to_owned(),
            Part::Field(Field::Tag) => host.tag.to_owned(),
            Part::Annotation(key) => entry(host.annotations, key),
            Part::Label(key) => entry(host.labels, key),
        };
        self.0.iter().map(part).collect()
    }
}

fn placeholder(inner: &str) -> Result<Part, String> {
    match inner {
        ".Name" => return Ok(Part::Field(Field::Name)),
        ".Namespace" => return Ok(Part::Field(Field::Namespace)),
        ".Domain" => return Ok(Part::Field(Field::Domain)),
        ".Tag" => return Ok(Part::Field(Field::Tag)),
        _ => {}
    }
    let words: Vec<&str> = inner.split_whitespace().collect();
    let quoted = |word: &str| Some(word.strip_prefix('"')?.strip_suffix('"')?.to_owned());
    match words.as_slice() {
        ["index", ".Annotations", key] if quoted(key).is_some() => {
            Ok(Part::Annotation(quoted(key).unwrap_or_default()))
        }
        ["index", ".Labels", key] if quoted(key).is_some() => Ok(Part::Label(quoted(key).unwrap_or_default())),
        _ => Err(format!(
            "has {{{{{inner}}}}}, which is none of .Name, .Namespace, .Domain, .Tag, index .Annotations \"KEY\", index .Labels \"KEY\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let labels = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
        let host = Host {
            name: "hello",
            namespace: "default",
            domain: "example.com",
            labels: Some(&labels),
            ..Host::default()
        };
        for (text, want) in [
            ("{{.Name}}.{{.Namespace}}.{{.Domain}}", Ok("hello.default.example.com")),
            ("{{ .Name }}-{{.Namespace}}.{{.Domain}}", Ok("hello-default.example.com")),
            ("{{.Name}}.{{index .Labels \"team\"}}.{{.Domain}}", Ok("hello.blue.example.com")),
            ("{{.Name}}.{{.Domain}}", Err("must contain {{.Name}}, {{.Namespace}} and {{.Domain}}")),
            ("{{.Name}}.{{.Tag}}", Err("names {{.Tag}}, which only tag-template has")),
            ("{{.Name", Err("has a {{ without its }}")),
        ] {
            let got = Template::parse_host(text).map(|template| template.fill(host));
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
        assert!(Template::parse_host("{{if .Name}}").unwrap_err().starts_with("has {{if .Name}}, which is none of"));
        let tagged = Host { name: "hello", tag: "blue", ..Host::default() };
        assert_eq!(Template::parse_tag("{{.Name}}-{{.Tag}}").unwrap().fill(tagged), "hello-blue");
        assert!(Template::parse_tag("{{.Name}}").is_err());
    }
}
