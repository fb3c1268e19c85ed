//! The image of a function on a cluster: what is set on top of its runtime's base image. Pure.
//!
//! The surprise: the interpreter is named without a folder unless something says where it is. Whoever starts the
//! container looks along the image's own PATH, which knows best.

use api::function::Runtime;
use api::image::{ADAPTER_DIR, CLUSTER_USER, CODE_DIR, CONTRACT, label};
use registry::image::ImageConfig;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How the interpreter is called: as configured, as the base's label says, or by its plain name.
pub fn interpreter(runtime: Runtime, configured: Option<&str>, base: &ImageConfig) -> String {
    let plain = match runtime {
        Runtime::Python => "python3",
        Runtime::Node => "node",
    };
    let labelled = base.labels.get(label::INTERPRETER).map(String::as_str);
    configured.or(labelled).filter(|name| !name.is_empty()).unwrap_or(plain).to_owned()
}

/// Where a runtime's adapter lies in the image, without the leading slash.
pub fn adapter_prefix(runtime: Runtime) -> String {
    format!("{}/{}", ADAPTER_DIR.trim_start_matches('/'), runtime.name())
}

pub fn config(base: &ImageConfig, runtime: Runtime, handler: &str, interpreter: &str) -> ImageConfig {
    let mut config = base.clone();
    let adapter = |file: &str| format!("{ADAPTER_DIR}/{}/{file}", runtime.name());
    config.entrypoint = match runtime {
        // Isolated, so that neither variables nor the code's folder decide what the adapter imports.
        Runtime::Python => vec![interpreter.to_owned(), "-I".into(), adapter("dhow_adapter.py"), "--port".into()],
        Runtime::Node => vec![interpreter.to_owned(), adapter("adapter.mjs"), "--port".into()],
    };
    config.cmd = vec![];
    config.working_dir = CODE_DIR.into();
    config.user = CLUSTER_USER.into();
    // The adapter reads PYTHONPATH as the place of the function's packages.
    config.env.retain(|(name, _)| !["DHOW_HANDLER", "PYTHONPATH"].contains(&name.as_str()));
    if !config.env.iter().any(|(name, _)| name == "PATH") {
        config.env.push(("PATH".into(), PATH.into()));
    }
    config.env.push(("DHOW_HANDLER".into(), handler.to_owned()));
    let labels = [(label::RUNTIME, runtime.name()), (label::HANDLER, handler), (label::CONTRACT, CONTRACT)];
    config.labels.extend(labels.map(|(name, value)| (name.to_owned(), value.to_owned())));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_on_a_base() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let base = ImageConfig {
            env: vec![pair("PATH", "/opt/bin"), pair("PYTHONPATH", "/elsewhere"), pair("LANG", "C.UTF-8")],
            entrypoint: vec!["docker-entrypoint.sh".into()],
            cmd: vec!["python3".into()],
            user: "root".into(),
            ..ImageConfig::default()
        };
        let set = config(&base, Runtime::Python, "main.handle", "python3");
        assert_eq!(set.entrypoint, ["python3", "-I", "/dhow/python/dhow_adapter.py", "--port"]);
        assert!(set.cmd.is_empty());
        assert_eq!((&*set.user, &*set.working_dir), ("65532:65532", "/app"));
        assert_eq!(set.env, [pair("PATH", "/opt/bin"), pair("LANG", "C.UTF-8"), pair("DHOW_HANDLER", "main.handle")]);
        assert_eq!(set.labels[label::RUNTIME], "python");
        let set = config(&ImageConfig::default(), Runtime::Node, "default", "/opt/node");
        assert_eq!(set.entrypoint, ["/opt/node", "/dhow/node/adapter.mjs", "--port"]);
        assert_eq!(set.env[0].0, "PATH");
    }

    #[test]
    fn where_the_interpreter_is() {
        let mut base = ImageConfig::default();
        assert_eq!(interpreter(Runtime::Python, None, &base), "python3");
        assert_eq!(interpreter(Runtime::Node, Some(""), &base), "node");
        base.labels.insert(label::INTERPRETER.into(), "/opt/python".into());
        assert_eq!(interpreter(Runtime::Python, None, &base), "/opt/python");
        assert_eq!(interpreter(Runtime::Python, Some("/mine"), &base), "/mine");
    }
}
