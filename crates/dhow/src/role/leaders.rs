//! The roles of which one copy works: the controllers, and the autoscaler.

use anyhow::{Context, Result, bail};
use control::{Cluster, Duty, Exposure, GatewayRef};
use daemon::OnExit;
use daemon::listener::{Limits, Listener};
use tokio::sync::mpsc;

use super::{Process, WORK};

pub const CONTROLLER_LEASE: &str = "dhow-controller";
pub const AUTOSCALER_LEASE: &str = "dhow-autoscaler";
/// The Service of the gateways' listener on the pods' side, in Dhow's own namespace.
const GATEWAY_SERVICE: &str = "dhow-gateway-internal";

pub fn controller(process: &mut Process, args: &cli::roles::ControllerArgs) -> Result<()> {
    let exposure = exposure(&args.exposure).with_context(|| format!("--exposure {}", args.exposure))?;
    let mut config = config(process, &args.domain, args.gateway_port, exposure);
    if let Some(cluster) = &mut config.cluster {
        cluster.pull_secrets.clone_from(&args.pull_secret);
    }
    let (client, candidate) = (process.client.clone(), process.candidate(CONTROLLER_LEASE, 0));
    process.tasks.spawn(WORK, "controllers", OnExit::ShutDown, |stop| async move {
        let led = candidate.lead(stop, |stop| control::run(client, config, Duty::Controllers, stop)).await?;
        led.transpose().map(drop).map_err(anyhow::Error::from)
    });
    Ok(())
}

/// Every copy listens, since a gateway may be sooner to know the leader than the leader itself.
pub async fn autoscaler(process: &mut Process, args: &cli::roles::AutoscalerArgs) -> Result<()> {
    let listener = Listener::bind(&args.listen.to_string(), "--listen").await?;
    let (to_leader, messages) = mpsc::channel(crate::up::POKES);
    let config = config(process, "", 0, Exposure::None);
    let candidate = process.candidate(AUTOSCALER_LEASE, listener.address().port());
    let client = process.client.clone();
    process.tasks.spawn(WORK, "autoscaler", OnExit::ShutDown, |stop| async move {
        let led = candidate.lead(stop, |stop| control::run(client, config, Duty::Autoscaler(messages), stop)).await?;
        led.transpose().map(drop).map_err(anyhow::Error::from)
    });
    let answer = control::receive(to_leader);
    process.tasks.spawn(WORK, "reports listener", OnExit::ShutDown, |stop| {
        listener.serve(None, Limits::default(), answer, stop)
    });
    Ok(())
}

fn config(process: &Process, domain: &str, gateway_port: u16, exposure: Exposure) -> control::Config {
    control::Config {
        domain: domain.to_owned(),
        gateway_port,
        gateway_tls_port: super::HTTPS,
        namespace: process.common.pod_namespace.clone(),
        // No pod is bound here: the cluster has a scheduler.
        node_name: String::new(),
        cluster: Some(Cluster {
            pre_stop_seconds: Cluster::PRE_STOP_SECONDS,
            gateway: format!("{GATEWAY_SERVICE}.{}.svc.cluster.local", process.common.pod_namespace),
            exposure,
            pull_secrets: vec![],
        }),
        // A kubelet pulls by itself, from any registry.
        tags: None,
        clock: process.clock.clone(),
    }
}

fn exposure(text: &str) -> Result<Exposure> {
    let (how, detail) = text.split_once('=').map_or((text, None), |(how, detail)| (how, Some(detail)));
    match (how, detail) {
        ("none", None) => Ok(Exposure::None),
        ("ingress", class) => Ok(Exposure::Ingress { class: class.map(str::to_owned) }),
        ("httproute", Some(gateway)) => {
            let parts: Vec<&str> = gateway.split('/').collect();
            let (namespace, name, section) = match parts.as_slice() {
                [namespace, name] => (namespace, name, None),
                [namespace, name, section] => (namespace, name, Some((*section).to_owned())),
                _ => bail!("name a Gateway as httproute=NAMESPACE/NAME[/LISTENER]"),
            };
            let gateway = GatewayRef { namespace: (*namespace).to_owned(), name: (*name).to_owned(), section };
            Ok(Exposure::HttpRoute { gateway })
        }
        ("istio", Some(gateways)) => Ok(Exposure::Istio { gateways: gateways.split(',').map(str::to_owned).collect() }),
        _ => bail!("expected none, ingress, ingress=CLASS, httproute=NAMESPACE/NAME or istio=GATEWAY"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposures() {
        let gateway = |section: Option<&str>| Exposure::HttpRoute {
            gateway: GatewayRef { namespace: "net".into(), name: "edge".into(), section: section.map(str::to_owned) },
        };
        for (text, want) in [
            ("none", Some(Exposure::None)),
            ("ingress", Some(Exposure::Ingress { class: None })),
            ("ingress=nginx", Some(Exposure::Ingress { class: Some("nginx".into()) })),
            ("httproute=net/edge", Some(gateway(None))),
            ("httproute=net/edge/https", Some(gateway(Some("https")))),
            ("istio=a,b/c", Some(Exposure::Istio { gateways: vec!["a".into(), "b/c".into()] })),
            ("httproute=edge", None),
            ("istio", None),
            ("none=1", None),
            ("nginx", None),
        ] {
            assert_eq!(exposure(text).ok(), want, "{text}");
        }
    }
}
