//! One program in a sandbox, from its start to its end.
//!
//! Owns the sandbox while it exists: whatever happens, it is gone when [`run`] returns. Must not know what the program
//! does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use runtime::{
    ContainerSpec, Exit, ExitReason, Limits, LogOptions, Mount, Network, Phase, Program, Provider, ProviderError, Root,
    Sandbox, SandboxSpec, Serve, Source,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::BuildError;
use crate::plan::{NPM, PYTHON, RESULT, StepEnd};
use crate::source::measure;

const CONTAINER: &str = "build";
pub const MEMORY_BYTES: u64 = 1 << 30;
pub const TMP_BYTES: u64 = 512 << 20;
const PIDS: u32 = 512;
const LOG_BYTES: u64 = 1 << 20;
/// What the result may take on disk. No limit of the sandbox counts it, so it is measured while the step runs.
pub const RESULT_BYTES: u64 = 2 << 30;
pub const RESULT_ENTRIES: u64 = 400_000;
const MEASURE_EVERY: Duration = Duration::from_secs(1);
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

pub struct Step {
    /// Of the sandbox; no pod has one like it.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub argv: Vec<String>,
    /// Where the program starts; read-only.
    pub source: PathBuf,
    /// An empty folder to write to.
    pub result: PathBuf,
    pub proxy: std::net::SocketAddr,
    pub timeout: Duration,
}

/// How it ended; `None` for well. With it, what it printed.
pub struct Ended {
    pub failure: Option<StepEnd>,
    pub output: String,
}

pub async fn run(provider: &dyn Provider, step: &Step, shutdown: &CancellationToken) -> Result<Ended, BuildError> {
    // What is left of an attempt that was cut off.
    provider.stop(&step.uid, Duration::ZERO).await?;
    let ended = attempt(provider, step, shutdown).await;
    provider.stop(&step.uid, Duration::ZERO).await?;
    ended
}

async fn attempt(provider: &dyn Provider, step: &Step, shutdown: &CancellationToken) -> Result<Ended, BuildError> {
    let mut events = provider.events();
    let mut sandbox = provider.create(Arc::new(sandbox(step))).await?;
    let timeout = tokio::time::sleep(step.timeout);
    tokio::pin!(timeout);
    let mut measured = tokio::time::interval(MEASURE_EVERY);
    let failure = loop {
        if let Some(exit) = exit_of(&sandbox) {
            break match failure_of(&exit) {
                None => excess(step).await?,
                failure => failure,
            };
        }
        tokio::select! {
            () = shutdown.cancelled() => return Err(BuildError::Interrupted),
            () = &mut timeout => break Some(StepEnd::TimedOut { seconds: step.timeout.as_secs() }),
            _ = measured.tick() => {
                if let Some(too_much) = excess(step).await? {
                    break Some(too_much);
                }
            }
            event = events.recv() => match event {
                Ok(changed) if changed.uid == step.uid => sandbox = changed,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => sandbox = listed(provider, &step.uid).await?,
                Err(RecvError::Closed) => return Err(ProviderError::LauncherGone.into()),
            },
        }
    };
    let output = match &failure {
        Some(_) => output(provider, &step.uid).await?,
        None => String::new(),
    };
    Ok(Ended { failure, output })
}

/// Which limit the result is over, if any.
async fn excess(step: &Step) -> Result<Option<StepEnd>, BuildError> {
    let result = step.result.clone();
    let (bytes, entries) = crate::blocking(move || measure(&result)).await?;
    Ok(match () {
        () if bytes > RESULT_BYTES => Some(StepEnd::TooLarge { limit_bytes: RESULT_BYTES }),
        () if entries > RESULT_ENTRIES => Some(StepEnd::TooMany { limit: RESULT_ENTRIES }),
        () => None,
    })
}

async fn listed(provider: &dyn Provider, uid: &str) -> Result<Sandbox, BuildError> {
    let found = provider.list().await?.into_iter().find(|sandbox| sandbox.uid == uid);
    found.ok_or_else(|| ProviderError::NotFound { uid: uid.to_owned() }.into())
}

fn exit_of(sandbox: &Sandbox) -> Option<Exit> {
    sandbox.containers.iter().find_map(|container| match &container.phase {
        Phase::Exited(exit) => Some(exit.clone()),
        _ => None,
    })
}

fn failure_of(exit: &Exit) -> Option<StepEnd> {
    match (exit.reason, exit.code) {
        (ExitReason::OutOfMemory, _) => Some(StepEnd::OutOfMemory { limit_bytes: MEMORY_BYTES }),
        (_, 0) => None,
        (_, code) => Some(StepEnd::Exited(code)),
    }
}

async fn output(provider: &dyn Provider, uid: &str) -> Result<String, BuildError> {
    let options = LogOptions { limit_bytes: Some(LOG_BYTES), tail_lines: Some(200), ..LogOptions::default() };
    let mut stream = provider.logs(uid, CONTAINER, options).await?;
    let mut bytes = vec![];
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() as u64 > LOG_BYTES {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn sandbox(step: &Step) -> SandboxSpec {
    let limits = Limits {
        memory_bytes: Some(MEMORY_BYTES),
        pids: PIDS,
        tmp_bytes: TMP_BYTES,
        log_bytes: LOG_BYTES,
        ..Limits::default()
    };
    let mount = |host: &PathBuf, inside: &str, writable| Mount {
        source: Source::Host(host.clone()),
        inside: inside.into(),
        writable,
    };
    let container = ContainerSpec {
        name: CONTAINER.into(),
        init: false,
        root: Root::Host,
        program: Program::Exec { argv: step.argv.clone() },
        user: None,
        env: environment(step),
        working_dir: "/src".into(),
        mounts: vec![mount(&step.source, "/src", false), mount(&step.result, "/out", true)],
        limits,
        serve: Serve::Nothing,
    };
    SandboxSpec {
        uid: step.uid.clone(),
        namespace: step.namespace.clone(),
        name: step.name.clone(),
        network: Network::Only(step.proxy),
        volumes: vec![],
        containers: vec![container],
    }
}

fn environment(step: &Step) -> Vec<(String, String)> {
    let proxy = format!("http://{}", step.proxy);
    let mut env = vec![
        (RESULT, "/out"),
        // The system's, whatever else is on the path: sandboxes see nothing but the system.
        (PYTHON, "/usr/bin/python3"),
        (NPM, "/usr/bin/npm"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("HTTPS_PROXY", &proxy),
        ("https_proxy", &proxy),
        ("HTTP_PROXY", &proxy),
        ("http_proxy", &proxy),
        // A host that is refused stays refused.
        ("PIP_RETRIES", "2"),
        ("PIP_DEFAULT_TIMEOUT", "30"),
        ("npm_config_fetch_retries", "2"),
    ];
    // Where the system's certificates lie in one file, they count, those of the operator included.
    if std::path::Path::new(AUTHORITIES).is_file() {
        env.extend(["PIP_CERT", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"].map(|name| (name, AUTHORITIES)));
    }
    env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
