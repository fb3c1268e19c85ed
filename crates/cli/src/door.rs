//! How the gateway and the platform API are reached: at an address that is published, or through the Kubernetes API.
//!
//! The surprise: on a cluster nothing needs to be reachable from here. Whoever may forward a port to Dhow's pods gets in,
//! which is how `kubectl port-forward` works, too.

use std::fmt;
use std::time::Duration;

use http::uri::Authority;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Portforwarder};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::failure::innermost;
use crate::http::authority;

const CONNECT: Duration = Duration::from_secs(5);

/// A part of Dhow whose pods can be reached through the Kubernetes API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub component: &'static str,
    pub port: u16,
}

pub const GATEWAY: Part = Part { component: "gateway", port: 8080 };
pub const BUILDER: Part = Part { component: "builder", port: 8081 };

#[derive(Clone)]
pub enum Door {
    /// `http://host:port`
    At(String),
    Through {
        client: Client,
        namespace: String,
        part: Part,
    },
}

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A way in, and what must live as long.
pub struct Way {
    pub stream: Box<dyn Stream>,
    pub forwarder: Option<Portforwarder>,
}

impl Door {
    /// What `Host` says where no function is meant.
    pub fn host(&self) -> String {
        match self {
            Door::At(url) => authority(url).map(|a| a.to_string()).unwrap_or_default(),
            Door::Through { part, .. } => part.component.to_owned(),
        }
    }

    pub async fn connect(&self) -> Result<Way, String> {
        let connecting = async {
            match self {
                Door::At(url) => dial(url).await,
                Door::Through { client, namespace, part } => forward(client, namespace, *part).await,
            }
        };
        let connected = tokio::time::timeout(CONNECT, connecting).await;
        connected.unwrap_or_else(|_| Err("it takes too long to connect".into()))
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Door::At(url) => f.write_str(url),
            Door::Through { namespace, part, .. } => write!(f, "the {} pods in {namespace}", part.component),
        }
    }
}

async fn dial(url: &str) -> Result<Way, String> {
    let authority: Authority = authority(url).ok_or("only http:// addresses are spoken to")?;
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.map_err(|e| e.to_string())?;
    // A small request must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    Ok(Way { stream: Box::new(stream), forwarder: None })
}

async fn forward(client: &Client, namespace: &str, part: Part) -> Result<Way, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let labels = format!("app.kubernetes.io/part-of=dhow,app.kubernetes.io/component={}", part.component);
    let found = pods.list(&ListParams::default().labels(&labels)).await.map_err(|e| innermost(&e))?;
    let name = found.items.iter().find(|pod| serves(pod)).and_then(|pod| pod.metadata.name.as_deref());
    let name = name.ok_or_else(|| match found.items.len() {
        0 => format!("no pod is labelled {labels}"),
        count => format!("none of its {count} pods is ready"),
    })?;
    let mut forwarder = pods.portforward(name, &[part.port]).await.map_err(|e| innermost(&e))?;
    let stream = forwarder.take_stream(part.port).ok_or("the port cannot be forwarded")?;
    Ok(Way { stream: Box::new(stream), forwarder: Some(forwarder) })
}

fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none() && { conditions }.any(|c| c.type_ == "Ready" && c.status == "True")
}
