//! The forms of names that Kubernetes knows, and what it says of a text that is none of them. Pure.
//!
//! Every function returns all that is wrong, in Kubernetes' words; nothing means that the text is of the form.

const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;
const LONGEST_PORT: usize = 15;
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                           'my_value',  or '12345', regex used for validation is \
                           '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                         for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

const QUALIFIED_FORM: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must \
                              start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
                              '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') \
                              with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                          alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', \
                          regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                   'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const VARIABLE: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// What is wrong with one part of a host name.
pub fn label_faults(name: &str) -> Vec<String> {
    let long = (name.len() > LONGEST_LABEL).then(|| too_long(LONGEST_LABEL));
    let form = if is_subdomain_form(name) { "must not contain dots" } else { LABEL };
    long.into_iter().chain((!is_label_form(name)).then(|| form.to_owned())).collect()
}

/// What is wrong with a host name, which most names are.
pub fn subdomain_faults(name: &str) -> Vec<String> {
    let long = (name.len() > LONGEST_NAME).then(|| too_long(LONGEST_NAME));
    long.into_iter().chain((!is_subdomain_form(name)).then(|| SUBDOMAIN.to_owned())).collect()
}

/// What is wrong with a key of a label or annotation, or with a finalizer.
pub fn qualified_faults(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => (None, name),
        [prefix, name] => (Some(prefix), name),
        _ => return vec![QUALIFIED_FORM.to_owned()],
    };
    let mut faults = match prefix {
        None => vec![],
        Some("") => vec!["prefix part must be non-empty".to_owned()],
        Some(prefix) => subdomain_faults(prefix).into_iter().map(|why| format!("prefix part {why}")).collect(),
    };
    match name.len() {
        0 => faults.push("name part must be non-empty".to_owned()),
        n if n > LONGEST_LABEL => faults.push(format!("name part must be no more than {LONGEST_LABEL} bytes")),
        _ => {}
    }
    if !is_name_form(name) {
        faults.push(QUALIFIED.to_owned());
    }
    faults
}

/// What is wrong with the value of a label.
pub fn label_value_faults(text: &str) -> Vec<String> {
    let long = (text.len() > LONGEST_LABEL).then(|| too_long(LONGEST_LABEL));
    let fits = text.is_empty() || is_name_form(text);
    long.into_iter().chain((!fits).then(|| LABEL_VALUE.to_owned())).collect()
}

/// What is wrong with a name that also stands in programs: of a kind, of a version.
pub fn label_1035_faults(text: &str) -> Vec<String> {
    let long = (text.len() > LONGEST_LABEL).then(|| too_long(LONGEST_LABEL));
    let fits = is_label_form(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    long.into_iter().chain((!fits).then(|| LABEL_1035.to_owned())).collect()
}

/// What is wrong with a key of a config map or a secret, which becomes the name of a file.
pub fn key_faults(text: &str) -> Vec<String> {
    let long = (text.len() > LONGEST_NAME).then(|| too_long(LONGEST_NAME));
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let formed = (text.is_empty() || !text.chars().all(is_key)).then(|| KEY.to_owned());
    let climbs = match text {
        "." | ".." => Some(format!("must not be '{text}'")),
        text if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    };
    long.into_iter().chain(formed).chain(climbs).collect()
}

/// What is wrong with the name of an environment variable.
pub fn variable_faults(text: &str) -> Vec<String> {
    let empty = text.is_empty().then(|| "environment variable name must be non-empty".to_owned());
    let fits = text.chars().all(|c| matches!(c, ' '..='~') && c != '=');
    empty.into_iter().chain((!fits).then(|| VARIABLE.to_owned())).collect()
}

/// What is wrong with the name of a container's port.
pub fn port_name_faults(text: &str) -> Vec<String> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let faults = [
        (text.len() > LONGEST_PORT, "must be no more than 15 characters"),
        (
            text.is_empty() || !text.chars().all(known),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (!text.contains(|c: char| c.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (text.contains("--"), "must not contain consecutive hyphens"),
        (text.starts_with('-') || text.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    faults.into_iter().filter(|(wrong, _)| *wrong).map(|(_, why)| why.to_owned()).collect()
}

fn too_long(most: usize) -> String {
    format!("must be no more than {most} bytes")
}

fn is_label_form(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain_form(text: &str) -> bool {
    text.split('.').all(is_label_form)
}

fn is_name_form(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && end(text.chars().next())
        && end(text.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let (long, longer) = ("x".repeat(64), "x".repeat(254));
        for (text, label, subdomain, qualified) in [
            ("abc", vec![], vec![], vec![]),
            ("a-b.c", vec!["must not contain dots"], vec![], vec![]),
            ("-a", vec![LABEL], vec![SUBDOMAIN], vec![QUALIFIED]),
            ("A", vec![LABEL], vec![SUBDOMAIN], vec![]),
            ("", vec![LABEL], vec![SUBDOMAIN], vec!["name part must be non-empty", QUALIFIED]),
            ("a.example/B_c", vec![LABEL], vec![SUBDOMAIN], vec![]),
            ("/a", vec![LABEL], vec![SUBDOMAIN], vec!["prefix part must be non-empty"]),
            ("a/b/c", vec![LABEL], vec![SUBDOMAIN], vec![QUALIFIED_FORM]),
            (&long, vec!["must be no more than 63 bytes"], vec![], vec!["name part must be no more than 63 bytes"]),
            (
                &longer,
                vec!["must be no more than 63 bytes"],
                vec!["must be no more than 253 bytes"],
                vec!["name part must be no more than 63 bytes"],
            ),
        ] {
            assert_eq!(label_faults(text), label, "{text}");
            assert_eq!(subdomain_faults(text), subdomain, "{text}");
            assert_eq!(qualified_faults(text), qualified, "{text}");
        }
    }

    #[test]
    fn forms() {
        type Faults = fn(&str) -> Vec<String>;
        for (faults, good, bad, want) in [
            (label_faults as Faults, "a-1", "a.b", "must not contain dots"),
            (label_1035_faults, "a-1", "1a", "a DNS-1035 label must"),
            (subdomain_faults, "a.b", "a..b", "a lowercase RFC 1123 subdomain must"),
            (qualified_faults, "a.b/C_d", "/x", "prefix part must be non-empty"),
            (label_value_faults, "", "-", "a valid label must"),
            (key_faults, "a_B.c", "..x", "must not start with '..'"),
            (variable_faults, "A b", "A=b", "a valid environment variable name must"),
            (port_name_faults, "http-1", "80", "must contain at least one letter (a-z)"),
            (port_name_faults, "a", "a--b", "must not contain consecutive hyphens"),
        ] {
            assert!(faults(good).is_empty(), "{good}: {:?}", faults(good));
            assert!(faults(bad).iter().any(|why| why.starts_with(want)), "{bad}: {:?}", faults(bad));
        }
    }
}
