//! `dhow deploy`: a folder becomes a URL, and every step on the way is shown.
//!
//! What is wrong with the folder is said before anything is asked of the platform. Ending this command does not end the
//! deploy: from the moment the Function is applied, the controllers carry it.

use std::path::Path;
use std::time::Duration;

use api::build::Build;
use api::function::{Function, FunctionSpec, Runtime};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use kube::api::{LogParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{MANAGER, connect, upload};
use crate::archive::Source;
use crate::args::DeployArgs;
use crate::connect::Platform;
use crate::failure::Code;
use crate::instances::{self, Instance};
use crate::output::printable;
use crate::packing::Packed;
use crate::progress::{self, Progress, State};
use crate::size::show;
use crate::{Context, Failure, Result, archive, names, packing};

/// How long what fails may take to pass: an instance that crashed once is started again at once.
const SETTLE: Duration = Duration::from_secs(2);
/// Interrupted watches in a row, with growing pauses, before the platform counts as gone.
const PATIENCE: u32 = 4;
/// The last lines of a log that are shown.
const LINES: usize = 20;

pub async fn run(context: &Context, args: DeployArgs) -> Result<()> {
    if let Some(name) = &args.name {
        names::check(name)?;
    }
    let changes = Changes::parse(&args)?;
    let (path, limit) = (args.path.clone(), args.max_source);
    let packing = tokio::task::spawn_blocking(move || {
        let source = archive::gather(&path, limit)?;
        Ok((packing::pack(&source)?, source))
    });
    let packed: Result<(Packed, Source)> = packing.await.map_err(|e| Failure::failed(e.to_string()))?;
    let (packed, source) = packed?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => derived_name(context, &source.root)?,
    };
    let platform = connect(context).await?;
    let endpoints = platform.endpoints().await?;
    let digest = packed.digest.clone();
    let size = packed.bytes;
    let sent = upload::upload(&platform, &endpoints, packed).await.map_err(|failure| {
        // The platform counts packed bytes; what makes them many is here.
        if failure.is_too_large { failure.failure.lines(source.largest()) } else { failure.failure }
    })?;
    let files = match source.entries.len() {
        1 => "1 file".to_owned(),
        many => format!("{many} files"),
    };
    context.output.words(&match sent {
        true => format!("uploaded {files}, {} ({} packed)", show(source.bytes), show(size)),
        false => format!("the source is there already ({files}, {})", show(source.bytes)),
    });
    let (function, unchanged) = apply(&platform, &name, &digest, changes).await?;
    if unchanged && let State::Ready { url } = progress::state(&function) {
        context.output.words(&format!("{name} is unchanged: the same source and settings are served already"));
        context.output.data(&url);
        return Ok(());
    }
    if args.no_wait {
        context.output.words(&format!("{name} is taken.\nnext: dhow describe {name}"));
        return Ok(());
    }
    let url = follow(context, &platform, &name, &args).await?;
    context.output.data(&url);
    Ok(())
}

fn derived_name(context: &Context, folder: &Path) -> Result<String> {
    let name = names::from_folder(folder)?;
    if !folder.ends_with(&name) {
        context.output.words(&format!("named {name} after the folder; --name chooses another"));
    }
    Ok(name)
}

/// What the flags change; everything else stays as it was.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    runtime: Option<Runtime>,
    handler: Option<String>,
    /// `None` removes one.
    env: Vec<(String, Option<String>)>,
}

impl Changes {
    fn parse(args: &DeployArgs) -> Result<Self> {
        let known = || Runtime::ALL.map(Runtime::name).join(", ");
        let runtime = args.runtime.as_deref().map(|name| {
            let what = || Failure::usage(format!("there is no runtime {name:?}; there is: {}", known()));
            Runtime::parse(name).ok_or_else(what)
        });
        let env = args.env.iter().map(|text| {
            let (name, value) = match (text.split_once('='), text.strip_suffix('-')) {
                (Some((name, value)), _) => (name, Some(value.to_owned())),
                (None, Some(name)) => (name, None),
                (None, None) => ("", None),
            };
            match name.is_empty() {
                true => Err(Failure::usage(format!("--env {text:?} is neither NAME=VALUE nor NAME-"))),
                false => Ok((name.to_owned(), value)),
            }
        });
        Ok(Self { runtime: runtime.transpose()?, handler: args.handler.clone(), env: env.collect::<Result<_>>()? })
    }

    fn onto(self, before: Option<&FunctionSpec>, digest: &str) -> FunctionSpec {
        let mut env = before.map(|b| b.env.clone()).unwrap_or_default();
        for (name, value) in self.env {
            env.retain(|v| v.name != name);
            env.extend(value.map(|value| EnvVar { name, value: Some(value), value_from: None }));
        }
        FunctionSpec {
            runtime: self.runtime.or(before.and_then(|b| b.runtime)),
            handler: self.handler.or(before.and_then(|b| b.handler.clone())),
            source: api::function::Source {
                blob: Some(api::function::Blob { digest: digest.to_owned() }),
                inline: None,
            },
            env,
            ..FunctionSpec::default()
        }
    }
}

/// The Function as it is now, and whether it was so before.
async fn apply(platform: &Platform, name: &str, digest: &str, changes: Changes) -> Result<(Function, bool)> {
    let functions = platform.api::<Function>();
    let doing = format!("applying function {name}");
    let failed = |e: kube::Error| Failure::api(&doing, &e).object(format!("function/{name}"));
    let before = functions.get_opt(name).await.map_err(failed)?;
    let was_inline = before.as_ref().is_some_and(|b| b.spec.source.inline.is_some());
    if was_inline {
        // Applying never removes what somebody else put there, and a source is only one of the two.
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patch = json!({"spec": {"source": {"inline": null, "blob": {"digest": digest}}}});
        functions.patch(name, &params, &Patch::Merge(patch)).await.map_err(failed)?;
    }
    let spec = changes.onto(before.as_ref().map(|b| &b.spec), digest);
    let wanted = Function::new(name, spec);
    let params = PatchParams::apply(MANAGER).force();
    let after = functions.patch(name, &params, &Patch::Apply(wanted)).await.map_err(failed)?;
    let unchanged = before.is_some_and(|b| b.metadata.generation == after.metadata.generation);
    Ok((after, unchanged))
}

/// Shows the conditions as they change, until the function is served or cannot be.
async fn follow(context: &Context, platform: &Platform, name: &str, args: &DeployArgs) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(args.timeout);
    let mut looks = watcher::watch_object(platform.api::<Function>(), name).default_backoff().boxed();
    let (mut progress, mut seen, mut settles, mut interruptions) = (Progress::default(), None, None, 0);
    loop {
        let settled = settles.unwrap_or(until);
        tokio::select! {
            look = looks.next() => match look {
                Some(Ok(Some(function))) => {
                    interruptions = 0;
                    progress.lines(&function).iter().for_each(|line| context.output.words(&printable(line)));
                    match progress::state(&function) {
                        State::Ready { url } => return Ok(url),
                        State::Failed { .. } => return Err(explain(platform, &function, args).await),
                        State::Failing { .. } => settles = settles.or(Some(Instant::now() + SETTLE)),
                        State::Going => settles = None,
                    }
                    seen = Some(function);
                }
                // Not seen yet, or deleted meanwhile.
                Some(Ok(None)) if seen.is_none() => {}
                Some(Ok(None)) => return Err(Failure::failed(format!("function {name} was deleted meanwhile"))),
                Some(Err(error)) => {
                    interruptions += 1;
                    if interruptions >= PATIENCE {
                        return Err(lost(name, &error));
                    }
                }
                None => return Err(Failure::unreachable("the watch of the function ended")),
            },
            () = sleep_until(settled.min(until)) => {
                return Err(match (&seen, settles) {
                    (Some(function), Some(at)) if at <= until => explain(platform, function, args).await,
                    (Some(function), _) => too_late(platform, name, args.timeout, &progress::summary(function)).await,
                    (None, _) => too_late(platform, name, args.timeout, "nothing is known of it yet").await,
                });
            }
            _ = tokio::signal::ctrl_c() => {
                let what = format!("stopped watching; the deploy of {name} goes on");
                return Err(Failure::new(Code::Interrupted, what).next(format!("dhow describe {name}")));
            }
        }
    }
}

fn lost(name: &str, error: &watcher::Error) -> Failure {
    let why = crate::failure::innermost(error);
    Failure::unreachable(format!("the platform does not answer any more: {why}"))
        .next(format!("what was acknowledged is kept; once it is up again: dhow describe {name}"))
}

async fn too_late(platform: &Platform, name: &str, seconds: u64, summary: &str) -> Failure {
    let what = format!("{name} is not served after {seconds} s; it stands at: {summary}");
    let failure = Failure::failed(printable(&what));
    let Some(instance) = troubled(platform, name).await else {
        return failure.object(format!("function/{name}")).next(format!("it goes on; look with: dhow describe {name}"));
    };
    let mut lines: Vec<String> = instance.message.lines().map(printable).collect();
    lines.extend(log_tail(platform, &instance.name).await.iter().map(|line| printable(line)));
    let next = format!("it goes on; look with: dhow describe {name}, dhow logs {name}");
    failure.object(format!("pod/{}", instance.name)).lines(lines).next(next)
}

/// An instance that should be ready and is not.
async fn troubled(platform: &Platform, name: &str) -> Option<Instance> {
    let pods = instances::pods(platform, &platform.api(), Some(name)).await.unwrap_or_default();
    pods.iter().map(instances::instance).find(|i| !i.ready)
}

/// What failed, at which object, with its last lines, and what to do.
async fn explain(platform: &Platform, function: &Function, args: &DeployArgs) -> Failure {
    let name = function.metadata.name.as_deref().unwrap_or_default();
    let (State::Failed { stage, reason, message } | State::Failing { stage, reason, message }) =
        progress::state(function)
    else {
        return Failure::failed(format!("{name} was not deployed"));
    };
    let mut lines = progress::last_words(&message);
    let what = format!("{name} was not deployed: {stage} failed: {reason}: {}", progress::headline(&message));
    let again = format!("dhow deploy {}", args.path.display());
    let (object, next) = if stage == api::function::SERVING {
        let troubled = troubled(platform, name).await;
        if let Some(instance) = &troubled {
            // The pod has them as they were printed.
            match instance.message.is_empty() {
                false => lines = instance.message.lines().map(str::to_owned).collect(),
                true if lines.is_empty() => lines = log_tail(platform, &instance.name).await,
                true => {}
            }
        }
        let revision = function.status.as_ref().and_then(|s| s.revision.clone());
        let object = troubled.map(|i| format!("pod/{}", i.name)).or(revision.map(|r| format!("revision/{r}")));
        (object, format!("mend it and run: {again} (more: dhow describe {name}, dhow logs {name})"))
    } else {
        let build = function.status.as_ref().and_then(|s| s.build.clone());
        if let Some(tail) = build_tail(platform, build.as_deref()).await {
            lines = tail;
        }
        (build.map(|b| format!("build/{b}")), format!("mend it and run: {again}"))
    };
    let lines = lines[lines.len().saturating_sub(LINES)..].iter().map(|l| printable(l)).collect();
    let object = object.unwrap_or_else(|| format!("function/{name}"));
    Failure::failed(printable(&what)).object(object).lines(lines).next(next)
}

async fn build_tail(platform: &Platform, build: Option<&str>) -> Option<Vec<String>> {
    let build = platform.api::<Build>().get_opt(build?).await.ok()??;
    Some(build.status?.log_tail).filter(|tail| !tail.is_empty())
}

async fn log_tail(platform: &Platform, pod: &str) -> Vec<String> {
    let pods = platform.api::<Pod>();
    let tail_lines = Some(LINES as i64);
    for previous in [false, true] {
        let params = LogParams { tail_lines, previous, ..LogParams::default() };
        match pods.logs(pod, &params).await {
            Ok(text) if !text.is_empty() => return text.lines().map(str::to_owned).collect(),
            _ => {}
        }
    }
    vec![]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn changes(line: &str) -> Result<Changes> {
        let words = ["dhow", "deploy", "."].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Deploy(args) => Changes::parse(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_change_only_what_they_name() {
        let variable =
            |name: &str, value: &str| EnvVar { name: name.into(), value: Some(value.into()), value_from: None };
        let before = FunctionSpec {
            handler: Some("app.go".into()),
            env: vec![variable("A", "1"), variable("B", "2")],
            timeout_seconds: Some(5),
            ..FunctionSpec::default()
        };
        let spec = |line: &str| changes(line).unwrap().onto(Some(&before), "sha256:x");
        let kept = spec("");
        assert_eq!((kept.handler.as_deref(), kept.env.len(), kept.runtime), (Some("app.go"), 2, None));
        assert_eq!(kept.timeout_seconds, None, "what others set is theirs");
        let changed = spec("--env A=x=y --env B- -e C= --handler m.f --runtime node");
        assert_eq!(changed.env, [variable("A", "x=y"), variable("C", "")]);
        assert_eq!((changed.handler.as_deref(), changed.runtime), (Some("m.f"), Some(Runtime::Node)));
        assert_eq!(changed.source.blob.unwrap().digest, "sha256:x");
        for (line, want) in
            [("--runtime cobol", "there is: python, node"), ("--env A", "neither"), ("--env =x", "neither")]
        {
            let failure = changes(line).unwrap_err();
            assert!(failure.what.contains(want) && failure.code == Code::Usage, "{line}: {failure}");
        }
    }
}
