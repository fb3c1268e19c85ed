//! `dhow scale`: a request to the autoscaler, which alone sets the number of instances.

use std::time::Duration;

use api::autoscaling::{PodAutoscaler, ScaleRequest};
use api::function::Function;
use api::names::annotation;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{MANAGER, condition, connect, function};
use crate::args::ScaleArgs;
use crate::connect::Platform;
use crate::{Context, Failure, Result, instances};

const LOOK_EVERY: Duration = Duration::from_millis(50);

pub async fn run(context: &Context, args: &ScaleArgs) -> Result<()> {
    let ScaleArgs { name, to, .. } = args;
    let platform = connect(context).await?;
    let found = function(&platform, name).await?;
    let Some(revision) = found.status.as_ref().and_then(|s| s.revision.clone()) else {
        let (_, reason, _) = condition(&found, "Ready");
        return Err(Failure::failed(format!("{name} has no revision that is ready yet: {reason}"))
            .object(format!("function/{name}"))
            .next(format!("dhow describe {name}")));
    };
    let request = ScaleRequest { replicas: *to, at: (context.clock)() };
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let patch = json!({"metadata": {"annotations": {annotation::SCALE_REQUEST: request.to_string()}}});
    let patched = platform.api::<PodAutoscaler>().patch(&revision, &params, &Patch::Merge(patch)).await;
    patched.map_err(|e| {
        Failure::api(&format!("asking for {to} instances"), &e).object(format!("podautoscaler/{revision}"))
    })?;
    if !args.no_wait {
        wait(&platform, &found, &revision, args).await?;
    }
    context.output.words(&match to {
        0 => format!("{name} has no instances; the next request starts one"),
        1 => format!("{name} has 1 instance"),
        many => format!("{name} has {many} instances"),
    });
    Ok(())
}

async fn wait(platform: &Platform, found: &Function, revision: &str, args: &ScaleArgs) -> Result<()> {
    let wanted = usize::try_from(args.to).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let pods = instances::pods_and_leaving(platform, &platform.api(), Some(&args.name)).await?;
        let here: Vec<_> = pods.iter().map(instances::instance).filter(|i| i.revision == revision).collect();
        let ready = here.iter().filter(|i| i.ready).count();
        if here.len() == wanted && ready == wanted {
            return Ok(());
        }
        if Instant::now() >= until {
            let what = format!("{} has {} instances, {ready} of them ready, not {wanted}", args.name, here.len());
            let max = found.spec.scale.as_ref().and_then(|s| s.max).filter(|max| *max > 0 && *max < args.to);
            let next = match max {
                Some(max) => format!("spec.scale.max is {max}: raise it and scale again"),
                None if args.to == 0 => "those that are busy go when they are idle".to_owned(),
                None => format!("dhow describe {}", args.name),
            };
            return Err(Failure::failed(what).object(format!("podautoscaler/{revision}")).next(next));
        }
        sleep(LOOK_EVERY).await;
    }
}
