//! `dhow backup`: a copy of everything that a running platform knows, from its own hands.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::args::BackupArgs;
use crate::http as wire;
use crate::{Context, Failure, Result};

const WHAT: &str = "the platform API";
/// An error's text is not worth more.
const PROBLEM_BYTES: usize = 64 << 10;

pub async fn run(context: &Context, args: &BackupArgs) -> Result<()> {
    if args.file.exists() {
        return Err(Failure::failed(format!("{} is there already", args.file.display())).next("name another file"));
    }
    let platform = super::connect(context).await?;
    let endpoints = platform.endpoints().await?;
    if endpoints.audience.is_some() {
        return Err(
            Failure::failed("on a cluster everything is kept by the cluster").next("back up the cluster's etcd")
        );
    }
    let door = platform.uploads(&endpoints)?;
    let mut request = Request::builder().method(Method::GET).uri("/v1/backup").header(header::HOST, door.host());
    if let Some(token) = &platform.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(wire::whole(""));
    let request = request.map_err(|e| Failure::failed(format!("the backup cannot be asked for: {e}")))?;
    let answer = wire::send(WHAT, &door, request).await?;
    let status = answer.response.status();
    if status != StatusCode::OK {
        let text = answer.text(PROBLEM_BYTES).await;
        return Err(wire::refused("the platform did not make a backup", status, &text));
    }
    let bytes = receive(answer, &args.file).await?;
    context.output.words(&format!("{bytes} bytes of backup are in {}", args.file.display()));
    Ok(())
}

/// Under another name until all of it is there: half a backup looks like one.
async fn receive(mut answer: wire::Answer, path: &Path) -> Result<u64> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let failed = |e: std::io::Error| {
        Failure::failed(format!("writing {}: {e}", path.display()))
            .next("is there room for it, and may you write there?")
    };
    // Secrets are in it.
    let file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial);
    let mut file = tokio::fs::File::from_std(file.map_err(failed)?);
    let mut bytes = 0;
    while let Some(frame) = answer.response.body_mut().frame().await {
        let broken = |e: hyper::Error| {
            Failure::failed(format!("the backup broke off after {bytes} bytes: {}", crate::failure::innermost(&e)))
                .next("try again")
        };
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            file.write_all(&data).await.map_err(failed)?;
            bytes += data.len() as u64;
        }
    }
    file.sync_all().await.map_err(failed)?;
    tokio::fs::rename(&partial, path).await.map_err(failed)?;
    Ok(bytes)
}
