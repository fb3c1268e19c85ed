//! The controller of cluster builds against a real Kubernetes API server, whose kubeconfig `DHOW_TEST_KUBECONFIG` names:
//! its Job is admitted where PodSecurity is "restricted", what keeps it is told, and what it made goes with its Build.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::build::{Build, BuildSpec, BuildStatus, SUCCEEDED, reason};
use api::condition::find;
use api::function::{Inline, Source};
use build::cluster::{BaseImage, ClusterConfig};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, CustomResourceExt as _};
use registry::Registry;
use registry::image::layer_from_dir;
use registry::remote::{Location, Remote, RemoteConfig, keep_layers};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const SYSTEM: &str = "dhow-build-test-system";
const TENANT: &str = "dhow-build-test-tenant";
const PATIENCE: Duration = Duration::from_secs(90);

async fn client() -> Option<Client> {
    let Ok(path) = std::env::var("DHOW_TEST_KUBECONFIG") else {
        println!("skipped: DHOW_TEST_KUBECONFIG names no cluster; cargo xtask cluster up makes one");
        return None;
    };
    let file = kube::config::Kubeconfig::read_from(path).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.expect("a configuration");
    Some(Client::try_from(config).expect("a client"))
}

async fn apply<K>(api: &Api<K>, object: serde_json::Value)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
    let params = PatchParams::apply("dhow-test").force();
    api.patch(&name, &params, &Patch::Apply(&object)).await.expect("it is applied");
}

/// A registry on loopback that holds an image to build upon.
async fn registry(folder: &Path) -> String {
    let service = Registry::open(&folder.join("registry")).expect("a registry").service(Arc::new(|_| true));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    let remote = Remote::new(&RemoteConfig::default()).expect("a client");
    let at = Location { registry: address.clone(), repository: "bases/python".into() };
    let (tree, file) = (folder.join("tree"), folder.join("tree.tar.gz"));
    std::fs::create_dir_all(&tree).expect("a folder");
    let info = layer_from_dir(&tree, "", std::fs::File::create(&file).expect("a file")).expect("a layer");
    remote.push_file(&at, &info.digest, info.size, &file).await.expect("pushed");
    keep_layers(&remote, &at, "1", &[info]).await.expect("tagged");
    address
}

#[expect(clippy::disallowed_methods, reason = "a test's clock is the wall clock")]
fn clock() -> api::Clock {
    Arc::new(jiff::Timestamp::now)
}

fn config(registry: &str, folder: &Path) -> ClusterConfig {
    let base = BaseImage { image: format!("{registry}/bases/python:1"), interpreter: None };
    ClusterConfig {
        namespace: SYSTEM.into(),
        work_dir: folder.join("work"),
        // Nobody listens there, so that the pod is made and waits.
        image: "127.0.0.1:1/dhow:none".into(),
        registry: registry.parse().expect("a prefix"),
        registry_for_nodes: None,
        remote: RemoteConfig::default(),
        secret: None,
        authority: None,
        pull_secrets: vec![],
        python: base.clone(),
        node: base,
        proxy: None,
        build_env: vec![],
        egress: ClusterConfig::public_egress(),
        cpu: ClusterConfig::CPU.into(),
        memory_bytes: ClusterConfig::MEMORY_BYTES,
        runtime_class: None,
        max_source_bytes: 1 << 20,
        timeout: Duration::from_secs(60),
        concurrency: ClusterConfig::CONCURRENCY,
        per_namespace: ClusterConfig::PER_NAMESPACE,
        keep_jobs: ClusterConfig::KEEP_JOBS,
        clock: clock(),
    }
}

fn build(name: &str, files: &[(&str, &str)]) -> Build {
    let files: BTreeMap<String, String> = files.iter().map(|(n, c)| ((*n).into(), (*c).into())).collect();
    let source = Source { inline: Some(Inline { files }), ..Source::default() };
    let spec = BuildSpec { runtime: None, handler: None, source, repository: format!("{TENANT}/{name}") };
    let mut build = Build::new(name, spec);
    build.metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    build
}

/// Waits until the Build's condition says this, as `reason: message`.
async fn says(builds: &Api<Build>, name: &str, want: impl Fn(&str) -> bool + Send + Sync + 'static) -> BuildStatus {
    let text = |status: &BuildStatus| {
        find(&status.conditions, SUCCEEDED).map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default()
    };
    let said = move |build: Option<&Build>| {
        build.and_then(|build| build.status.as_ref()).is_some_and(|status| want(&text(status)))
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(builds.clone(), name, said)).await;
    match waited {
        Ok(found) => found.expect("a watch").and_then(|build| build.status).unwrap_or_default(),
        Err(_) => panic!("{name}: {:#?}", builds.get_status(name).await.expect("a Build").status),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_on_a_real_api_server() {
    let Some(client) = client().await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    apply(&definitions, serde_json::to_value(Build::crd()).expect("JSON")).await;
    let name = Build::crd().metadata.name.expect("a name");
    let established = await_condition(definitions, &name, conditions::is_crd_established());
    tokio::time::timeout(PATIENCE, established).await.expect("in time").expect("established");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in [SYSTEM, TENANT] {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        apply(
            &namespaces,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
        .await;
    }

    let shutdown = CancellationToken::new();
    let config = config(&registry(folder.path()).await, folder.path());
    let running = tokio::spawn(build::cluster::run(client.clone(), config, shutdown.clone()));
    let builds: Api<Build> = Api::namespaced(client.clone(), TENANT);
    let jobs: Api<Job> = Api::namespaced(client.clone(), SYSTEM);

    let bad = build("bad", &[("notes.txt", "nothing to run")]);
    builds.create(&PostParams::default(), &bad).await.expect("created");
    says(&builds, "bad", |text| text.starts_with(reason::RUNTIME_UNKNOWN)).await;

    let good = build("good", &[("main.py", "def handle(request):\n    return 'x'\n")]);
    let good = builds.create(&PostParams::default(), &good).await.expect("created");
    says(&builds, "good", |text| text.contains("of 127.0.0.1:1/dhow:none") || text.contains("no node takes its pod"))
        .await;
    let job = format!("build-{}", good.metadata.uid.expect("a uid"));
    let uid = jobs.get(&job).await.expect("its Job").metadata.uid.expect("a uid");
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), SYSTEM);
    policies.get("dhow-builds").await.expect("the policy");

    builds.delete("good", &DeleteParams::default()).await.expect("deleted");
    let gone = await_condition(jobs, &job, conditions::is_deleted(&uid));
    tokio::time::timeout(PATIENCE, gone).await.expect("in time").expect("its Job goes with it");

    shutdown.cancel();
    running.await.expect("no panic").expect("it ends well");
    for name in [SYSTEM, TENANT] {
        namespaces.delete(name, &DeleteParams::background()).await.expect("removed");
    }
}
