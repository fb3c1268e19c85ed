//! Names of functions: part of a host name, so a DNS label that begins with a letter.

use std::path::Path;

use crate::{Failure, Result};

const LONGEST: usize = 63;

/// A name that a person chose.
pub fn check(name: &str) -> Result<()> {
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    let valid = name.len() <= LONGEST
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().copied().is_some_and(word)
        && bytes.iter().all(|c| word(*c) || *c == b'-');
    if valid {
        return Ok(());
    }
    let suggestion = from_text(name).map(|s| format!("try {s}")).unwrap_or_else(|| "try hello".to_owned());
    let rule = "up to 63 lower-case letters, digits and '-', beginning with a letter and not ending with '-'";
    Err(Failure::usage(format!("{name:?} cannot be a function's name: it takes {rule}")).next(suggestion))
}

/// A name after the folder that holds the source.
pub fn from_folder(folder: &Path) -> Result<String> {
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    from_text(&name).ok_or_else(|| {
        Failure::usage(format!("no function's name can be made from the folder {name:?}"))
            .next("choose one with --name")
    })
}

/// The nearest valid name, if anything is left of the text.
fn from_text(text: &str) -> Option<String> {
    let mut name = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    let name = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    let name = &name[..name.len().min(LONGEST)];
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checked() {
        let long = "a".repeat(64);
        for (name, want) in [
            ("hello", true),
            ("a", true),
            ("a-1", true),
            ("", false),
            ("1a", false),
            ("-a", false),
            ("a-", false),
            ("Hello", false),
            ("a.b", false),
            ("a/b", false),
            ("é", false),
            (&long[..63], true),
            (&long, false),
        ] {
            assert_eq!(check(name).is_ok(), want, "{name}");
        }
    }

    #[test]
    fn derived() {
        let long = format!("/x/{}-b", "a".repeat(62));
        for (folder, want) in [
            ("/x/hello", Some("hello")),
            ("/x/Hello_World", Some("hello-world")),
            ("/x/my fn (2)", Some("my-fn-2")),
            ("/x/2024-report", Some("report")),
            ("/x/--a--", Some("a")),
            ("/x/日本", None),
            ("/x/42", None),
            ("/", None),
        ] {
            assert_eq!(from_folder(Path::new(folder)).ok().as_deref(), want, "{folder}");
        }
        let derived = from_folder(Path::new(&long)).unwrap();
        assert!(check(&derived).is_ok() && derived.len() == 62, "{derived}");
    }
}
