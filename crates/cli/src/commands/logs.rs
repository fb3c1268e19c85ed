//! `dhow logs`: what the instances of a function print, each line as it comes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::pin::Pin;

use api::build::Build;
use api::function::Function;
use api::names::label;
use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{condition, connect, function};
use crate::args::{Format, LogsArgs};
use crate::connect::Platform;
use crate::output::printable;
use crate::progress::{headline, last_words};
use crate::{Context, Failure, Result};

/// Lines between the readers and the terminal; readers wait while it is full.
const LINES: usize = 256;
/// A longer line is shown as several.
const LINE_BYTES: u64 = 64 << 10;

pub async fn run(context: &Context, args: &LogsArgs) -> Result<()> {
    let platform = connect(context).await?;
    let found = function(&platform, &args.name).await?;
    let params =
        LogParams { follow: args.follow, tail_lines: args.tail, previous: args.previous, ..LogParams::default() };
    let printer = Printer { context, format: args.format.format };
    if args.follow {
        return follow(&printer, &platform, args, params).await;
    }
    let selector = selector(&args.name);
    let pods = platform.api::<Pod>().list(&ListParams::default().labels(&selector)).await;
    let pods = pods.map_err(|e| Failure::api(&format!("listing the instances of {}", args.name), &e))?.items;
    let names: Vec<&str> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
    if names.is_empty() {
        return nothing_runs(&printer, &platform, &found).await;
    }
    for name in &names {
        let mut lines = match Lines::open(&platform.api(), name, &params).await {
            Ok(lines) => lines,
            Err(error) => {
                printer.words(&format!("{name}: {}", said(&error)));
                continue;
            }
        };
        loop {
            match lines.next().await {
                Ok(Some(line)) if printer.line(name, &line, names.len() > 1) => {}
                Ok(Some(_)) => return Ok(()),
                Ok(None) => break,
                Err(error) => {
                    printer.words(&format!("{name}: the rest of its log cannot be read: {error}"));
                    break;
                }
            }
        }
    }
    Ok(())
}

fn selector(function: &str) -> String {
    format!("{}={function}", label::FUNCTION)
}

/// Without an instance there may be a build that says why.
async fn nothing_runs(printer: &Printer<'_>, platform: &Platform, found: &Function) -> Result<()> {
    let name = found.metadata.name.as_deref().unwrap_or_default();
    let (built, reason, _) = condition(found, api::function::BUILT);
    let build = found.status.as_ref().and_then(|s| s.build.clone());
    if built == "False"
        && let Some(build) = build
    {
        printer.words(&format!("{name} never ran: its build failed ({reason}); the last lines of build/{build}:"));
        let status = platform.api::<Build>().get_opt(&build).await.ok().flatten().and_then(|b| b.status);
        for line in status.unwrap_or_default().log_tail {
            printer.line(&build, &line, false);
        }
        return Ok(());
    }
    let (ready, reason, message) = condition(found, "Ready");
    printer.words(&format!("{name} has no instance now, and their output goes with them"));
    if ready == "True" {
        printer.words(&format!("next: dhow logs {name} -f, and in another terminal: dhow invoke {name}"));
    } else {
        printer.words(&printable(&format!("{name} is not ready: {reason}: {}", headline(message))));
        for line in last_words(message) {
            printer.line(name, &line, false);
        }
    }
    Ok(())
}

/// Every instance there is and will be, until the command is interrupted.
async fn follow(printer: &Printer<'_>, platform: &Platform, args: &LogsArgs, params: LogParams) -> Result<()> {
    let bound = watcher::Config::default().labels(&selector(&args.name));
    let mut changes = watcher(platform.api::<Pod>(), bound).default_backoff().applied_objects().boxed();
    let (sender, mut lines) = mpsc::channel::<(String, String)>(LINES);
    let mut readers = JoinSet::new();
    // Which run of each instance is being read, so that a restarted one is read again.
    let mut read: HashMap<String, i32> = HashMap::new();
    let mut waiting = true;
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(pod)) => {
                    let Some((name, run)) = started(&pod) else { continue };
                    let before = read.insert(name.clone(), run);
                    if before != Some(run) {
                        waiting = false;
                        // Of a later run everything is new.
                        let tail_lines = if before.is_none() { params.tail_lines } else { None };
                        let params = LogParams { tail_lines, ..params.clone() };
                        readers.spawn(stream(platform.api(), name, params, sender.clone()));
                    }
                }
                Some(Err(error)) => printer.words(&format!("interrupted: {}", crate::failure::innermost(&error))),
                None => return Ok(()),
            },
            Some((name, line)) = lines.recv() => {
                if !printer.line(&name, &line, read.len() > 1) {
                    return Ok(());
                }
            }
            Some(_) = readers.join_next() => {}
            () = tokio::time::sleep(std::time::Duration::from_secs(1)), if waiting => {
                waiting = false;
                printer.words(&format!("{} has no instance now; waiting for the next", args.name));
            }
        }
    }
}

/// The instance and which of its runs has begun.
fn started(pod: &Pod) -> Option<(String, i32)> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let state = container.state.as_ref()?;
    (state.running.is_some() || state.terminated.is_some()).then_some(())?;
    Some((pod.metadata.name.clone()?, container.restart_count))
}

async fn stream(pods: Api<Pod>, name: String, params: LogParams, lines: mpsc::Sender<(String, String)>) {
    let reading = async {
        let mut read = Lines::open(&pods, &name, &params).await.map_err(|error| said(&error))?;
        while let Some(line) = read.next().await.map_err(|error| error.to_string())? {
            if lines.send((name.clone(), line)).await.is_err() {
                break;
            }
        }
        Ok::<(), String>(())
    };
    if let Err(error) = reading.await {
        // Nobody reads any more when this cannot be said.
        let _ = lines.send((name.clone(), format!("(its log cannot be read: {error})"))).await;
    }
}

/// The lines of one instance's log. A function may write any bytes: what is no UTF-8 is shown as a replacement, and a
/// line without an end comes in pieces.
struct Lines(Pin<Box<dyn AsyncBufRead + Send>>);

impl Lines {
    async fn open(pods: &Api<Pod>, name: &str, params: &LogParams) -> kube::Result<Self> {
        Ok(Self(Box::pin(pods.log_stream(name, params).await?)))
    }

    async fn next(&mut self) -> std::io::Result<Option<String>> {
        let mut line = vec![];
        let read = (&mut self.0).take(LINE_BYTES).read_until(b'\n', &mut line).await?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok((read > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
    }
}

fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => crate::failure::innermost(other),
    }
}

struct Printer<'a> {
    context: &'a Context,
    format: Format,
}

impl Printer<'_> {
    /// Whether anybody still reads.
    fn line(&self, instance: &str, line: &str, many: bool) -> bool {
        let text = match self.format {
            Format::Json => json!({"instance": instance, "line": line}).to_string(),
            Format::Text if many => format!("[{instance}] {}", shown(line)),
            Format::Text => shown(line).into_owned(),
        };
        self.context.output.raw(format!("{text}\n").as_bytes())
    }

    fn words(&self, text: &str) {
        self.context.output.words(text);
    }
}

/// A function must not move the cursor of whoever reads its log; a file or a pipe gets what was written.
fn shown(line: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { printable(line).into() } else { line.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_bytes_are_lines() {
        let long = vec![b'x'; LINE_BYTES as usize + 1];
        let log = [b"plain\n\xff\xfe\n\n".as_slice(), &long, b"\nlast"].concat();
        let mut lines = Lines(Box::pin(futures::io::Cursor::new(log)));
        let mut seen = vec![];
        while let Some(line) = lines.next().await.expect("memory can be read") {
            seen.push(line);
        }
        assert_eq!(seen[..3], ["plain", "\u{fffd}\u{fffd}", ""]);
        assert_eq!((seen[3].len(), seen[4].as_str()), (LINE_BYTES as usize, "x"), "a long line comes in pieces");
        assert_eq!(seen[5], "last");
    }
}
