//! Pod logs: forwarded to the node that runs the pod, and streamed back.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tower::{Service, ServiceExt};

use crate::handler::Call;
use crate::status::{ApiError, Result};
use crate::{Inner, ResponseBody, whole};

/// What the node's API understands of `PodLogOptions`.
const OPTIONS: [&str; 7] = ["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "previous"];
/// An error text of the node is not worth more.
const LONGEST_ERROR: usize = 4096;

impl Inner {
    pub(crate) async fn pod_log(&self, call: &Call<'_>) -> Result<Response<ResponseBody>> {
        let (namespace, name) = (call.namespace.unwrap_or_default(), call.name.unwrap_or_default());
        let not_found = || ApiError::NotFound { resource: call.kind.resource(), name: name.to_owned() };
        let entry = self.store.get(&call.kind.key(call.namespace, name)).ok_or_else(not_found)?;
        let pod: Value = serde_json::from_slice(&entry.value).map_err(|e| ApiError::Internal(e.to_string()))?;
        let container = container(&pod, name, call.query.get("container"))?;
        if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
        }
        let Some(proxy) = &self.node_proxy else {
            return Err(ApiError::Unavailable("no node's API can be reached from here".into()));
        };
        let query: Vec<String> = OPTIONS
            .iter()
            .filter_map(|option| Some((option, call.query.get(option)?)))
            .map(|(option, value)| format!("{option}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let uri = format!("/containerLogs/{namespace}/{name}/{container}?{}", query.join("&"));
        let request = Request::get(uri).body(whole(Bytes::new())).map_err(|e| ApiError::Internal(e.to_string()))?;
        let unreachable = |error| ApiError::Unavailable(format!("the node's API could not be reached: {error}"));
        let mut proxy = proxy.clone();
        let response = proxy.ready().await.map_err(unreachable)?.call(request).await.map_err(unreachable)?;
        let (parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            let text = error_text(body).await;
            return Err(match parts.status {
                StatusCode::NOT_FOUND => not_found(),
                status if status.is_client_error() => ApiError::BadRequest(text),
                _ => ApiError::Internal(format!("the node could not give the log: {text}")),
            });
        }
        let mut response = Response::new(body);
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        Ok(response)
    }
}

/// The beginning of what the node answered instead of a log.
pub(crate) async fn error_text(mut body: ResponseBody) -> String {
    let mut text = vec![];
    while let Some(Ok(frame)) = body.frame().await
        && text.len() < LONGEST_ERROR
    {
        if let Some(data) = frame.data_ref() {
            text.extend_from_slice(&data[..data.len().min(LONGEST_ERROR - text.len())]);
        }
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// The container that is meant, as Kubernetes guesses it.
pub(crate) fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String> {
    let list = |field: &str| -> Vec<String> {
        let items = pod["spec"][field].as_array().into_iter().flatten();
        items.filter_map(|container| Some(container["name"].as_str()?.to_owned())).collect()
    };
    let (containers, init) = (list("containers"), list("initContainers"));
    match asked {
        Some(asked) if containers.iter().chain(&init).any(|known| known == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(ApiError::BadRequest(format!("container {asked} is not valid for pod {name}"))),
        None => match containers.as_slice() {
            [only] => Ok(only.clone()),
            many => Err(ApiError::BadRequest(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                many.join(" ")
            ))),
        },
    }
}
