//! `dhow delete`: the function, and everything that was made from it.

use std::time::Duration;

use api::function::Function;
use api::names::label;
use api::serving::Service;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use tokio::time::{Instant, sleep};

use super::{connect, unknown};
use crate::args::DeleteArgs;
use crate::connect::Platform;
use crate::{Context, Failure, Result};

const LOOK_EVERY: Duration = Duration::from_millis(50);

pub async fn run(context: &Context, args: &DeleteArgs) -> Result<()> {
    let name = &args.name;
    let platform = connect(context).await?;
    match platform.api::<Function>().delete(name, &DeleteParams::background()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Err(unknown(&platform, name)),
        Err(error) => return Err(Failure::api(&format!("deleting function {name}"), &error)),
    }
    if args.no_wait {
        context.output.words(&format!("{name} is being deleted"));
        return Ok(());
    }
    let until = Instant::now() + Duration::from_secs(args.timeout);
    while let Some(left) = left(&platform, name).await? {
        if Instant::now() >= until {
            return Err(Failure::failed(format!("{name} is still on its way out after {} s: {left}", args.timeout))
                .next("it goes on; instances finish the requests they have"));
        }
        sleep(LOOK_EVERY).await;
    }
    context.output.words(&format!("{name} is deleted"));
    Ok(())
}

/// What is left of it, if anything.
async fn left(platform: &Platform, name: &str) -> Result<Option<String>> {
    let failed = |e: kube::Error| Failure::api(&format!("waiting for the end of {name}"), &e);
    if platform.api::<Function>().get_opt(name).await.map_err(failed)?.is_some() {
        return Ok(Some(format!("function/{name}")));
    }
    let service = platform.api::<Service>().get_opt(name).await.map_err(failed)?;
    let labelled =
        |s: &Service| s.metadata.labels.as_ref().and_then(|l| l.get(label::FUNCTION)).is_some_and(|f| f == name);
    if service.as_ref().is_some_and(labelled) {
        return Ok(Some(format!("service.serving.knative.dev/{name}")));
    }
    let selector = format!("{}={name}", label::FUNCTION);
    let pods = platform.api::<Pod>().list(&ListParams::default().labels(&selector)).await.map_err(failed)?;
    Ok(pods.items.into_iter().find_map(|p| p.metadata.name).map(|pod| format!("pod/{pod}")))
}
