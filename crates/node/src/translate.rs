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
use runtime::{ContainerSpec, Limits, Mount, Network, Program, Root, SandboxSpec, Serve, Source, User, Volume};

use crate::environment::expand;
use crate::health::Probes;
use crate::volumes::mounts;

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
    pub const INITIALIZING: &str = "PodInitializing";
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
    /// Of each container, in the order of [`containers`].
    pub images: Vec<ImageRef>,
}

/// All of a pod's containers: those that the others wait for, and then the others.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
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
    unsupported(spec)?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let images =
        containers(spec).map(|container| image_of(container, namespace, registry)).collect::<Result<_, _>>()?;
    Ok(Accepted { provider, images })
}

fn image_of(container: &Container, namespace: &str, registry: &str) -> Result<ImageRef, Refusal> {
    let image = container.image.as_deref().unwrap_or_default();
    let parsed: ImageRef =
        image.parse().map_err(|e| Refusal { reason: reason::INVALID_IMAGE_NAME, message: format!("{e}") })?;
    if !parsed.is_built_in(registry) {
        return Err(no_provider(format!(
            "{image} is not in the built-in registry {registry}, and other registries' images are not run here"
        )));
    }
    if !parsed.is_for(namespace) {
        let message = format!("{image} belongs to another namespace; pods of {namespace} run images of {namespace}/…");
        return Err(Refusal { reason: reason::IMAGE_FORBIDDEN, message });
    }
    if parsed.digest().is_none() {
        return Err(no_provider(format!("{image} must be named by its digest (…@sha256:…)")));
    }
    Ok(parsed)
}

fn spec(pod: &Pod) -> Result<&PodSpec, Refusal> {
    pod.spec.as_ref().ok_or_else(|| no_provider("the pod has no spec"))
}

fn unsupported(spec: &PodSpec) -> Result<(), Refusal> {
    let of_pod = [
        ("hostNetwork", spec.host_network == Some(true)),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
    ];
    refuse_set("the pod", &of_pod)?;
    containers(spec).try_for_each(|container| {
        let found = [
            ("restartPolicy", container.restart_policy.is_some()),
            ("volumeDevices", container.volume_devices.as_ref().is_some_and(|m| !m.is_empty())),
            ("lifecycle", container.lifecycle.is_some()),
        ];
        refuse_set(&format!("container {}", container.name), &found)?;
        Probes::of(container).map(drop)
    })
}

fn refuse_set(of: &str, fields: &[(&str, bool)]) -> Result<(), Refusal> {
    let names: Vec<&str> = fields.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if names.is_empty() { Ok(()) } else { Err(no_provider(format!("{of}: {} cannot be had here", list(&names)))) }
}

/// What a container runs, and its whole environment.
pub struct Part {
    pub image: Image,
    pub env: Vec<(String, String)>,
}

/// What the Provider is asked for: `parts` are in the order of [`containers`].
pub fn sandbox(pod: &Pod, volumes: Vec<Volume>, parts: Vec<Part>, defaults: &Limits) -> Result<SandboxSpec, Refusal> {
    let spec = spec(pod)?;
    let inits = spec.init_containers.as_ref().map_or(0, Vec::len);
    let made = containers(spec).zip(parts).enumerate();
    let made = made.map(|(i, (container, part))| {
        Ok(ContainerSpec { init: i < inits, ..part_of(spec, container, part, defaults)? })
    });
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Ok(SandboxSpec {
        uid: text(&pod.metadata.uid),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        network: Network::Pod,
        volumes,
        containers: made.collect::<Result<_, _>>()?,
    })
}

fn part_of(
    pod: &PodSpec,
    container: &Container,
    Part { image, env }: Part,
    defaults: &Limits,
) -> Result<ContainerSpec, Refusal> {
    let mut run = match image.config.labels.get(label::RUNTIME) {
        Some(runtime) => function(container, &image, runtime)?,
        None => program(container, &image, &env)?,
    };
    run.mounts.extend(mounts(container, &env));
    // What runs on the host's own system is nobody's image.
    let user = if run.root == Root::Host { None } else { user(pod, container, &image.config.user) };
    let working_dir = [container.working_dir.as_deref().unwrap_or_default(), &image.config.working_dir];
    let working_dir = working_dir.into_iter().find(|folder| !folder.is_empty()).unwrap_or(run.working_dir);
    Ok(ContainerSpec {
        name: container.name.clone(),
        init: false,
        root: run.root,
        program: run.program,
        working_dir: working_dir.to_owned(),
        user,
        env,
        mounts: run.mounts,
        limits: limits(container, defaults)?,
        serve: run.serve,
    })
}

/// Who a container's processes take themselves for. An image that asks for root, or for a name, or for nobody, gets what the
/// sandbox happens to have: without root's rights its name would only mislead.
fn user(pod: &PodSpec, container: &Container, image: &str) -> Option<User> {
    let (own, all) = (container.security_context.as_ref(), pod.security_context.as_ref());
    let number = |own: Option<i64>, all: Option<i64>| own.or(all).and_then(|id| u32::try_from(id).ok());
    let (image_user, image_group) = image.split_once(':').unwrap_or((image, ""));
    let asked = number(own.and_then(|c| c.run_as_user), all.and_then(|c| c.run_as_user));
    let user = asked.or_else(|| image_user.parse().ok().filter(|user| *user != 0))?;
    let group = number(own.and_then(|c| c.run_as_group), all.and_then(|c| c.run_as_group));
    Some(User { user, group: group.or_else(|| image_group.parse().ok()).unwrap_or(0) })
}

/// How an image is run.
struct Run {
    root: Root,
    program: Program,
    mounts: Vec<Mount>,
    /// Unless the manifest or the image says another.
    working_dir: &'static str,
    serve: Serve,
}

/// What Dhow built: an adapter on the host's system, with the image's folders.
fn function(container: &Container, image: &Image, runtime: &str) -> Result<Run, Refusal> {
    let name = container.image.as_deref().unwrap_or_default();
    let program = match Runtime::parse(runtime) {
        Some(Runtime::Python) => Program::Zygote { runtime: Runtime::Python.name().to_owned() },
        Some(Runtime::Node) => {
            Program::Exec { argv: ["/usr/bin/node", "/dhow/node/adapter.mjs"].map(str::to_owned).into() }
        }
        None => {
            return Err(no_provider(format!(
                "{name} is for the runtime {runtime}, which no Provider of this node has"
            )));
        }
    };
    for (field, given) in [("command", &container.command), ("args", &container.args)] {
        if given.as_ref().is_some_and(|given| !given.is_empty()) {
            let message = format!("container {}: a function's image has no {field} to replace", container.name);
            return Err(no_provider(message));
        }
    }
    if let Some(version) = image.config.labels.get(label::CONTRACT).filter(|v| *v != api::image::CONTRACT) {
        return Err(no_provider(format!("{name} was built for version {version} of the adapter: deploy it again")));
    }
    let mount = |inside: &str| Mount {
        source: Source::Host(image.root.join(inside.trim_start_matches('/'))),
        inside: inside.to_owned(),
        writable: false,
    };
    let mut mounts = vec![mount(CODE_DIR)];
    mounts.extend(image.has_deps.then(|| mount(DEPS_DIR)));
    // The adapters are handed a listener; see decision 6.
    Ok(Run { root: Root::Host, program, mounts, working_dir: CODE_DIR, serve: Serve::Socket })
}

/// Any other image: its own files, and its own program unless the manifest says another.
fn program(container: &Container, image: &Image, env: &[(String, String)]) -> Result<Run, Refusal> {
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let expanded = |list: Vec<String>| list.iter().map(|text| expand(text, env)).collect::<Vec<_>>();
    let (command, args) = (given(&container.command).map(expanded), given(&container.args).map(expanded));
    // Another command makes nothing of the image's arguments.
    let own = if command.is_some() { vec![] } else { image.config.cmd.clone() };
    let mut argv = command.unwrap_or_else(|| image.config.entrypoint.clone());
    argv.extend(args.unwrap_or(own));
    if argv.is_empty() {
        let message = format!("container {}: neither its image nor its manifest names a command", container.name);
        return Err(Refusal { reason: reason::CREATE, message });
    }
    let read_only = container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem) == Some(true);
    let has_port = container.ports.as_ref().is_some_and(|ports| !ports.is_empty());
    Ok(Run {
        root: Root::Image { folder: image.root.clone(), read_only },
        program: Program::Exec { argv },
        mounts: vec![],
        working_dir: "/",
        serve: if has_port { Serve::Port(port(container)) } else { Serve::Nothing },
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
    let requested = container.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("cpu"));
    let mut limits = defaults.clone();
    limits.cpu_request_millis = requested.and_then(quantity::millis).filter(|millis| *millis > 0);
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

    fn asked(pod: &Pod, image: &Image, env: &[(&str, &str)], defaults: &Limits) -> Result<SandboxSpec, Refusal> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        sandbox(pod, vec![], vec![Part { image: image.clone(), env }], defaults)
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
        let second = json!({"name": "b", "image": format!("{REGISTRY}/other/hello@{}", digest())});
        let add = |p: &mut Value| p["spec"]["containers"].as_array_mut().unwrap().push(second.clone());
        check("second", &add, "ImageForbidden");
        let sidecar = json!([{"name": "i", "restartPolicy": "Always"}]);
        check("sidecar", &|p| p["spec"]["initContainers"] = sidecar.clone(), "container i: restartPolicy cannot");
        let devices = json!([{"name": "v", "devicePath": "/v"}]);
        check("device", &|p| p["spec"]["containers"][0]["volumeDevices"] = devices.clone(), "volumeDevices cannot");
        check("host", &|p| p["spec"]["hostNetwork"] = true.into(), "the pod: hostNetwork cannot");
    }

    #[test]
    fn programs() {
        let python = image(&[(label::RUNTIME, "python"), (label::CONTRACT, "1")]);
        let made = asked(&pod(|_| ()), &python, &[("A", "b")], &Limits::default()).unwrap();
        let container = &made.containers[0];
        assert_eq!((made.uid.as_str(), made.namespace.as_str(), made.name.as_str()), ("u", "default", "p"));
        assert_eq!(container.program, Program::Zygote { runtime: "python".into() });
        assert_eq!((container.serve, container.working_dir.as_str()), (Serve::Socket, "/app"));
        let mounts: Vec<_> = container.mounts.iter().map(|m| (m.source.clone(), &*m.inside)).collect();
        let host = |path: &str| Source::Host(path.into());
        assert_eq!(mounts, [(host("/cache/x/rootfs/app"), "/app"), (host("/cache/x/rootfs/deps"), "/deps")]);
        assert!(container.mounts.iter().all(|m| !m.writable));
        let node = Image { has_deps: false, ..image(&[(label::RUNTIME, "node")]) };
        let made = asked(&pod(|_| ()), &node, &[], &Limits::default()).unwrap();
        let argv = ["/usr/bin/node", "/dhow/node/adapter.mjs"].map(str::to_owned).into();
        assert_eq!((&made.containers[0].program, made.containers[0].mounts.len()), (&Program::Exec { argv }, 1));
        for (labels, want) in [
            (&[(label::RUNTIME, "cobol")][..], "the runtime cobol"),
            (&[(label::RUNTIME, "python"), (label::CONTRACT, "9")][..], "version 9"),
        ] {
            let refusal = asked(&pod(|_| ()), &image(labels), &[], &Limits::default()).unwrap_err();
            assert!(refusal.reason == reason::NO_PROVIDER && refusal.message.contains(want), "{refusal:?}");
        }
    }

    #[test]
    fn images() {
        let config = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["cmd".into()],
            working_dir: "/work".into(),
            ..ImageConfig::default()
        };
        let image = Image { root: "/cache/x/rootfs".into(), config, has_deps: false };
        let made = |container: Value| {
            let pod = pod(|p| {
                p["spec"]["containers"][0].as_object_mut().unwrap().extend(container.as_object().unwrap().clone())
            });
            asked(&pod, &image, &[("A", "b")], &Limits::default()).unwrap().containers.remove(0)
        };
        for (given, want) in [
            (json!({}), &["/entry", "cmd"][..]),
            (json!({"args": ["$(A)", "$$(A)", "$(B)"]}), &["/entry", "b", "$(A)", "$(B)"]),
            (json!({"command": ["/other"]}), &["/other"]),
            (json!({"command": ["/other"], "args": ["x"]}), &["/other", "x"]),
        ] {
            let want = Program::Exec { argv: want.iter().map(|text| (*text).to_owned()).collect() };
            assert_eq!(made(given.clone()).program, want, "{given}");
        }
        let root = |read_only| Root::Image { folder: "/cache/x/rootfs".into(), read_only };
        let plain = made(json!({}));
        assert_eq!((plain.root, plain.serve, &*plain.working_dir), (root(false), Serve::Nothing, "/work"));
        let closed = made(json!({
            "securityContext": {"readOnlyRootFilesystem": true}, "ports": [{"containerPort": 9000}], "workingDir": "/w",
        }));
        assert_eq!((closed.root, closed.serve, &*closed.working_dir), (root(true), Serve::Port(9000), "/w"));
        let empty = Image { config: ImageConfig::default(), ..image.clone() };
        let refusal = asked(&pod(|_| ()), &empty, &[], &Limits::default()).unwrap_err();
        assert_eq!(refusal.message, "container c: neither its image nor its manifest names a command");
        let python = Image {
            config: ImageConfig { labels: [(label::RUNTIME.into(), "python".into())].into(), ..ImageConfig::default() },
            ..image
        };
        let pod = pod(|p| p["spec"]["containers"][0]["args"] = json!(["x"]));
        let refusal = asked(&pod, &python, &[], &Limits::default()).unwrap_err();
        assert_eq!(refusal.message, "container c: a function's image has no args to replace");
    }

    #[test]
    fn users() {
        for (container, pod, image, want) in [
            (json!({}), json!({}), "", None),
            (json!({}), json!({}), "nginx", None),
            (json!({}), json!({}), "0", None),
            (json!({}), json!({}), "65532", Some((65532, 0))),
            (json!({}), json!({}), "65532:7", Some((65532, 7))),
            (json!({"runAsUser": 2020}), json!({"runAsUser": 1}), "65532", Some((2020, 0))),
            (json!({}), json!({"runAsUser": 0, "runAsGroup": 5}), "65532", Some((0, 5))),
        ] {
            let container = serde_json::from_value(json!({"name": "c", "securityContext": container})).unwrap();
            let pod = serde_json::from_value(json!({"containers": [], "securityContext": pod})).unwrap();
            let want = want.map(|(user, group)| User { user, group });
            assert_eq!(user(&pod, &container, image), want, "{image}");
        }
    }

    #[test]
    fn resources() {
        let python = image(&[(label::RUNTIME, "python")]);
        let defaults = Limits { memory_bytes: Some(7), ..Limits::default() };
        let made = |limits: Value| {
            let pod = pod(|p| p["spec"]["containers"][0]["resources"] = json!({"limits": limits}));
            asked(&pod, &python, &[], &defaults).map(|s| s.containers[0].limits.clone())
        };
        assert_eq!(made(json!({})), Ok(defaults.clone()));
        let all = made(json!({"memory": "128Mi", "cpu": "250m", "ephemeral-storage": "1M"})).unwrap();
        assert_eq!((all.memory_bytes, all.cpu_millis, all.tmp_bytes), (Some(128 << 20), Some(250), 1_000_000));
        assert_eq!(made(json!({"memory": "a lot"})).unwrap_err().reason, reason::CONFIG);
        assert_eq!(made(json!({"cpu": "0"})).unwrap_err().reason, reason::CONFIG);
    }
}
