//! The two trusted steps of a build pod, each a process of our own image: `fetch` before the author's code runs, `push` after.
//!
//! They hold the registry's credentials and touch what the author's code made, so they run none of it, follow no link, and
//! believe no size. Each is told all it needs in one JSON argument, and answers by an exit code and a [`Report`].

use std::path::{Path, PathBuf};

use api::build::reason;
use api::function::Runtime;
use registry::Digest;
use registry::image::{ImageError, ImageRef, LayerInfo};
use registry::remote::{LayerSource, Location, Remote, RemoteConfig, RemoteError};
use registry::remote::{cached_layers, keep_layers, pull_base, push_image_on};
use runtime::assets;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::image;
use super::report::Report;
use crate::layers;
use crate::plan::{self, Refusal, StepEnd};
use crate::source::{self, SourceError};
use crate::step::{RESULT_BYTES, RESULT_ENTRIES};
use crate::{BuildError, blocking};

/// How a step reaches the registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Access {
    pub ca_file: Option<PathBuf>,
    pub insecure: Vec<String>,
    pub credentials: Option<PathBuf>,
}

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    pub registry: String,
    pub repository: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FetchOrder {
    pub access: Access,
    pub from: Place,
    pub digest: Digest,
    pub runtime: Runtime,
    pub max_bytes: u64,
    /// Gets `tree/app`, the unpacked source, and `adapter`, the runtime's.
    pub source: PathBuf,
    pub scratch: PathBuf,
    pub report: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushOrder {
    pub access: Access,
    pub into: Place,
    pub base: String,
    pub runtime: Runtime,
    pub handler: String,
    pub interpreter: String,
    /// The file that names the packages, where there are any.
    pub manifest: Option<String>,
    /// The tag under which what was installed is found again.
    pub cache: Option<String>,
    /// Nothing was installed: it lies under that tag.
    pub cached: bool,
    pub source: PathBuf,
    pub result: PathBuf,
    pub scratch: PathBuf,
    pub report: PathBuf,
}

enum Stop {
    Refused(Refusal),
    Failed(BuildError),
}

impl<E: Into<BuildError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Pulls the source and unpacks it, and lays the adapter beside it. Returns the exit code.
pub async fn fetch(order: &str) -> i32 {
    let order: FetchOrder = match parse(order) {
        Ok(order) => order,
        Err(code) => return code,
    };
    let ended = fetch_source(&order).await.map(|()| None);
    finish(ended, &order.report)
}

/// Makes layers of what the steps before left, and pushes the image. Returns the exit code.
pub async fn push(order: &str) -> i32 {
    let order: PushOrder = match parse(order) {
        Ok(order) => order,
        Err(code) => return code,
    };
    let ended = push_image(&order).await.map(|digest| Some(Report::Image { digest }));
    finish(ended, &order.report)
}

fn parse<T: DeserializeOwned>(order: &str) -> Result<T, i32> {
    serde_json::from_str(order).map_err(|error| {
        tracing::error!(%error, "the order of this step cannot be read");
        2
    })
}

fn finish(ended: Result<Option<Report>, Stop>, path: &Path) -> i32 {
    let report = match &ended {
        Ok(report) => report.clone(),
        Err(Stop::Refused(refusal)) => Some(Report::refused(refusal)),
        Err(Stop::Failed(error)) => Some(Report::failed(&error.to_string())),
    };
    let Some(report) = report else { return 0 };
    tracing::info!(?report, "the step ended");
    match report.write(path) {
        Ok(()) => i32::from(ended.is_err()),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "the report cannot be written");
            1
        }
    }
}

async fn fetch_source(order: &FetchOrder) -> Result<(), Stop> {
    let remote = Remote::new(&order.access.config())?;
    let archive = order.scratch.join("source.tar.gz");
    match remote.pull_blob(&order.from.location(), &order.digest, order.max_bytes, &archive).await {
        Ok(_) => {}
        Err(RemoteError::NotFound { .. }) => {
            let message = format!("{} is not in {} any more; deploy again", order.digest, order.from.repository);
            return Err(Stop::Refused(Refusal::new(reason::SOURCE_MISSING, message)));
        }
        Err(error) => return Err(error.into()),
    }
    let order = order.clone();
    let unpacked = blocking(move || {
        let app = order.source.join("tree/app");
        std::fs::create_dir_all(&app).map_err(BuildError::io(&app))?;
        source::unpack_archive(&archive, &app, order.max_bytes)?;
        let adapter = order.source.join("adapter");
        assets::write(order.runtime.name(), &adapter).map_err(BuildError::io(&adapter))?;
        std::fs::remove_file(&archive).map_err(BuildError::io(&archive))?;
        Ok(())
    });
    unpacked.await?.map_err(|error| match error {
        SourceError::Refused(refusal) => Stop::Refused(refusal),
        SourceError::Failed(error) => Stop::Failed(error),
    })
}

async fn push_image(order: &PushOrder) -> Result<Digest, Stop> {
    let remote = Remote::new(&order.access.config())?;
    let into = order.into.location();
    let mut known = vec![];
    if let Some(tag) = order.cache.as_ref().filter(|_| order.cached) {
        let gone = || RemoteError::NotFound { registry: into.registry.clone(), what: format!("{into}:{tag}") };
        known = cached_layers(&remote, &into, tag).await?.ok_or_else(gone)?;
    }
    let (work, installed) = (order.clone(), known.len());
    let known = known.into_iter().map(LayerSource::Held).collect::<Vec<_>>();
    let made = match blocking(move || layers(&work, known)).await? {
        Err(Stop::Failed(BuildError::Image(error))) if is_authors(&error) => {
            let message = format!("what the build made cannot be used: {error}");
            return Err(Stop::Refused(Refusal::new(reason::DEPENDENCIES_FAILED, message)));
        }
        made => made?,
    };
    let name: ImageRef = order.base.parse().map_err(BuildError::Image)?;
    let base = pull_base(&remote, &name).await?;
    let config = image::config(base.config(), order.runtime, &order.handler, &order.interpreter);
    let all: Vec<LayerSource> = made.installed.iter().chain(&made.rest).cloned().collect();
    let digest = push_image_on(&remote, &into, &base, &all, config, &order.scratch).await?;
    if let Some(tag) = order.cache.as_ref().filter(|_| installed == 0 && !made.installed.is_empty()) {
        let infos: Vec<LayerInfo> = made.installed.iter().map(LayerSource::info).collect();
        keep_layers(&remote, &into, tag, &infos).await?;
    }
    Ok(digest)
}

/// The author's code may leave anything, also what may not be read.
fn is_authors(error: &ImageError) -> bool {
    match error {
        ImageError::Io { source, .. } => source.kind() == std::io::ErrorKind::PermissionDenied,
        ImageError::Registry(_) => false,
        _ => true,
    }
}

/// The layers on top of the base: what the installation made, which can be cached, and what it did not.
struct Made {
    installed: Vec<LayerSource>,
    rest: Vec<LayerSource>,
}

/// Blocks.
fn layers(order: &PushOrder, known: Vec<LayerSource>) -> Result<Made, Stop> {
    let (bytes, entries) = source::measure(&order.result);
    let excess = match () {
        () if bytes > RESULT_BYTES => Some(StepEnd::TooLarge { limit_bytes: RESULT_BYTES }),
        () if entries > RESULT_ENTRIES => Some(StepEnd::TooMany { limit: RESULT_ENTRIES }),
        () => None,
    };
    if let Some(end) = excess {
        return Err(Stop::Refused(plan::step_failure(end, order.manifest.as_deref(), &[])));
    }
    let file = |name: &str| order.scratch.join(name);
    let prefix = image::adapter_prefix(order.runtime);
    let (mut installed, mut rest) = (known, vec![]);
    if installed.is_empty() {
        let (folder, inside) = match order.runtime {
            Runtime::Python => ("deps", "deps/python"),
            Runtime::Node => ("deps/node_modules", "deps/node_modules"),
        };
        let adapter = match order.runtime {
            // With bytecode, or as it came where an author's code has removed that.
            Runtime::Python => match layers::from_result(&order.result, "dhow", &prefix, file("dhow"))? {
                None => Some(layers::from_folder(&order.source.join("adapter"), &prefix, file("dhow"))?),
                compiled => compiled,
            },
            Runtime::Node => None,
        };
        let deps = match &order.manifest {
            Some(_) => layers::from_result(&order.result, folder, inside, file("deps"))?,
            None => None,
        };
        installed = adapter.into_iter().chain(deps).map(LayerSource::File).collect();
    }
    if order.runtime == Runtime::Node {
        rest.push(LayerSource::File(layers::from_folder(&order.source.join("adapter"), &prefix, file("dhow"))?));
        if order.manifest.is_some() {
            // How either module system finds packages that lie beside the code.
            let link = order.source.join("tree/app/node_modules");
            std::os::unix::fs::symlink("../deps/node_modules", &link).map_err(BuildError::io(link))?;
        }
    }
    rest.push(LayerSource::File(layers::from_folder(&order.source.join("tree"), "", file("app"))?));
    Ok(Made { installed, rest })
}

impl Access {
    fn config(&self) -> RemoteConfig {
        RemoteConfig {
            ca_file: self.ca_file.clone(),
            insecure: self.insecure.clone(),
            secure: vec![],
            credentials: self.credentials.clone(),
        }
    }
}

impl Place {
    fn location(&self) -> Location {
        Location { registry: self.registry.clone(), repository: self.repository.clone() }
    }
}

impl From<Location> for Place {
    fn from(at: Location) -> Self {
        Self { registry: at.registry, repository: at.repository }
    }
}
