//! What a Pod's manifest and its image mean for a Provider. Pure.
//!
//! What cannot be run is refused here, with the reason that the pod's status shows; nothing is ignored that would
//! change what the author meant to run.

use std::path::PathBuf;

use api::function::Runtime;
use api::image::{CODE_DIR, DEPS_DIR, label};
use api::names::DEFAULT_PORT;
use api::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use registry::image::{ImageConfig, ImageRef};
use runtime::{ContainerSpec, Limits, Mount, Network, Program, SandboxSpec, Serve};

/// Reasons of a container that waits, beside Kubernetes' own.
pub mod reason {
    pub use api::serving::reason::NO_PROVIDER;
    /// The image lies in the repository of another namespace.
    pub const IMAGE_FORBIDDEN: &str = "ImageForbidden";
    pub const INVALID_IMAGE_NAME: &str = "InvalidImageName";
    pub const IMAGE_PULL: &str = "ErrImagePull";
    pub const CONFIG: &str = "CreateContainerConfigError";
    pub const CREATE: &str = "CreateContainerError";
    pub const CREATING: &str = "ContainerCreating";
    pub const CRASH_LOOP: &str = "CrashLoopBackOff";
}

/// Why a pod is not run. Trying again without another manifest is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

fn no_provider(message: impl Into<String>) -> Refusal {
    Refusal { reason: reason::NO_PROVIDER, message: message.into() }
}

/// An unpacked image.
#[derive(Clone, Debug)]
pub struct Image {
    pub root: PathBuf,
    pub config: ImageConfig,
    /// Whether it brings installed dependencies.
    pub has_deps: bool,
}

/// A pod that this node can run as far as its manifest says.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Which of the Providers.
    pub provider: usize,
    pub image: ImageRef,
}

/// Reads the manifest alone; `classes` are the runtime classes of the Providers, `registry` the built-in one's host.
pub fn accept(pod: &Pod, classes: &[&str], registry: &str) -> Result<Accepted, Refusal> {
    let spec = spec(pod)?;
    let provider = match spec.runtime_class_name.as_deref().filter(|c| !c.is_empty()) {
        None => 0,
        Some(class) => classes.iter().position(|c| *c == class).ok_or_else(|| {
            no_provider(format!("no Provider of this node runs the runtime class {class}; it runs {}", list(classes)))
        })?,
    };
    if classes.is_empty() {
        return Err(no_provider("this node has no Provider"));
    }
    let container = only_container(spec)?;
    unsupported(spec, container)?;
    let image = container.image.as_deref().unwrap_or_default();
    let parsed: ImageRef =
        image.parse().map_err(|e| Refusal { reason: reason::INVALID_IMAGE_NAME, message: format!("{e}") })?;
    if !is_built_in(parsed.registry.as_deref(), registry) {
        return Err(no_provider(format!(
            "{image} is not in the built-in registry {registry}: only images that Dhow built are run here"
        )));
    }
    if parsed.digest().is_none() {
        return Err(no_provider(format!("{image} must be named by its digest (…@sha256:…)")));
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if parsed.namespace() != Some(namespace) {
        let message = format!("{image} belongs to another namespace; pods of {namespace} run images of {namespace}/…");
        return Err(Refusal { reason: reason::IMAGE_FORBIDDEN, message });
    }
    Ok(Accepted { provider, image: parsed })
}

/// The built-in registry listens on loopback unless told otherwise, and perhaps on another port since the image was
/// named.
fn is_built_in(host: Option<&str>, registry: &str) -> bool {
    let Some(host) = host else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let loopback = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    host == registry || loopback
}

fn spec(pod: &Pod) -> Result<&PodSpec, Refusal> {
    pod.spec.as_ref().ok_or_else(|| no_provider("the pod has no spec"))
}

fn only_container(spec: &PodSpec) -> Result<&Container, Refusal> {
    if spec.init_containers.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(no_provider("init containers are not run here"));
    }
    match spec.containers.as_slice() {
        [only] => Ok(only),
        many => Err(no_provider(format!("a pod of one container is run here, not of {}", many.len()))),
    }
}

fn unsupported(spec: &PodSpec, container: &Container) -> Result<(), Refusal> {
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let probes = [("livenessProbe", &container.liveness_probe), ("startupProbe", &container.startup_probe)]
        .map(|(n, p)| (n, p.is_some()));
    let found = [
        ("command", given(&container.command)),
        ("args", given(&container.args)),
        ("volumeMounts", container.volume_mounts.as_ref().is_some_and(|m| !m.is_empty())),
        ("volumeDevices", container.volume_devices.as_ref().is_some_and(|m| !m.is_empty())),
        ("lifecycle", container.lifecycle.is_some()),
        ("hostNetwork", spec.host_network == Some(true)),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
    ];
    let names: Vec<&str> = found.into_iter().chain(probes).filter(|(_, set)| *set).map(|(name, _)| name).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(no_provider(format!("container {}: {} cannot be had here", container.name, list(&names))))
}

/// What the Provider is asked for. `env` is complete.
pub fn sandbox(
    pod: &Pod,
    image: &Image,
    env: Vec<(String, String)>,
    defaults: &Limits,
) -> Result<SandboxSpec, Refusal> {
    let container = only_container(spec(pod)?)?;
    let name = container.image.as_deref().unwrap_or_default();
    let wanted = image.config.labels.get(label::RUNTIME).map(String::as_str);
    let program = match wanted.map(|name| (name, Runtime::parse(name))) {
        Some((_, Some(Runtime::Python))) => Program::Zygote { runtime: Runtime::Python.name().to_owned() },
        Some((_, Some(Runtime::Node))) => {
            Program::Exec { argv: ["/usr/bin/node", "/dhow/node/adapter.mjs"].map(str::to_owned).into() }
        }
        Some((other, None)) => {
            return Err(no_provider(format!("{name} is for the runtime {other}, which no Provider of this node has")));
        }
        None => return Err(no_provider(format!("{name} was not built by Dhow, and no Provider of this node runs it"))),
    };
    if let Some(version) = image.config.labels.get(label::CONTRACT).filter(|v| *v != api::image::CONTRACT) {
        return Err(no_provider(format!("{name} was built for version {version} of the adapter: deploy it again")));
    }
    let mount = |inside: &str| Mount {
        host: image.root.join(inside.trim_start_matches('/')),
        inside: inside.to_owned(),
        writable: false,
    };
    let mut mounts = vec![mount(CODE_DIR)];
    mounts.extend(image.has_deps.then(|| mount(DEPS_DIR)));
    let working_dir = container.working_dir.as_deref().filter(|d| !d.is_empty());
    let working_dir = working_dir.unwrap_or(match image.config.working_dir.as_str() {
        "" => CODE_DIR,
        set => set,
    });
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Ok(SandboxSpec {
        uid: text(&pod.metadata.uid),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        network: Network::Pod,
        containers: vec![ContainerSpec {
            name: container.name.clone(),
            program,
            env,
            working_dir: working_dir.to_owned(),
            mounts,
            limits: limits(container, defaults)?,
            // The adapters are handed a listener; see decision 6.
            serve: Serve::Socket,
        }],
    })
}

fn limits(container: &Container, defaults: &Limits) -> Result<Limits, Refusal> {
    let given = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let read = |name: &str, parse: fn(&_) -> Option<u64>| match given.and_then(|l| l.get(name)) {
        None => Ok(None),
        Some(quantity) => parse(quantity).filter(|n| *n > 0).map(Some).ok_or_else(|| Refusal {
            reason: reason::CONFIG,
            message: format!("container {}: the limit {name}={:?} is no quantity above 0", container.name, quantity.0),
        }),
    };
    let mut limits = defaults.clone();
    limits.memory_bytes = read("memory", quantity::units)?.or(defaults.memory_bytes);
    limits.cpu_millis = read("cpu", quantity::millis)?.or(defaults.cpu_millis);
    limits.tmp_bytes = read("ephemeral-storage", quantity::units)?.unwrap_or(defaults.tmp_bytes);
    Ok(limits)
}

/// The port a container is told to serve on.
pub fn port(container: &Container) -> u16 {
    let first = container.ports.as_ref().and_then(|p| p.first()).and_then(|p| u16::try_from(p.container_port).ok());
    first.unwrap_or(DEFAULT_PORT)
}

fn list(items: &[&str]) -> String {
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CLASSES: [&str; 1] = ["dhow-process"];
    const REGISTRY: &str = "127.0.0.1:5000";

    fn digest() -> String {
        registry::Digest::of(b"x").to_string()
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"runtimeClassName": "dhow-process", "containers": [
                {"name": "c", "image": format!("{REGISTRY}/default/hello@{}", digest())}]}
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn image(labels: &[(&str, &str)]) -> Image {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = ImageConfig { labels, working_dir: "/app".into(), ..ImageConfig::default() };
        Image { root: "/cache/x/rootfs".into(), config, has_deps: true }
    }

    #[test]
    fn manifests() {
        let check = |case: &str, change: &dyn Fn(&mut Value), want: &str| {
            let got = accept(&pod(|p| change(p)), &CLASSES, REGISTRY);
            let got = got.map_or_else(|r| format!("{}: {}", r.reason, r.message), |_| String::new());
            let fits = if want.is_empty() { got.is_empty() } else { got.contains(want) };
            assert!(fits, "{case}: {got:?}");
        };
        let image = |text: String| move |p: &mut Value| p["spec"]["containers"][0]["image"] = text.clone().into();
        check("fine", &|_| (), "");
        check("no class", &|p| p["spec"]["runtimeClassName"] = Value::Null, "");
        check("class", &|p| p["spec"]["runtimeClassName"] = "dhow-wasm".into(), "NoProvider: no Provider of this node");
        check("another port", &image(format!("127.0.0.1:41234/default/hello@{}", digest())), "");
        check("localhost", &image(format!("localhost:1/default/hello@{}", digest())), "");
        check("foreign registry", &image(format!("ghcr.io/default/hello@{}", digest())), "NoProvider: ghcr.io");
        check("no registry", &image(format!("default/hello@{}", digest())), "NoProvider");
        check("tag", &image(format!("{REGISTRY}/default/hello:1")), "NoProvider: 127.0.0.1:5000/default/hello:1 must");
        check("namespace", &image(format!("{REGISTRY}/other/hello@{}", digest())), "ImageForbidden");
        check("prefix", &image(format!("{REGISTRY}/default2/hello@{}", digest())), "ImageForbidden");
        check("bad name", &image("A//b".into()), "InvalidImageName");
        let second = json!([{"name": "a"}, {"name": "b"}]);
        check("several", &|p| p["spec"]["containers"] = second.clone(), "NoProvider: a pod of one container");
        check("init", &|p| p["spec"]["initContainers"] = json!([{"name": "i"}]), "NoProvider: init");
        check("args", &|p| p["spec"]["containers"][0]["args"] = json!(["x"]), "args cannot be had");
        let mounts = json!([{"name": "v", "mountPath": "/v"}]);
        check("volume", &|p| p["spec"]["containers"][0]["volumeMounts"] = mounts.clone(), "volumeMounts cannot");
        check("host", &|p| p["spec"]["hostNetwork"] = true.into(), "hostNetwork cannot");
    }

    #[test]
    fn programs() {
        let python = image(&[(label::RUNTIME, "python"), (label::CONTRACT, "1")]);
        let made = sandbox(&pod(|_| ()), &python, vec![("A".into(), "b".into())], &Limits::default()).unwrap();
        let container = &made.containers[0];
        assert_eq!((made.uid.as_str(), made.namespace.as_str(), made.name.as_str()), ("u", "default", "p"));
        assert_eq!(container.program, Program::Zygote { runtime: "python".into() });
        assert_eq!((container.serve, container.working_dir.as_str()), (Serve::Socket, "/app"));
        let mounts: Vec<_> = container.mounts.iter().map(|m| (m.host.to_str().unwrap(), &*m.inside)).collect();
        assert_eq!(mounts, [("/cache/x/rootfs/app", "/app"), ("/cache/x/rootfs/deps", "/deps")]);
        assert!(container.mounts.iter().all(|m| !m.writable));
        let node = Image { has_deps: false, ..image(&[(label::RUNTIME, "node")]) };
        let made = sandbox(&pod(|_| ()), &node, vec![], &Limits::default()).unwrap();
        let argv = ["/usr/bin/node", "/dhow/node/adapter.mjs"].map(str::to_owned).into();
        assert_eq!((&made.containers[0].program, made.containers[0].mounts.len()), (&Program::Exec { argv }, 1));
        for (labels, want) in [
            (&[][..], "was not built by Dhow"),
            (&[(label::RUNTIME, "cobol")][..], "the runtime cobol"),
            (&[(label::RUNTIME, "python"), (label::CONTRACT, "9")][..], "version 9"),
        ] {
            let refusal = sandbox(&pod(|_| ()), &image(labels), vec![], &Limits::default()).unwrap_err();
            assert!(refusal.reason == reason::NO_PROVIDER && refusal.message.contains(want), "{refusal:?}");
        }
    }

    #[test]
    fn resources() {
        let python = image(&[(label::RUNTIME, "python")]);
        let defaults = Limits { memory_bytes: Some(7), ..Limits::default() };
        let made = |limits: Value| {
            let pod = pod(|p| p["spec"]["containers"][0]["resources"] = json!({"limits": limits}));
            sandbox(&pod, &python, vec![], &defaults).map(|s| s.containers[0].limits.clone())
        };
        assert_eq!(made(json!({})), Ok(defaults.clone()));
        let all = made(json!({"memory": "128Mi", "cpu": "250m", "ephemeral-storage": "1M"})).unwrap();
        assert_eq!((all.memory_bytes, all.cpu_millis, all.tmp_bytes), (Some(128 << 20), Some(250), 1_000_000));
        assert_eq!(made(json!({"memory": "a lot"})).unwrap_err().reason, reason::CONFIG);
        assert_eq!(made(json!({"cpu": "0"})).unwrap_err().reason, reason::CONFIG);
    }
}
