//! Programs and libraries that people use with the Kubernetes API: how they are had and run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{Platform, kubectl, said, tail};

/// Where the sources of the clients' programs are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients")
}

/// What `tests/clients/install.sh` says of a client; `None`, and a word about it, where it cannot be had.
pub fn client(name: &str) -> Option<PathBuf> {
    let output = Command::new(sources().join("install.sh")).arg(name).stderr(Stdio::inherit()).output();
    let output = output.expect("the script runs");
    assert!(output.status.success(), "{name} is not installed: {}", said(&output));
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!path.is_empty()).then(|| path.into())
}

impl Platform {
    /// A program that finds the platform as people's programs do, and nothing of the one who tests.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.path()).current_dir(self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs it and panics with all it said when it fails.
    pub fn done(&self, mut command: Command) -> String {
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{command:?}: {}\n--- platform\n{}", said(&output), tail(&self.log()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs lines of a shell, one after the other, in which kubectl is ours. A line that begins with `!` must fail. Each
    /// of the wanted texts must be in what it says, where a row of blanks counts as one.
    pub fn shell(&self, rows: &[(&str, &[&str])]) {
        let bin = self.dir.path().join("bin");
        super::write_files(&bin, &[("kubectl", "#!/bin/sh\nPATH=\"$REAL_PATH\" exec \"$REAL_KUBECTL\" \"$@\"\n")]);
        let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bin.join("kubectl"), runs).expect("executable");
        let real_path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{real_path}", bin.display());
        for (line, wants) in rows {
            let (line, fails) = line.strip_prefix('!').map_or((*line, false), |line| (line, true));
            let mut command = self.program("sh");
            command.args(["-c", line]).env("PATH", &path).env("REAL_PATH", &real_path);
            command.env("REAL_KUBECTL", kubectl().expect("checked by the test"));
            let output = command.output().expect("sh runs");
            let told = squeezed(&output);
            assert_eq!(output.status.success(), !fails, "{line}\n{told}\n--- platform\n{}", tail(&self.log()));
            for want in *wants {
                assert!(told.contains(want), "{line}\n--- without {want:?}\n{told}");
            }
        }
    }
}

fn squeezed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}
