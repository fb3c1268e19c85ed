//! What is done with data files while no platform has them open, or beside one that has.
//!
//! Owns: where they are, and the words about them. Must not know: what they look like inside.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use store::StoreError;

/// The objects of a platform, in its data directory.
const FILE: &str = "objects.db";

pub fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

fn data_dir(named: Option<&Path>) -> Result<PathBuf> {
    let default = || cli::default_data_dir().context("no home folder: say where with --data-dir");
    named.map_or_else(default, |dir| Ok(dir.to_owned()))
}

/// A copy from the folder itself; whether a platform uses it does not matter.
pub fn backup(args: &cli::BackupArgs, folder: &Path) -> Result<()> {
    store::backup(&file(folder), &args.file)?;
    eprintln!("the backup is in {}", args.file.display());
    Ok(())
}

pub fn restore(args: &cli::RestoreArgs, now: jiff::Timestamp) -> Result<()> {
    let folder = data_dir(args.data_dir.as_deref())?;
    daemon::files::create_private_dir(&folder)?;
    let path = file(&folder);
    let suffix = format!(".before-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let restored = match store::restore(&args.file, &path, &suffix, floor(now), apiserver::examine) {
        Ok(restored) => restored,
        Err(StoreError::Locked { .. }) => bail!(
            "the platform in {} is running, and what its parts know would not be what is restored; stop it, restore, \
             and start it again",
            folder.display()
        ),
        Err(error) => return Err(error.into()),
    };
    eprintln!("{} objects were restored into {}", restored.entries, path.display());
    if let Some(aside) = restored.aside {
        eprintln!("what was there before is in {}", aside.display());
    }
    Ok(())
}

/// A revision above all that were given out in the past, even by a platform whose data is lost: no platform writes a
/// million objects a second for years.
fn floor(now: jiff::Timestamp) -> store::Revision {
    u64::try_from(now.as_second()).unwrap_or(0) << 20
}

pub fn check(args: &cli::CheckArgs) -> Result<()> {
    let path = match &args.file {
        Some(file) => file.clone(),
        None => file(&data_dir(args.data_dir.as_deref())?),
    };
    let report = store::check(&path, apiserver::examine)?;
    match args.format.format {
        cli::Format::Json => {
            let json = json!({"file": path, "schemaVersion": report.version, "objects": report.entries,
                              "problems": report.problems});
            println!("{json:#}");
        }
        cli::Format::Text if report.problems.is_empty() => {
            println!("{}: {} objects, schema {}, all sound", path.display(), report.entries, report.version);
        }
        cli::Format::Text => println!("{}:\n  {}", path.display(), report.problems.join("\n  ")),
    }
    match report.problems.len() {
        0 => Ok(()),
        many => bail!("{many} problems; restore a backup with: dhow restore FILE"),
    }
}
