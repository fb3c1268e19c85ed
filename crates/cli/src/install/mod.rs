//! Dhow on a cluster: its manifests, and putting them there and taking them away.
//!
//! Owns: every object of an installation, as pure functions of [`Settings`]; the Helm chart is rendered by the same. Must
//! not know: what the roles do. The surprise: an installation is known by its labels, so that an older one's objects that
//! this one does not have are found and removed.

mod chart;
mod network;
mod putting;
mod rbac;
mod removing;
mod settings;
mod workloads;
mod yaml;

use std::path::PathBuf;
use std::time::Duration;

use api::names::{ENDPOINTS_CONFIG_MAP, UPLOAD_AUDIENCE};
use clap::Args;
use serde_json::{Value, json};

use crate::{Context, Failure, Result};
pub use settings::{InstallArgs, Settings};

/// Nobody's user, as Dhow's image has it.
const NOBODY: i64 = 65532;

#[derive(Clone, Debug, Args)]
pub struct InstallCommand {
    #[command(flatten)]
    pub settings: InstallArgs,
    /// Print the manifests instead
    #[arg(long)]
    pub dry_run: bool,
    /// Take over definitions that another serverless system has installed, and the objects of those kinds with them
    #[arg(long)]
    pub adopt: bool,
    /// Do not wait until everything runs
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait
    #[arg(long, default_value = "180s", value_parser = seconds, value_name = "DURATION")]
    pub timeout: Duration,
    /// Write the Helm chart into a folder instead
    #[arg(long, hide = true, value_name = "FOLDER")]
    pub chart: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct UninstallCommand {
    /// Remove the functions and services of all namespaces, too
    #[arg(long)]
    pub all: bool,
    /// How long to wait for everything to be gone
    #[arg(long, default_value = "180s", value_parser = seconds, value_name = "DURATION")]
    pub timeout: Duration,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let (number, factor) = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(seconds), _) => (seconds, 1),
        (None, Some(minutes)) => (minutes, 60),
        (None, None) => (text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let seconds = seconds.ok_or_else(|| format!("{text:?} is no duration; write one like 90s or 3m"))?;
    Ok(Duration::from_secs(seconds))
}

pub async fn install(context: &Context, args: InstallCommand) -> Result<()> {
    let unwritable = |error: std::io::Error| Failure::failed(format!("the chart cannot be written: {error}"));
    if let Some(folder) = &args.chart {
        return chart::write(folder).map_err(unwritable);
    }
    check(&args.settings)?;
    let namespace = context.global.system_namespace.clone();
    let manifests = manifests(&Settings::from_args(&args.settings, &namespace));
    if args.dry_run {
        context.output.raw(yaml::documents(&manifests).as_bytes());
        return Ok(());
    }
    putting::run(context, &args, &namespace, &manifests).await
}

pub async fn uninstall(context: &Context, args: UninstallCommand) -> Result<()> {
    removing::run(context, &args).await
}

/// What a role would refuse at its start, said here.
fn check(args: &InstallArgs) -> Result<()> {
    let wrong = |flag: &str, what: &str, next: &str| Err(Failure::usage(format!("{flag}: {what}")).next(next));
    let (how, detail) = args.exposure.split_once('=').map_or((args.exposure.as_str(), ""), |(how, rest)| (how, rest));
    let good = match how {
        "none" => detail.is_empty(),
        "ingress" => true,
        "httproute" => (1..=2).contains(&detail.matches('/').count()),
        "istio" => !detail.is_empty(),
        _ => false,
    };
    if !good {
        let next = "say none, ingress, ingress=CLASS, httproute=NAMESPACE/NAME[/LISTENER] or istio=GATEWAY";
        return wrong("--exposure", &format!("{:?} is none of them", args.exposure), next);
    }
    for (flag, url) in [("--gateway-address", &args.gateway_address), ("--platform-address", &args.platform_address)] {
        if url.as_ref().is_some_and(|url| crate::http::authority(url).is_none()) {
            return wrong(flag, "not an http:// address", "write it as http://HOST:PORT");
        }
    }
    if let Some(text) = args.build_env.iter().find(|text| !text.contains('=')) {
        return wrong("--build-env", &format!("{text:?} has no value"), "write it as NAME=VALUE");
    }
    Ok(())
}

/// Every object of an installation, in the order in which they are put there.
pub fn manifests(settings: &Settings) -> Vec<Value> {
    let mut made = vec![namespace(settings)];
    made.extend(definitions());
    made.extend(rbac::manifests(settings));
    made.push(endpoints(settings));
    made.extend(network::manifests(settings));
    made.extend(workloads::manifests(settings));
    made.into_iter().filter(|object| !object.is_null()).map(yaml::without_nulls).collect()
}

fn namespace(settings: &Settings) -> Value {
    let mut labels = labels("namespace");
    labels["pod-security.kubernetes.io/enforce"] = json!("restricted");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.namespace, "labels": labels}})
}

fn definitions() -> Vec<Value> {
    let labelled = |mut definition: Value| {
        definition["metadata"]["labels"] = labels("api");
        definition
    };
    let all = api::definitions().into_iter().map(|definition| json!(definition));
    all.map(labelled).collect()
}

/// What the command line needs to know of this installation.
fn endpoints(settings: &Settings) -> Value {
    let data = json!({
        "domain": settings.domain,
        "audience": UPLOAD_AUDIENCE,
        "maxSource": settings.max_source,
        "gateway": settings.gateway_address.map(|url| json!(url)),
        "platform": settings.platform_address.map(|url| json!(url)),
    });
    namespaced("v1", "ConfigMap", ENDPOINTS_CONFIG_MAP, "cli", settings, json!({"data": data}))
}

/// On every object of an installation.
fn labels(component: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "dhow", "app.kubernetes.io/part-of": "dhow", "app.kubernetes.io/managed-by": "dhow",
        "app.kubernetes.io/component": component, "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
    })
}

/// Which pods are of a role.
fn selector(role: &str) -> Value {
    json!({"app.kubernetes.io/part-of": "dhow", "app.kubernetes.io/component": role})
}

fn namespaced(version: &str, kind: &str, name: &str, component: &str, settings: &Settings, rest: Value) -> Value {
    let mut object = json!({
        "apiVersion": version, "kind": kind,
        "metadata": {"name": name, "namespace": settings.namespace, "labels": labels(component)},
    });
    if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
        object.extend(rest);
    }
    object
}

#[cfg(test)]
mod tests;
