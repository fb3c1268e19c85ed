//! What has to be known before a build pod can be described: the source's plan, the base, what is installed already.
//!
//! Reads the source as the pod will read it again, with the same bounds and by the same rules, so that a build that cannot
//! go well costs no pod, and one whose packages are known needs no container that runs the author's code.

use std::path::{Path, PathBuf};

use api::build::{Build, SOURCES, reason};
use api::function::Source;
use registry::image::{ImageRef, layer_from_dir};
use registry::remote::{Base, Remote, RemoteError, cached_layers, keep_blob, pull_base};
use registry::{Digest, RegistryError};
use runtime::assets;

use super::{ClusterConfig, image};
use crate::plan::{self, BuildPlan, Refusal, Tree};
use crate::source::{self, SourceError};
use crate::{BuildError, blocking};

/// What a build pod is described by.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    pub source: Digest,
    pub plan: BuildPlan,
    /// The base image of the runtime, by digest.
    pub base: String,
    /// How it calls its interpreter.
    pub interpreter: String,
    /// The tag that names what the installation makes; `None` when that depends on all of the source.
    pub cache: Option<String>,
    /// Whether it lies under that tag.
    pub cached: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    Ready(Box<Work>),
    Refused(Refusal),
    /// The registry's weakness, the operator's mistake, or ours.
    Failed(String),
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

/// Dropped midway, it leaves a folder that the next start removes.
pub async fn prepare(remote: &Remote, config: &ClusterConfig, build: &Build) -> Prepared {
    let folder = config.work_dir.join(build.metadata.uid.as_deref().unwrap_or_default());
    let ended = steps(remote, config, build, &folder).await;
    let removed = blocking(move || std::fs::remove_dir_all(folder)).await;
    tracing::debug!(?removed, "a build was prepared");
    match ended {
        Ok(work) => Prepared::Ready(Box::new(work)),
        Err(Stop::Refused(refusal)) => Prepared::Refused(refusal),
        Err(Stop::Failed(error)) => Prepared::Failed(error.to_string()),
    }
}

async fn steps(remote: &Remote, config: &ClusterConfig, build: &Build, folder: &Path) -> Result<Work, Stop> {
    let namespace = build.metadata.namespace.as_deref().unwrap_or_default();
    let (source, tree) = fetch(remote, config, namespace, &build.spec.source, folder).await?;
    let plan = plan::plan(&build.spec, &tree).map_err(Stop::Refused)?;
    let wanted = config.base(plan.runtime);
    let base: ImageRef = wanted.image.parse().map_err(BuildError::Image)?;
    let base: Base = pull_base(remote, &base).await?;
    let interpreter = image::interpreter(plan.runtime, wanted.interpreter.as_deref(), base.config());
    let made_by = format!("{}\n{}\n{interpreter}", base.digest(), assets::version());
    let needed = plan.cluster_command().is_some();
    let inputs = plan.cluster_inputs().filter(|_| needed);
    let cache = inputs.map(|inputs| format!("cache-{}", plan::cache_key(namespace, plan.runtime, &made_by, inputs)));
    let cached = match &cache {
        Some(tag) => cached_layers(remote, &config.location(&build.spec.repository), tag).await?.is_some(),
        None => false,
    };
    Ok(Work { source, plan, base: base.name(), interpreter, cache, cached })
}

async fn fetch(
    remote: &Remote,
    config: &ClusterConfig,
    namespace: &str,
    source: &Source,
    folder: &Path,
) -> Result<(Digest, Tree), Stop> {
    let (app, max) = (folder.join("app"), config.max_source_bytes);
    let made = app.clone();
    blocking(move || std::fs::create_dir_all(&made).map_err(BuildError::io(&made))).await??;
    if let Some(inline) = source.inline.clone().filter(|_| source.blob.is_none()) {
        let archive = folder.join("source.tar.gz");
        let (path, target) = (archive.clone(), app.clone());
        let packed = blocking(move || {
            source::write_inline(&inline, &target, max)?;
            let file = std::fs::File::create(&path).map_err(BuildError::io(&path))?;
            let info = layer_from_dir(&target, "", std::io::BufWriter::new(file)).map_err(BuildError::from)?;
            Ok((info, source::list(&target)?))
        });
        let (info, tree) = packed.await?.map_err(stop)?;
        // The pod has no way to the API, so what is written in the object takes the way of an uploaded source.
        let sources = config.location(&format!("{namespace}/{SOURCES}"));
        remote.push_file(&sources, &info.digest, info.size, &archive).await?;
        keep_blob(remote, &sources, &info.digest, info.size).await?;
        return Ok((info.digest, tree));
    }
    let Some(blob) = &source.blob else {
        return Err(refused(reason::SOURCE_INVALID, "the source is empty: name a blob or inline files"));
    };
    let invalid = |error: RegistryError| refused(reason::SOURCE_INVALID, error.to_string());
    let digest: Digest = blob.digest.parse().map_err(invalid)?;
    let archive = pull(remote, config, namespace, &digest, folder).await?;
    let unpacked = blocking(move || {
        source::unpack_archive(&archive, &app, max)?;
        Ok(source::list(&app)?)
    });
    Ok((digest, unpacked.await?.map_err(stop)?))
}

async fn pull(
    remote: &Remote,
    config: &ClusterConfig,
    namespace: &str,
    digest: &Digest,
    folder: &Path,
) -> Result<PathBuf, Stop> {
    let path = folder.join("source.tar.gz");
    let at = config.location(&format!("{namespace}/{SOURCES}"));
    match remote.pull_blob(&at, digest, config.max_source_bytes, &path).await {
        Ok(_) => Ok(path),
        Err(error) => Err(not_pulled(error, digest, namespace, config.max_source_bytes)),
    }
}

fn not_pulled(error: RemoteError, digest: &Digest, namespace: &str, max: u64) -> Stop {
    match error {
        RemoteError::NotFound { .. } => {
            refused(reason::SOURCE_MISSING, format!("{digest} was not uploaded to {namespace}; deploy again"))
        }
        RemoteError::TooLarge { .. } => stop(source::too_large(max)),
        other => Stop::Failed(other.into()),
    }
}

fn refused(reason: &'static str, message: impl Into<String>) -> Stop {
    Stop::Refused(Refusal::new(reason, message))
}

fn stop(error: SourceError) -> Stop {
    match error {
        SourceError::Refused(refusal) => Stop::Refused(refusal),
        SourceError::Failed(error) => Stop::Failed(error),
    }
}
