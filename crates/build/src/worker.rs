//! One build, from its source to its image.
//!
//! Owns the order of things and the folder they happen in. Must not know the API server: it takes a Build and returns
//! how it ended. Doing it again from the start is always right.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::build::{Build, reason};
use api::function::Runtime;
use api::image::{CODE_DIR, CONTRACT, label};
use registry::image::{ImageConfig, ImageError, Layer, push_image};
use registry::{Registry, RegistryError};
use runtime::{ErrorClass, Provider};
use tokio_util::sync::CancellationToken;

use crate::layers::{self, LayerIndex};
use crate::plan::{self, BuildPlan, Refusal, Tree};
use crate::source::{self, SourceError};
use crate::step::{self, Step};
use crate::{BuildError, Config, blocking};

/// Below the working folder: a folder for each build under way.
const BUILDS: &str = "builds";

/// How a build ended. What can be tried again is an error instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The image's reference, or what the author has to mend.
    pub result: Result<String, Refusal>,
    pub runtime: Option<Runtime>,
    pub log_tail: Vec<String>,
}

pub struct Worker {
    registry: Registry,
    provider: Arc<dyn Provider>,
    config: Config,
    index: LayerIndex,
    proxy: std::net::SocketAddr,
}

/// What a step made.
struct Made {
    deps: Option<Layer>,
    app: Layer,
}

/// Why there is nothing: the author's refusal with the lines that explain it, or our failure.
enum Stop {
    Refused(Refusal, Vec<String>),
    Failed(BuildError),
}

impl<E: Into<BuildError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The folder of one build.
#[derive(Clone)]
struct Place {
    root: PathBuf,
}

impl Worker {
    pub fn new(registry: Registry, provider: Arc<dyn Provider>, config: Config, proxy: std::net::SocketAddr) -> Self {
        let index = LayerIndex::new(config.work_dir.join("index"), registry.clone());
        Self { registry, provider, config, index, proxy }
    }

    /// Removes what builds left behind that were cut off with the whole program.
    pub async fn clear(&self) -> Result<(), BuildError> {
        let all = Place { root: self.config.work_dir.join(BUILDS) };
        blocking(move || all.clear()).await?
    }

    pub async fn build(&self, build: &Build, shutdown: &CancellationToken) -> Result<Outcome, BuildError> {
        let uid = build.metadata.uid.clone().unwrap_or_default();
        let place = Place { root: self.config.work_dir.join(BUILDS).join(&uid) };
        let prepared = place.clone();
        blocking(move || prepared.prepare()).await??;
        let mut runtime = None;
        let ended = self.steps(build, &place, &mut runtime, shutdown).await;
        let cleared = place.clone();
        if let Err(error) = blocking(move || cleared.clear()).await? {
            tracing::warn!(%error, "a build's folder was not removed");
        }
        match ended {
            Ok(image) => Ok(Outcome { result: Ok(image), runtime, log_tail: vec![] }),
            Err(Stop::Refused(refusal, log_tail)) => Ok(Outcome { result: Err(refusal), runtime, log_tail }),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    async fn steps(
        &self,
        build: &Build,
        place: &Place,
        runtime: &mut Option<Runtime>,
        shutdown: &CancellationToken,
    ) -> Result<String, Stop> {
        let namespace = build.metadata.namespace.as_deref().unwrap_or_default();
        let repository = build.spec.repository.as_str();
        plan::check_repository(namespace, repository).map_err(|refusal| Stop::Refused(refusal, vec![]))?;
        let tree = self.fetch(build, namespace, place).await?;
        let plan = plan::plan(&build.spec, &tree).map_err(|refusal| Stop::Refused(refusal, vec![]))?;
        *runtime = Some(plan.runtime);
        let interpreter = interpreter(&plan).await?;
        let key = plan.dependencies.as_ref().and_then(|d| d.cache_key(namespace, plan.runtime, &interpreter));
        let cached = match &key {
            Some(key) => self.index.find(namespace, key, repository).await?,
            None => None,
        };
        let step = self.step(build, namespace, place);
        let made = self.make(&plan, step, cached, place, shutdown).await?;
        if let (Some(key), Some(deps)) = (&key, &made.deps) {
            self.index.keep(namespace, key, deps).await?;
        }
        let layers = made.deps.into_iter().chain([made.app]).collect();
        let digest = push_image(&self.registry, repository, layers, image_config(&plan)).await?;
        Ok(format!("{}/{repository}@{digest}", self.config.registry_host))
    }

    async fn fetch(&self, build: &Build, namespace: &str, place: &Place) -> Result<Tree, Stop> {
        let (max, folder) = (self.config.max_source_bytes, place.app());
        let source = build.spec.source.clone();
        let archive = match &source.blob {
            Some(blob) => Some(self.archive(namespace, &blob.digest).await?),
            None => None,
        };
        let fetched = blocking(move || {
            match (archive, &source.inline) {
                (Some(archive), _) => source::unpack_archive(&archive, &folder, max)?,
                (None, Some(inline)) => source::write_inline(inline, &folder, max)?,
                (None, None) => {
                    let message = "the source is empty: name a blob or inline files";
                    return Err(SourceError::Refused(Refusal::new(reason::SOURCE_INVALID, message)));
                }
            }
            Ok(source::list(&folder)?)
        });
        fetched.await?.map_err(|error| match error {
            SourceError::Refused(refusal) => Stop::Refused(refusal, vec![]),
            SourceError::Failed(error) => Stop::Failed(error),
        })
    }

    async fn archive(&self, namespace: &str, digest: &str) -> Result<PathBuf, Stop> {
        let parsed =
            digest.parse().map_err(|error: RegistryError| refused(reason::SOURCE_INVALID, error.to_string()))?;
        let found = self.registry.blob_path(&format!("{namespace}/{}", api::build::SOURCES), &parsed).await;
        found.map_err(|error| match error {
            RegistryError::BlobUnknown { .. } => {
                refused(reason::SOURCE_MISSING, format!("{digest} was not uploaded to {namespace}; deploy again"))
            }
            other => Stop::Failed(other.into()),
        })
    }

    fn step(&self, build: &Build, namespace: &str, place: &Place) -> Step {
        let name = build.metadata.name.as_deref().unwrap_or("build");
        Step {
            uid: format!("{}{}", api::build::SANDBOX_PREFIX, build.metadata.uid.as_deref().unwrap_or_default()),
            namespace: namespace.to_owned(),
            name: name.chars().take(63).collect(),
            argv: vec![],
            source: place.app(),
            result: place.result(),
            proxy: self.proxy,
            timeout: self.config.timeout,
        }
    }

    /// Runs what has to run, and turns what there is then into layers.
    async fn make(
        &self,
        plan: &BuildPlan,
        mut step: Step,
        cached: Option<Layer>,
        place: &Place,
        shutdown: &CancellationToken,
    ) -> Result<Made, Stop> {
        if let Some(argv) = plan.command(cached.is_none()) {
            step.argv = argv;
            let ended = step::run(&*self.provider, &step, shutdown).await;
            let ended = ended.map_err(|error| unsupported(error, plan))?;
            if let Some(end) = ended.failure {
                let log = plan::log_tail(&ended.output);
                return Err(Stop::Refused(plan::step_failure(end, plan.manifest(), &log), log));
            }
        }
        let (place, plan) = (place.clone(), plan.clone());
        match blocking(move || place.layers(&plan, cached)).await? {
            Err(BuildError::Image(error)) if !matches!(error, ImageError::Io { .. } | ImageError::Registry(_)) => {
                Err(refused(reason::DEPENDENCIES_FAILED, format!("what the build made cannot be used: {error}")))
            }
            made => Ok(made?),
        }
    }
}

fn refused(reason: &'static str, message: impl Into<String>) -> Stop {
    Stop::Refused(Refusal::new(reason, message), vec![])
}

/// A provider that cannot run a build will not be able to in a minute either.
fn unsupported(error: BuildError, plan: &BuildPlan) -> Stop {
    match error {
        BuildError::Provider(error) if error.class() == ErrorClass::Invalid => {
            let message = format!("the {} build cannot run here: {error}", plan.runtime.name());
            refused(reason::DEPENDENCIES_FAILED, message)
        }
        other => Stop::Failed(other),
    }
}

/// The version of the interpreter that sandboxes see, which is the system's.
async fn interpreter(plan: &BuildPlan) -> Result<String, Stop> {
    let (program, package) = match plan.runtime {
        Runtime::Python => ("/usr/bin/python3", "python3"),
        Runtime::Node => ("/usr/bin/node", "nodejs"),
    };
    let missing = |program: &str, package: &str| {
        let message = format!("{program} is not installed on this machine; run: apt-get install {package}");
        refused(reason::HANDLER_MISSING, message)
    };
    let mut command = tokio::process::Command::new(program);
    let output = command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|_| missing(program, package))?;
    if plan.runtime == Runtime::Node && plan.dependencies.is_some() && !Path::new("/usr/bin/npm").exists() {
        return Err(missing("/usr/bin/npm", "npm"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn image_config(plan: &BuildPlan) -> ImageConfig {
    let labels =
        [(label::RUNTIME, plan.runtime.name()), (label::HANDLER, plan.handler.as_str()), (label::CONTRACT, CONTRACT)];
    ImageConfig {
        env: vec![("DHOW_HANDLER".into(), plan.handler.clone())],
        working_dir: CODE_DIR.into(),
        labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..ImageConfig::default()
    }
}

impl Place {
    /// The image's root as far as the trusted side makes it.
    fn tree(&self) -> PathBuf {
        self.root.join("tree")
    }

    /// The unpacked source.
    fn app(&self) -> PathBuf {
        self.tree().join("app")
    }

    /// Where the sandbox writes.
    fn result(&self) -> PathBuf {
        self.root.join("result")
    }

    fn prepare(&self) -> Result<(), BuildError> {
        self.clear()?;
        for folder in [self.app(), self.result()] {
            std::fs::create_dir_all(&folder).map_err(BuildError::io(&folder))?;
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), BuildError> {
        match std::fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(BuildError::io(&self.root)(error)),
            _ => Ok(()),
        }
    }

    fn layers(&self, plan: &BuildPlan, cached: Option<Layer>) -> Result<Made, BuildError> {
        let (result, file) = (self.result(), |name: &str| self.root.join(name));
        let deps = match (&plan.dependencies, cached, plan.runtime) {
            (None, ..) => None,
            (Some(_), Some(cached), _) => Some(cached),
            (Some(_), None, Runtime::Python) => {
                layers::from_result(&result, "deps", "deps/python", file("deps.tar.gz"))?
            }
            (Some(_), None, Runtime::Node) => {
                layers::from_result(&result, "deps/node_modules", "deps/node_modules", file("deps.tar.gz"))?
            }
        };
        let app = match plan.runtime {
            Runtime::Python => layers::from_result(&result, "app", "app", file("app.tar.gz"))?,
            Runtime::Node => None,
        };
        if let Some(app) = app {
            return Ok(Made { deps, app });
        }
        if plan.runtime == Runtime::Node && deps.is_some() {
            // How either module system finds packages that lie beside the code.
            let link = self.app().join("node_modules");
            std::os::unix::fs::symlink("../deps/node_modules", &link).map_err(BuildError::io(link))?;
        }
        let app = layers::from_folder(&self.tree(), "", file("app.tar.gz"))?;
        Ok(Made { deps, app })
    }
}
