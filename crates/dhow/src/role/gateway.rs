//! The gateway as a role: every copy routes, and reports to whoever leads the autoscalers.

use anyhow::Result;
use daemon::OnExit;
use gateway::Gateway;
use tokio::sync::mpsc;

use super::{GATEWAY, Process, WORK, leaders};

pub fn start(process: &mut Process, args: &cli::roles::GatewayArgs) -> Result<()> {
    let config = gateway::Config {
        public: args.gateway_listen,
        secure: args.gateway_tls_listen,
        // The gateway's Service is what the outside world sees.
        secure_port: Some(super::HTTPS),
        internal: args.gateway_internal_listen,
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()).min(16),
        limits: gateway::Limits::default(),
        grace: crate::up::GATEWAY_GRACE,
        name: process.common.pod_name.clone(),
        cluster: Some(gateway::Own { ip: process.common.pod_ip, namespace: process.common.pod_namespace.clone() }),
    };
    let gateway = Gateway::bind(config, &mut process.metrics)?;
    let ready = process.readiness.register("routes");
    let mut synced = gateway.feed().synced();
    process.tasks.spawn(WORK, "readiness", OnExit::Fine, |stop| async move {
        if let Some(Ok(_)) = stop.run_until_cancelled(synced.wait_for(|synced| *synced)).await {
            ready.ready();
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let (to_autoscaler, messages) = mpsc::channel(crate::up::POKES);
    let feed = gateway.feed();
    let (client, namespace) = (process.client.clone(), process.common.pod_namespace.clone());
    process.tasks.spawn(WORK, "reports", OnExit::ShutDown, |stop| async move {
        gateway::push(&feed, client, leaders::AUTOSCALER_LEASE, &namespace, messages, stop).await;
        Ok::<(), std::convert::Infallible>(())
    });
    let client = process.client.clone();
    process.tasks.spawn(GATEWAY, "gateway", OnExit::ShutDown, |stop| gateway.run(client, to_autoscaler, stop));
    Ok(())
}
