//! The builder as a role: every copy takes uploads, and one turns Builds into Jobs.

use std::sync::Arc;

use anyhow::{Context, Result};
use api::names::UPLOAD_AUDIENCE;
use build::cluster::{BaseImage, ClusterConfig, Proxy};
use daemon::OnExit;
use daemon::listener::{Limits, Listener};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;
use kube::api::PostParams;
use kube::{Api, Client};
use platform::{Authorization, Sink};
use registry::remote::{Prefix, Remote, RemoteConfig};
use serde_json::json;

use super::{Process, WORK};

pub const BUILDER_LEASE: &str = "dhow-builder";
/// The key of a ConfigMap that holds an authority, where none is named.
const AUTHORITY_KEY: &str = "ca.crt";
/// What selects the pods of this role.
const COMPONENT: &str = "builder";

pub async fn start(process: &mut Process, args: &cli::roles::BuilderArgs) -> Result<()> {
    let listener = Listener::bind(&args.listen.to_string(), "--listen").await?;
    let config = config(process, args)?;
    let sink = Sink::Remote { remote: Remote::new(&config.remote)?, prefix: config.registry.clone() };
    let hosts = [COMPONENT.to_owned(), service_name(&process.common.pod_namespace)].into();
    let limits = platform::Limits { max_source_bytes: args.max_source, hosts, ..platform::Limits::default() };
    let uploads = platform::service(sink, authorize(process.client.clone()), limits);
    let answer = move |request| {
        let uploads = uploads.clone();
        async move { uploads.handle(request).await }
    };
    process.tasks.spawn(WORK, "platform listener", OnExit::ShutDown, |stop| {
        listener.serve(None, Limits::default(), answer, stop)
    });
    let (client, candidate) = (process.client.clone(), process.candidate(BUILDER_LEASE, 0));
    process.tasks.spawn(WORK, "builds", OnExit::ShutDown, |stop| async move {
        let led = candidate.lead(stop, |stop| build::cluster::run(client, config, stop)).await?;
        led.transpose().map(drop).map_err(anyhow::Error::from)
    });
    Ok(())
}

fn service_name(namespace: &str) -> String {
    format!("dhow-builder.{namespace}.svc")
}

/// Whoever may make tokens for a ServiceAccount of a namespace may upload to that namespace. The token is for this alone,
/// so nobody hands a credential of the cluster to Dhow.
fn authorize(client: Client) -> platform::Authorize {
    Arc::new(move |parts, namespace| -> BoxFuture<'static, Authorization> {
        let Some(token) = crate::up::bearer(parts).map(str::to_owned) else {
            return std::future::ready(Authorization::Unauthenticated).boxed();
        };
        let reviews: Api<TokenReview> = Api::all(client.clone());
        let account = format!("system:serviceaccount:{namespace}:");
        async move {
            let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![UPLOAD_AUDIENCE.to_owned()]) };
            let review = TokenReview { spec, ..TokenReview::default() };
            match reviews.create(&PostParams::default(), &review).await {
                Ok(review) => decide(&review, &account),
                Err(error) => {
                    tracing::warn!(%error, "a token could not be reviewed");
                    Authorization::Unknown
                }
            }
        }
        .boxed()
    })
}

fn decide(review: &TokenReview, account: &str) -> Authorization {
    let Some(status) = &review.status else { return Authorization::Unknown };
    let ours = status.audiences.iter().flatten().any(|audience| audience == UPLOAD_AUDIENCE);
    if status.authenticated != Some(true) || !ours {
        return Authorization::Unauthenticated;
    }
    let name = status.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
    if name.starts_with(account) { Authorization::Allowed } else { Authorization::Forbidden }
}

fn config(process: &Process, args: &cli::roles::BuilderArgs) -> Result<ClusterConfig> {
    let authority = args.registry_ca_configmap.as_ref().map(|text| match text.split_once('/') {
        Some((name, key)) => (name.to_owned(), key.to_owned()),
        None => (text.clone(), AUTHORITY_KEY.to_owned()),
    });
    let base = |image: &str| BaseImage { image: image.to_owned(), interpreter: None };
    let proxy = args.build_proxy_listen.zip(args.build_proxy_url.clone()).map(|(listen, url)| Proxy {
        listen,
        url,
        hosts: match args.build_proxy_host.as_slice() {
            [] => build::Config::package_hosts(),
            given => given.to_vec(),
        },
    });
    Ok(ClusterConfig {
        namespace: process.common.pod_namespace.clone(),
        // What is there at the start is removed, and the folder itself may be a volume.
        work_dir: args.work_dir.join("sources"),
        image: args.image.clone(),
        registry: args.registry.parse::<Prefix>().context("--registry")?,
        registry_for_nodes: args.registry_for_nodes.clone(),
        remote: RemoteConfig {
            ca_file: args.registry_ca.clone(),
            insecure: args.registry_insecure.clone(),
            secure: vec![],
            credentials: args.registry_config.clone(),
        },
        secret: args.registry_secret.clone(),
        authority,
        pull_secrets: args.pull_secret.clone(),
        python: base(&args.base_python),
        node: base(&args.base_node),
        build_env: args.build_env.iter().map(|text| variable(text)).collect::<Result<_>>()?,
        egress: egress(&args.build_egress, proxy.as_ref())?,
        proxy,
        cpu: ClusterConfig::CPU.to_owned(),
        memory_bytes: ClusterConfig::MEMORY_BYTES,
        runtime_class: None,
        max_source_bytes: args.max_source,
        timeout: build::Config::TIMEOUT,
        concurrency: ClusterConfig::CONCURRENCY,
        per_namespace: ClusterConfig::PER_NAMESPACE,
        keep_jobs: ClusterConfig::KEEP_JOBS,
        clock: process.clock.clone(),
    })
}

fn variable(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.with_context(|| format!("--build-env {text}: expected NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What is given, or the public internet; and always the proxy that we offer.
fn egress(given: &[String], proxy: Option<&Proxy>) -> Result<Vec<NetworkPolicyEgressRule>> {
    let mut rules = match given {
        [] => ClusterConfig::public_egress(),
        given => given.iter().map(|text| egress_rule(text)).collect::<Result<_>>()?,
    };
    if let Some(proxy) = proxy {
        let labels = json!({"app.kubernetes.io/part-of": "dhow", "app.kubernetes.io/component": COMPONENT});
        rules.push(serde_json::from_value(json!({
            "ports": [{"port": proxy.listen.port(), "protocol": "TCP"}],
            "to": [{"podSelector": {"matchLabels": labels}}],
        }))?);
    }
    Ok(rules)
}

/// `CIDR`, or `CIDR:PORT`; the colons of an IPv6 network lie before its slash.
fn egress_rule(text: &str) -> Result<NetworkPolicyEgressRule> {
    let wrong = || format!("--build-egress {text}: expected CIDR or CIDR:PORT, such as 10.0.0.0/8:5000");
    let (network, rest) = text.split_once('/').with_context(wrong)?;
    let (length, port) = rest.split_once(':').map_or((rest, None), |(length, port)| (length, Some(port)));
    let most = if network.parse::<std::net::IpAddr>().with_context(wrong)?.is_ipv4() { 32 } else { 128 };
    anyhow::ensure!(length.parse::<u8>().is_ok_and(|length| length <= most), wrong());
    let mut rule = json!({"to": [{"ipBlock": {"cidr": format!("{network}/{length}")}}]});
    if let Some(port) = port {
        rule["ports"] = json!([{"port": port.parse::<u16>().with_context(wrong)?, "protocol": "TCP"}]);
    }
    Ok(serde_json::from_value(rule)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn egress_rules() {
        for (text, want) in [
            ("10.0.0.0/8", Some(json!({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}))),
            (
                "10.1.2.3/32:5000",
                Some(json!({
                    "ports": [{"port": 5000, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
                })),
            ),
            (
                "fd00::/8:443",
                Some(json!({"ports": [{"port": 443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "fd00::/8"}}]})),
            ),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/8:http", None),
            ("registry/8", None),
        ] {
            let rule = egress_rule(text).ok().map(|rule| serde_json::to_value(rule).expect("JSON"));
            assert_eq!(rule, want, "{text}");
        }
    }

    #[test]
    fn who_may_upload() {
        let review = |status| serde_json::from_value(json!({"spec": {}, "status": status})).expect("a review");
        let known = |name: &str, audience: &str| json!({"authenticated": true, "audiences": [audience], "user": {"username": name}});
        for (status, want) in [
            (known("system:serviceaccount:here:default", UPLOAD_AUDIENCE), Authorization::Allowed),
            (known("system:serviceaccount:there:default", UPLOAD_AUDIENCE), Authorization::Forbidden),
            (known("system:serviceaccount:here-2:default", UPLOAD_AUDIENCE), Authorization::Forbidden),
            (known("system:serviceaccount:here:default", "https://kubernetes"), Authorization::Unauthenticated),
            (known("somebody", UPLOAD_AUDIENCE), Authorization::Forbidden),
            (json!({"authenticated": false}), Authorization::Unauthenticated),
            (json!({}), Authorization::Unauthenticated),
            (json!(null), Authorization::Unknown),
        ] {
            assert_eq!(decide(&review(status.clone()), "system:serviceaccount:here:"), want, "{status}");
        }
    }
}
