//! What `dhow new` copies.

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/templates.rs"));
}

/// What stands for the function's name.
const NAME: &str = "{{name}}";

/// The languages there are templates for.
pub fn languages() -> Vec<&'static str> {
    let mut languages: Vec<&str> =
        embedded::FILES.iter().filter_map(|(path, _)| Some(path.split_once('/')?.0)).collect();
    languages.dedup();
    languages
}

/// Relative path and content of each file of a new function.
pub fn files(language: &str, name: &str) -> Vec<(&'static str, String)> {
    let of = |path: &&'static str| path.split_once('/').filter(|(l, _)| *l == language).map(|(_, rest)| rest);
    let files = embedded::FILES.iter().filter_map(|(path, content)| Some((of(path)?, content)));
    files.map(|(path, content)| (path, content.replace(NAME, name))).collect()
}

#[cfg(test)]
mod tests {
    use api::function::Runtime;

    use super::*;

    #[test]
    fn every_runtime_has_one() {
        let mut known = Runtime::ALL.map(Runtime::name);
        known.sort_unstable();
        assert_eq!(languages(), known);
        for runtime in Runtime::ALL {
            let files = files(runtime.name(), "hello");
            assert_eq!(Runtime::detect(files.iter().map(|(path, _)| *path)), Some(runtime));
            assert!(files.iter().all(|(_, content)| !content.contains(NAME)));
        }
    }
}
