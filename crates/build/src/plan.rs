//! What a build does, decided from the tree of its source. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::build::{BuildSpec, reason};
use api::function::Runtime;
use sha2::{Digest, Sha256};

/// Files whose content decides something; the shell reads these and no others.
pub const MANIFESTS: [&str; 5] =
    ["package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc", "requirements.txt"];
/// Changed when the same inputs would make another layer.
const CACHE_FORMAT: &str = "1";
/// The lines of a failing step that people get to see.
pub const LOG_LINES: usize = 20;
/// A line longer than this is cut: a condition is no place for it.
const LINE_BYTES: usize = 500;

/// The unpacked source.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Every file and link, relative, `/` between the parts.
    pub files: BTreeSet<String>,
    /// The content of those [`MANIFESTS`] that are regular files.
    pub manifests: BTreeMap<&'static str, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildPlan {
    pub runtime: Runtime,
    pub handler: String,
    pub dependencies: Option<Dependencies>,
}

/// Packages to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependencies {
    /// The file that names them, for messages.
    pub manifest: &'static str,
    /// Everything that the result depends on; `None` when it also depends on other files of the source.
    pub inputs: Option<Vec<u8>>,
}

/// The author's to mend: what climbs into the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The steps for this source, or why there are none.
pub fn plan(spec: &BuildSpec, tree: &Tree) -> Result<BuildPlan, Refusal> {
    if tree.files.is_empty() {
        return Err(Refusal::new(reason::SOURCE_INVALID, "the source is empty: there is no file in it"));
    }
    let top = tree.files.iter().map(String::as_str).filter(|path| !path.contains('/'));
    let runtime = spec.runtime.or_else(|| Runtime::detect(top)).ok_or_else(|| {
        let message = "there is no package.json, *.py, index.mjs or index.js at the top of the source; \
                       add one or name the runtime: --runtime python or node";
        Refusal::new(reason::RUNTIME_UNKNOWN, message)
    })?;
    let handler = spec.handler.clone().unwrap_or_else(|| runtime.default_handler().to_owned());
    let dependencies = match runtime {
        Runtime::Python => {
            check_python_handler(&handler, tree)?;
            python_dependencies(tree)
        }
        Runtime::Node => {
            let package = package_json(tree)?;
            check_node_handler(&handler, &package, tree)?;
            node_dependencies(&package, tree)
        }
    };
    Ok(BuildPlan { runtime, handler, dependencies })
}

impl Dependencies {
    /// The name under which the installed layer is found again; never shared between tenants, since installing runs
    /// the author's code.
    pub fn cache_key(&self, namespace: &str, runtime: Runtime, interpreter: &str) -> Option<String> {
        Some(cache_key(namespace, runtime, interpreter, self.inputs.as_ref()?))
    }
}

/// One name for what `interpreter`, exactly named, makes of these inputs for this tenant.
pub fn cache_key(namespace: &str, runtime: Runtime, interpreter: &str, inputs: &[u8]) -> String {
    let mut hash = Sha256::new();
    let parts = [CACHE_FORMAT, namespace, runtime.name(), interpreter, std::env::consts::ARCH];
    for part in parts.map(str::as_bytes).into_iter().chain([inputs]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// Whether the image may lie there: anybody who may make a Build could otherwise write into another tenant's images.
pub fn check_repository(namespace: &str, repository: &str) -> Result<(), Refusal> {
    if repository.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/')) {
        return Ok(());
    }
    let message = format!("spec.repository is {repository}, which is not in the namespace {namespace}");
    Err(Refusal::new(reason::SOURCE_INVALID, message))
}

impl BuildPlan {
    /// The program that runs in the sandbox, if anything has to. It starts in the source; what it makes appears in
    /// `app` and `deps` of the folder that the variable [`RESULT`] names.
    pub fn command(&self, install: bool) -> Option<Vec<String>> {
        let install = install && self.dependencies.is_some();
        let local = self.dependencies.as_ref().is_some_and(|dependencies| dependencies.inputs.is_none());
        let script = match (self.runtime, install) {
            (Runtime::Python, true) => [PIP, COMPILE_DEPS, COPY, COMPILE_CODE].concat(),
            (Runtime::Python, false) => [COPY, COMPILE_CODE].concat(),
            (Runtime::Node, true) if local => [COPY_ALL, NPM_INSTALL, UNLINK].concat(),
            (Runtime::Node, true) => [COPY_MANIFESTS, NPM_INSTALL].concat(),
            (Runtime::Node, false) => return None,
        };
        Some(shell(script))
    }

    /// The program that runs in a pod on the runtime's base image: packages, and the adapter's bytecode, neither of which
    /// depends on the code. The code itself goes into the image as it came.
    pub fn cluster_command(&self) -> Option<Vec<String>> {
        let local = self.dependencies.as_ref().is_some_and(|dependencies| dependencies.inputs.is_none());
        let script = match (self.runtime, &self.dependencies) {
            (Runtime::Python, Some(_)) => [PIP, COMPILE_DEPS, COMPILE_ADAPTER].concat(),
            (Runtime::Python, None) => COMPILE_ADAPTER.to_owned(),
            (Runtime::Node, Some(_)) if local => [COPY_ALL, NPM_INSTALL, UNLINK].concat(),
            (Runtime::Node, Some(_)) => [COPY_MANIFESTS, NPM_INSTALL].concat(),
            (Runtime::Node, None) => return None,
        };
        Some(shell(script))
    }

    /// The file that names the packages.
    pub fn manifest(&self) -> Option<&'static str> {
        self.dependencies.as_ref().map(|dependencies| dependencies.manifest)
    }

    /// What the result of [`BuildPlan::cluster_command`] depends on; `None` when that includes the rest of the source.
    pub fn cluster_inputs(&self) -> Option<&[u8]> {
        match &self.dependencies {
            Some(dependencies) => dependencies.inputs.as_deref(),
            None => Some(&[]),
        }
    }
}

fn shell(script: String) -> Vec<String> {
    vec!["/bin/sh".into(), "-euc".into(), script]
}

// The scripts find the result's folder by a variable, whose value is translated where a sandbox has no mounts, and the
// tools by others, which an image may have anywhere.
pub const RESULT: &str = "RESULT";
pub const PYTHON: &str = "PYTHON";
pub const NPM: &str = "NPM";
/// The folder of the adapter, where it is part of the image.
pub const ADAPTER: &str = "ADAPTER";

// Isolated, so that a `json.py` of the author's is not what pip imports.
const PIP: &str = r#"
"$PYTHON" -I -m pip install --target "$RESULT/deps" --requirement requirements.txt --no-input \
    --disable-pip-version-check --no-cache-dir --progress-bar off --no-warn-script-location --no-compile \
    --root-user-action ignore
mkdir -p "$RESULT/deps"
"#;
// Bytecode made now is not made at every cold start. What does not compile is found, and told, when it is loaded.
const COMPILE_DEPS: &str = r#"
"$PYTHON" -I -m compileall -qq --invalidation-mode unchecked-hash \
    -s "$RESULT/deps" -p /deps/python "$RESULT/deps" || true
"#;
const COMPILE_ADAPTER: &str = r#"
cp -R "$ADAPTER" "$RESULT/dhow"
"$PYTHON" -I -m compileall -qq --invalidation-mode unchecked-hash \
    -s "$RESULT/dhow" -p /dhow/python "$RESULT/dhow" || true
"#;
const COPY: &str = r#"
mkdir "$RESULT/app"
cp -R . "$RESULT/app"
"#;
const COMPILE_CODE: &str = r#"
"$PYTHON" -I -m compileall -qq --invalidation-mode unchecked-hash \
    -s "$RESULT/app" -p /app "$RESULT/app" || true
"#;
const COPY_MANIFESTS: &str = r#"
mkdir "$RESULT/deps"
for file in package.json package-lock.json npm-shrinkwrap.json .npmrc; do
    if [ -f $file ]; then cp $file "$RESULT/deps"; fi
done
"#;
// For packages that lie in the source.
const COPY_ALL: &str = r#"
mkdir "$RESULT/deps"
cp -R . "$RESULT/deps"
"#;
const NPM_INSTALL: &str = r#"
cd "$RESULT/deps"
if [ -f package-lock.json ] || [ -f npm-shrinkwrap.json ]; then how=ci; else how=install; fi
"$NPM" $how --omit=dev --no-audit --no-fund --no-update-notifier --no-progress --cache "$RESULT/cache"
"#;
// Only `node_modules` is kept, so what npm links into the source is copied.
const UNLINK: &str = r#"
find node_modules -type l ! -path '*/.bin/*' | while read -r link; do
    package=$(readlink -f "$link")
    rm "$link"
    cp -R "$package" "$link"
done
"#;

fn check_python_handler(handler: &str, tree: &Tree) -> Result<(), Refusal> {
    let Some((module, _)) = handler.rsplit_once('.').filter(|(module, name)| !module.is_empty() && !name.is_empty())
    else {
        let message = format!("spec.handler is {handler:?}; write it as module.function, such as main.handle");
        return Err(Refusal::new(reason::HANDLER_MISSING, message));
    };
    let path = module.replace('.', "/");
    let file = format!("{path}.py");
    if tree.files.contains(&file) || tree.files.contains(&format!("{path}/__init__.py")) {
        return Ok(());
    }
    let message = format!("{file} is not in the source; add it or set spec.handler, which is {handler}");
    Err(Refusal::new(reason::HANDLER_MISSING, message))
}

fn python_dependencies(tree: &Tree) -> Option<Dependencies> {
    let bytes = tree.manifests.get("requirements.txt")?;
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    if lines.is_empty() {
        return None;
    }
    let elsewhere = lines.iter().any(|line| {
        let other = ["-r", "-c", "-e", "--requirement", "--constraint", "--editable", ".", "/"];
        other.iter().any(|prefix| line.starts_with(prefix)) || line.contains("file:")
    });
    let inputs = (!elsewhere).then(|| lines.join("\n").into_bytes());
    Some(Dependencies { manifest: "requirements.txt", inputs })
}

fn package_json(tree: &Tree) -> Result<serde_json::Value, Refusal> {
    let Some(bytes) = tree.manifests.get("package.json") else { return Ok(serde_json::Value::Null) };
    let parsed = serde_json::from_slice::<serde_json::Value>(bytes).map_err(|error| error.to_string());
    parsed.and_then(|v| if v.is_object() { Ok(v) } else { Err("it is no object".into()) }).map_err(|error| {
        Refusal::new(reason::SOURCE_INVALID, format!("package.json is not valid: {error}; correct it"))
    })
}

fn check_node_handler(handler: &str, package: &serde_json::Value, tree: &Tree) -> Result<(), Refusal> {
    let there = |file: &str| tree.files.contains(file);
    let missing = |message: String| Err(Refusal::new(reason::HANDLER_MISSING, message));
    if let Some((file, _)) = handler.rsplit_once('.') {
        return match [".mjs", ".js", ".cjs"].iter().any(|ending| there(&format!("{file}{ending}"))) {
            true => Ok(()),
            false => missing(format!("{file}.mjs or {file}.js is not in the source; add it or set spec.handler")),
        };
    }
    let main = package["main"].as_str().map(|main| main.trim_start_matches("./").trim_end_matches('/'));
    match main.filter(|main| !main.is_empty()) {
        Some(main) => {
            let found = ["", ".mjs", ".js", ".cjs", "/index.mjs", "/index.js", "/index.cjs"];
            match found.iter().any(|ending| there(&format!("{main}{ending}"))) {
                true => Ok(()),
                false => {
                    missing(format!("{main}, the main of package.json, is not in the source; add it or correct main"))
                }
            }
        }
        None if ["index.mjs", "index.js", "index.cjs"].iter().any(|file| there(file)) => Ok(()),
        None => missing("index.mjs or index.js is not in the source; add one or set main in package.json".into()),
    }
}

fn node_dependencies(package: &serde_json::Value, tree: &Tree) -> Option<Dependencies> {
    // Whoever sends their packages along has installed them.
    let vendored = tree.files.iter().any(|path| path.starts_with("node_modules/"));
    let named = ["dependencies", "optionalDependencies"];
    let some = named.iter().any(|field| package[*field].as_object().is_some_and(|packages| !packages.is_empty()));
    if vendored || !some {
        return None;
    }
    let mut inputs = vec![];
    for name in MANIFESTS.iter().filter(|name| **name != "requirements.txt") {
        let content = tree.manifests.get(name).map(Vec::as_slice).unwrap_or_default();
        inputs.extend((content.len() as u64).to_le_bytes());
        inputs.extend(content);
    }
    let is_local = |version: &serde_json::Value| {
        let elsewhere = ["file:", "link:", "./", "../", "/", "~/"];
        version.as_str().is_some_and(|version| elsewhere.iter().any(|prefix| version.starts_with(prefix)))
    };
    let packages = named.iter().filter_map(|field| package[*field].as_object());
    let local = packages.flat_map(|packages| packages.values()).any(is_local);
    Some(Dependencies { manifest: "package.json", inputs: (!local).then_some(inputs) })
}

/// The end of a step's output, as people get to see it.
pub fn log_tail(output: &str) -> Vec<String> {
    let lines: Vec<&str> = output.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let cut = |line: &&str| {
        let end = line.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= LINE_BYTES).last();
        line[..end.unwrap_or_default()].to_owned()
    };
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(cut).collect()
}

/// How a step in the sandbox ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    Exited(i32),
    OutOfMemory { limit_bytes: u64 },
    TooLarge { limit_bytes: u64 },
    TooMany { limit: u64 },
    TimedOut { seconds: u64 },
}

/// What the author is told about a step that failed.
pub fn step_failure(end: StepEnd, manifest: Option<&str>, log: &[String]) -> Refusal {
    let what = match manifest {
        Some(manifest) => format!("installing the packages of {manifest}"),
        None => "preparing the source".to_owned(),
    };
    if log.iter().any(|line| line.contains("No module named pip")) {
        let message = "pip is not installed where the build runs; there, run: apt-get install python3-pip";
        return Refusal::new(reason::DEPENDENCIES_FAILED, message);
    }
    match end {
        StepEnd::TimedOut { seconds } => {
            Refusal::new(reason::TIMED_OUT, format!("{what} took longer than {seconds} s"))
        }
        StepEnd::OutOfMemory { limit_bytes } => {
            let message = format!("{what} needed more than {} MiB of memory", limit_bytes >> 20);
            Refusal::new(reason::DEPENDENCIES_FAILED, message)
        }
        StepEnd::TooLarge { limit_bytes } => {
            let message = format!("{what} made more than {} MiB of files", limit_bytes >> 20);
            Refusal::new(reason::DEPENDENCIES_FAILED, message)
        }
        StepEnd::TooMany { limit } => {
            Refusal::new(reason::DEPENDENCIES_FAILED, format!("{what} made more than {limit} files"))
        }
        StepEnd::Exited(code) => {
            let message = match cause(log) {
                Some(line) => format!("{what} failed: {line}"),
                None => format!("{what} failed with exit code {code}"),
            };
            Refusal::new(reason::DEPENDENCIES_FAILED, message)
        }
    }
}

/// The line that says most: the last error of pip's, or npm's first that is more than a code.
fn cause(log: &[String]) -> Option<&str> {
    let pip = log.iter().rev().find_map(|line| line.trim_start().strip_prefix("ERROR: ").or(exception(line)));
    let npm = || {
        let texts =
            log.iter().filter_map(|line| line.strip_prefix("npm error ").or_else(|| line.strip_prefix("npm ERR! ")));
        texts.map(str::trim).find(|text| !text.starts_with("code ") && !text.starts_with("errno ") && !text.is_empty())
    };
    let said =
        || log.iter().rev().map(String::as_str).find(|line| !["hint:", "note:"].iter().any(|h| line.starts_with(h)));
    pip.or_else(npm).or_else(said)
}

/// The last line of a Python traceback, which pip indents below its own words.
fn exception(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let (name, _) = line.split_once(": ")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '_');
    (is_name && (name.ends_with("Error") || name.ends_with("Exception"))).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let manifest = |path: &str| MANIFESTS.into_iter().find(|m| *m == path);
        Tree {
            files: files.iter().map(|(path, _)| (*path).to_owned()).collect(),
            manifests: files.iter().filter_map(|(p, text)| Some((manifest(p)?, text.as_bytes().to_vec()))).collect(),
        }
    }

    fn check(
        files: &[(&str, &str)],
        runtime: Option<Runtime>,
        handler: Option<&str>,
        want: Result<&str, (&str, &str)>,
    ) {
        let spec = BuildSpec { runtime, handler: handler.map(str::to_owned), ..BuildSpec::default() };
        match (plan(&spec, &tree(files)), want) {
            (Ok(plan), Ok(want)) => {
                let dependencies = plan.dependencies.as_ref().map_or("-", |d| d.manifest);
                assert_eq!(format!("{} {} {dependencies}", plan.runtime.name(), plan.handler), want, "{files:?}");
            }
            (Err(refusal), Err((reason, part))) => {
                assert_eq!(refusal.reason, reason, "{files:?}: {}", refusal.message);
                assert!(refusal.message.contains(part), "{} has no {part:?}", refusal.message);
            }
            (got, want) => panic!("{files:?}: got {got:?}, want {want:?}"),
        }
    }

    #[test]
    fn plans() {
        let (python, node) = (Some(Runtime::Python), Some(Runtime::Node));
        check(&[("main.py", "")], None, None, Ok("python main.handle -"));
        check(&[("main.py", ""), ("requirements.txt", "# none\n\n")], None, None, Ok("python main.handle -"));
        check(
            &[("main.py", ""), ("requirements.txt", "idna==3.10\n")],
            None,
            None,
            Ok("python main.handle requirements.txt"),
        );
        check(&[("pkg/__init__.py", ""), ("x.py", "")], None, Some("pkg.run"), Ok("python pkg.run -"));
        check(&[("pkg/fn.py", "")], python, Some("pkg.fn.run"), Ok("python pkg.fn.run -"));
        check(&[("index.mjs", "")], None, None, Ok("node default -"));
        check(&[("index.js", ""), ("package.json", "{}")], None, None, Ok("node default -"));
        check(&[("lib/a.js", ""), ("package.json", r#"{"main": "./lib/a"}"#)], None, None, Ok("node default -"));
        check(&[("api.mjs", "")], node, Some("api.run"), Ok("node api.run -"));
        let needs = r#"{"dependencies": {"a": "1"}}"#;
        check(&[("index.js", ""), ("package.json", needs)], None, None, Ok("node default package.json"));
        check(&[("index.js", ""), ("package.json", needs), ("node_modules/a/x", "")], None, None, Ok("node default -"));
    }

    #[test]
    fn refusals() {
        let python = Some(Runtime::Python);
        check(&[], None, None, Err((reason::SOURCE_INVALID, "empty")));
        check(&[("README.md", "")], None, None, Err((reason::RUNTIME_UNKNOWN, "--runtime python or node")));
        check(&[("app.py", "")], None, None, Err((reason::HANDLER_MISSING, "main.py is not in the source")));
        check(&[("main.py", "")], None, Some("a.b.run"), Err((reason::HANDLER_MISSING, "a/b.py is not")));
        check(&[("main.py", "")], None, Some("main"), Err((reason::HANDLER_MISSING, "module.function")));
        check(&[("x.md", "")], python, None, Err((reason::HANDLER_MISSING, "main.py is not")));
        check(&[("package.json", "{}")], None, None, Err((reason::HANDLER_MISSING, "index.mjs or index.js")));
        check(&[("package.json", "{")], None, None, Err((reason::SOURCE_INVALID, "package.json is not valid")));
        check(&[("package.json", "[]")], None, None, Err((reason::SOURCE_INVALID, "it is no object")));
        check(
            &[("package.json", r#"{"main": "x.js"}"#)],
            None,
            None,
            Err((reason::HANDLER_MISSING, "x.js, the main of package.json")),
        );
        check(&[("index.mjs", "")], None, Some("api.run"), Err((reason::HANDLER_MISSING, "api.mjs or api.js")));
    }

    #[test]
    fn cache_keys() {
        let key = |requirements: &str, namespace: &str, version: &str| {
            let tree = tree(&[("main.py", ""), ("requirements.txt", requirements)]);
            let plan = plan(&BuildSpec::default(), &tree).unwrap();
            plan.dependencies.unwrap().cache_key(namespace, Runtime::Python, version)
        };
        let first = key("idna==3.10\n", "a", "3.11").unwrap();
        assert_eq!(key("# why\n  idna==3.10", "a", "3.11").as_ref(), Some(&first));
        for other in [key("idna==3.9", "a", "3.11"), key("idna==3.10", "b", "3.11"), key("idna==3.10", "a", "3.12")] {
            assert!(other.is_some_and(|other| other != first));
        }
        for depends_on_more in ["-r other.txt", "./wheel.whl", "a @ file:x", "--constraint=c.txt"] {
            assert_eq!(key(depends_on_more, "a", "3.11"), None, "{depends_on_more}");
        }
    }

    #[test]
    fn commands() {
        let plan = |runtime, manifest: Option<&'static str>| BuildPlan {
            runtime,
            handler: String::new(),
            dependencies: manifest.map(|manifest| Dependencies { manifest, inputs: None }),
        };
        for (plan, install, want) in [
            (plan(Runtime::Python, None), true, Some((false, true))),
            (plan(Runtime::Python, Some("requirements.txt")), true, Some((true, true))),
            (plan(Runtime::Python, Some("requirements.txt")), false, Some((false, true))),
            (plan(Runtime::Node, Some("package.json")), true, Some((true, false))),
            (plan(Runtime::Node, Some("package.json")), false, None),
            (plan(Runtime::Node, None), true, None),
        ] {
            let script = plan.command(install).map(|argv| argv[2].clone());
            let has = |text: &str| script.as_ref().is_some_and(|script| script.contains(text));
            let got = script.is_some().then(|| (has("pip install") || has("$NPM"), has("RESULT/app")));
            assert_eq!(got, want, "{plan:?}");
        }
    }

    #[test]
    fn failures() {
        let plan = BuildPlan {
            runtime: Runtime::Python,
            handler: "main.handle".into(),
            dependencies: Some(Dependencies { manifest: "requirements.txt", inputs: None }),
        };
        let (gone, stuck) = (StepEnd::Exited(1), StepEnd::TimedOut { seconds: 300 });
        let large = StepEnd::TooLarge { limit_bytes: 2 << 30 };
        let failed = reason::DEPENDENCIES_FAILED;
        for (end, log, reason, want) in [
            (gone, "x\nERROR: No matching distribution found for nope==1", failed, "failed: No matching distribution"),
            (gone, "npm error code E404\nnpm error 404 Not Found - nope", failed, "failed: 404 Not Found"),
            (gone, "something\nelse", failed, "failed: else"),
            (
                gone,
                "  RuntimeError: no\n  [end of output]\nnote: not pip's\nhint: see above",
                failed,
                "failed: RuntimeError: no",
            ),
            (gone, "", failed, "failed with exit code 1"),
            (gone, "/usr/bin/python3: No module named pip", failed, "apt-get install python3-pip"),
            (StepEnd::OutOfMemory { limit_bytes: 1 << 30 }, "", failed, "more than 1024 MiB of memory"),
            (large, "", failed, "more than 2048 MiB of files"),
            (StepEnd::TooMany { limit: 9 }, "", failed, "more than 9 files"),
            (stuck, "", reason::TIMED_OUT, "longer than 300 s"),
        ] {
            let refusal = step_failure(end, plan.manifest(), &log_tail(log));
            assert_eq!(refusal.reason, reason, "{log}");
            assert!(refusal.message.contains(want), "{}", refusal.message);
        }
    }

    #[test]
    fn log_tails() {
        let many: String = (0..50).map(|n| format!("line {n}\n\n")).collect();
        let tail = log_tail(&many);
        assert_eq!((tail.len(), tail[0].as_str(), tail[19].as_str()), (20, "line 30", "line 49"));
        assert_eq!(log_tail(&"ü".repeat(400))[0].len(), 500);
        assert!(log_tail("").is_empty());
    }
}
