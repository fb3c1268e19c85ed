//! `dhow new`: the folder of a new function. Never overwrites.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::args::NewArgs;
use crate::{Context, Failure, Result, names, templates};

pub fn run(context: &Context, args: &NewArgs) -> Result<()> {
    let NewArgs { language, name } = args;
    write(Path::new(""), language, name)?;
    context.output.words(&format!("{name}/ is a new {language} function.\nnext: dhow deploy {name}"));
    Ok(())
}

fn write(parent: &Path, language: &str, name: &str) -> Result<()> {
    let languages = templates::languages();
    if !languages.contains(&language) {
        let known = languages.join(", ");
        return Err(Failure::usage(format!("there is no template for {language:?}; there is one for: {known}")));
    }
    names::check(name)?;
    let folder = parent.join(name);
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", folder.display()));
    let taken = match fs::read_dir(&folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => true,
        Err(e) => return Err(failed(e)),
    };
    if taken {
        let what = format!("{} is there already, and nothing is overwritten", folder.display());
        return Err(Failure::usage(what).next("choose another name, or remove it"));
    }
    for (path, content) in templates::files(language, name) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&folder)).map_err(failed)?;
        // Made new or not at all, whoever else is at work in there.
        let file = fs::File::create_new(&path).and_then(|mut file| file.write_all(content.as_bytes()));
        file.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        fs::create_dir(parent.join("empty")).unwrap();
        fs::create_dir(parent.join("full")).unwrap();
        fs::write(parent.join("full/x"), "mine").unwrap();
        fs::write(parent.join("file"), "mine").unwrap();
        for (language, name, want) in [
            ("python", "hello", ""),
            ("node", "web", ""),
            ("python", "empty", ""),
            ("python", "hello", "is there already"),
            ("node", "full", "is there already"),
            ("node", "file", "is there already"),
            ("cobol", "x", "there is one for: node, python"),
            ("python", "Bad_Name", "cannot be a function's name"),
            ("python", "../x", "cannot be a function's name"),
        ] {
            let got = write(parent, language, name).map_or_else(|f| f.what, |()| String::new());
            assert!(if want.is_empty() { got.is_empty() } else { got.contains(want) }, "{language} {name}: {got}");
        }
        assert_eq!(fs::read_to_string(parent.join("full/x")).unwrap(), "mine");
        assert!(fs::read_to_string(parent.join("hello/main.py")).unwrap().contains("def handle"));
        assert!(fs::read_to_string(parent.join("web/package.json")).unwrap().contains("\"web\""));
    }
}
