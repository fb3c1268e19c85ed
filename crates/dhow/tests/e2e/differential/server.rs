//! One of the two servers: scripts in, answers out.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::mask::Masks;
use super::script::{Request, Script};
use crate::harness::eventually;

/// A real server serves a new kind within a second or two.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a server answered one step, with what it made up masked.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub media: String,
    pub warnings: Vec<String>,
    /// Of a watch: its events.
    pub body: Value,
}

pub struct Server {
    client: Client,
}

impl Server {
    pub async fn new(kubeconfig: &Path) -> Self {
        let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let mut config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a good kubeconfig");
        config.read_timeout = Some(Duration::from_secs(60));
        Self { client: Client::try_from(config).expect("a client") }
    }

    /// The answers to a script's steps, in a namespace that is made for it and removed after it.
    pub async fn run(&self, script: &Script, namespace: &str) -> Vec<Answer> {
        self.make(namespace).await;
        let mut masks = Masks::new();
        let (mut answers, mut raw) = (vec![], vec![]);
        for step in &script.steps {
            let request = step.fill(namespace, &raw);
            let (status, media, warnings, bytes) = match request.method.as_str() {
                "WAIT" => self.wait(Request { method: "GET".into(), ..request }).await,
                _ => self.ask(&request).await,
            };
            let body = parse(&bytes);
            answers.push(Answer {
                status,
                media,
                warnings: warnings.iter().map(|text| masks.text(text)).collect(),
                body: masks.body(&body),
            });
            raw.push(body);
        }
        let delete = Request {
            method: "DELETE".into(),
            path: format!("/api/v1/namespaces/{namespace}"),
            headers: vec![],
            body: Bytes::new(),
        };
        self.ask(&delete).await;
        answers
    }

    async fn make(&self, namespace: &str) {
        let body = json!({"metadata": {"name": namespace}}).to_string();
        let request =
            Request { method: "POST".into(), path: "/api/v1/namespaces".into(), headers: vec![], body: body.into() };
        let (status, _, _, answer) = self.ask(&request).await;
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&answer));
    }

    /// The answer that is a success, or what is answered instead of one for far too long.
    async fn wait(&self, request: Request) -> (u16, String, Vec<String>, Bytes) {
        let success = eventually(&request.path, || async {
            let answer = self.ask(&request).await;
            if answer.0 == 200 { Ok(answer) } else { Err(answer.0) }
        });
        match tokio::time::timeout(PATIENCE, success).await {
            Ok(answer) => answer,
            Err(_) => self.ask(&request).await,
        }
    }

    async fn ask(&self, request: &Request) -> (u16, String, Vec<String>, Bytes) {
        let mut builder = http::Request::builder().method(request.method.as_str()).uri(&request.path);
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if !request.body.is_empty() && !request.headers.iter().any(|(name, _)| name == "content-type") {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        let body = Body::from(request.body.to_vec());
        let response = self.client.send(builder.body(body).expect("a request")).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let media = parts.headers.get(CONTENT_TYPE).map(text).unwrap_or_default();
        let warnings = parts.headers.get_all("warning").iter().map(text).collect();
        let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_else(|e| format!("broken: {e}").into());
        (parts.status.as_u16(), media, warnings, bytes)
    }
}

/// A document, the documents of a watch, or text.
fn parse(bytes: &[u8]) -> Value {
    let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(bytes).into_iter().collect();
    match documents {
        Ok(mut documents) if documents.len() == 1 => documents.remove(0),
        Ok(documents) => Value::Array(documents),
        Err(_) => Value::String(String::from_utf8_lossy(bytes).into_owned()),
    }
}
