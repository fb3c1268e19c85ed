//! `dhow invoke`: one request through the gateway; the answer's body goes to stdout as it comes.

use std::io::Read;

use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::BodyExt;

use super::{condition, connect, function};
use crate::args::InvokeArgs;
use crate::failure::innermost;
use crate::http::{self as wire, Body};
use crate::{Context, Failure, Result};

/// What is read from stdin at most; a file may be as large as it is.
const STDIN_BYTES: u64 = 64 << 20;

pub async fn run(context: &Context, args: InvokeArgs) -> Result<()> {
    let name = args.name.clone();
    let head = Head::parse(&args)?;
    let platform = connect(context).await?;
    let found = function(&platform, &name).await?;
    let Some(url) = found.status.as_ref().and_then(|s| s.url.clone()) else {
        let (_, reason, message) = condition(&found, "Ready");
        let why = format!("{reason} {}", message.lines().next().unwrap_or_default());
        return Err(Failure::failed(format!("{name} has no URL yet: {}", why.trim()))
            .object(format!("function/{name}"))
            .next(format!("dhow describe {name}")));
    };
    let host = wire::authority(&url).ok_or_else(|| Failure::failed(format!("{url} is not an http:// URL")))?;
    let endpoints = platform.endpoints().await?;
    let (body, length) = body(args.data.as_deref()).await?;
    let mut request = Request::builder().method(head.method).uri(head.path);
    if let Some(headers) = request.headers_mut() {
        if let Ok(value) = HeaderValue::from_str(host.as_str()) {
            headers.insert(header::HOST, value);
        }
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        for (name, value) in head.headers {
            headers.append(name, value);
        }
    }
    let request = request.body(body).map_err(|e| Failure::usage(format!("this cannot be asked for: {e}")))?;
    let mut answer = wire::send("the gateway", &platform.gateway(&endpoints)?, request).await?;
    let status = answer.response.status();
    while let Some(frame) = answer.response.body_mut().frame().await {
        let frame = frame.map_err(|e| {
            Failure::failed(format!("the answer of {name} broke off: {}", innermost(&e)))
                .next(format!("dhow logs {name}"))
        })?;
        if let Some(data) = frame.data_ref()
            && !context.output.raw(data)
        {
            return Ok(());
        }
    }
    if status.is_success() {
        return Ok(());
    }
    Err(Failure::failed(format!("{name} answered {status}")).next(format!("dhow logs {name}")))
}

#[derive(Debug)]
struct Head {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    fn parse(args: &InvokeArgs) -> Result<Self> {
        let default = if args.data.is_some() { "POST" } else { "GET" };
        let method = args.method.as_deref().unwrap_or(default).to_ascii_uppercase();
        let method = method.parse().map_err(|_| Failure::usage(format!("{method:?} is not a method")))?;
        let path = if args.path.starts_with('/') { args.path.clone() } else { format!("/{}", args.path) };
        let headers = args.header.iter().map(|text| {
            let wrong = || Failure::usage(format!("--header {text:?} is not NAME: VALUE"));
            let (name, value) = text.split_once(':').ok_or_else(wrong)?;
            let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
            if [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(&name) {
                return Err(Failure::usage(format!("--header {name} is set by the command itself")));
            }
            Ok((name, value.trim().parse().map_err(|_| wrong())?))
        });
        Ok(Self { method, path, headers: headers.collect::<Result<_>>()? })
    }
}

/// The body, and how long it is when there is one.
async fn body(data: Option<&str>) -> Result<(Body, Option<u64>)> {
    let unreadable = |what: &str, e: std::io::Error| Failure::usage(format!("{what} cannot be read: {e}"));
    match data {
        None => Ok((wire::whole(""), None)),
        Some("-") => {
            let read = tokio::task::spawn_blocking(|| {
                let mut bytes = vec![];
                std::io::stdin().take(STDIN_BYTES + 1).read_to_end(&mut bytes).map(|_| bytes)
            });
            let bytes = read.await.map_err(|e| Failure::failed(e.to_string()))?;
            let bytes = bytes.map_err(|e| unreadable("stdin", e))?;
            if bytes.len() as u64 > STDIN_BYTES {
                return Err(Failure::usage("stdin gives more than 64 MiB").next("put it into a file: --data @FILE"));
            }
            let length = bytes.len() as u64;
            Ok((wire::whole(bytes), Some(length)))
        }
        Some(data) => match data.strip_prefix('@') {
            Some(path) => {
                let file = tokio::fs::File::open(path).await.map_err(|e| unreadable(path, e))?;
                let metadata = file.metadata().await.map_err(|e| unreadable(path, e))?;
                // Of a pipe nobody knows how long it is.
                Ok((wire::streamed(file), metadata.is_file().then_some(metadata.len())))
            }
            None => Ok((wire::whole(data.to_owned()), Some(data.len() as u64))),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn heads() {
        let head = |words: &[&str]| {
            let words = ["dhow", "invoke", "hello"].iter().chain(words);
            match Cli::try_parse_from(words).unwrap().command {
                Command::Invoke(args) => Head::parse(&args),
                other => panic!("{other:?}"),
            }
        };
        let shown = |head: Head| format!("{} {} {:?}", head.method, head.path, head.headers);
        for (words, want) in [
            (&[][..], "GET / []"),
            (&["-d", "x"][..], "POST / []"),
            (&["-d", "x", "-X", "put", "--path", "a?b=c"][..], "PUT /a?b=c []"),
            (&["-H", "A: b:c", "-H", "d:"][..], "GET / [(\"a\", \"b:c\"), (\"d\", \"\")]"),
        ] {
            assert_eq!(shown(head(words).unwrap()), want);
        }
        for words in [&["-H", "nonsense"][..], &["-H", "host: x"][..], &["-X", "A B"][..], &["-H", "a b: c"][..]] {
            assert!(head(words).is_err(), "{words:?}");
        }
    }
}
