//! Copies of all that the platform knows: who gets one, and when.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::io::{Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use platform::{Authorization, Backup, Limits, Service, service};

/// Larger than what is read of it at a time.
fn content() -> Vec<u8> {
    (0..1_000_000u32).map(|i| (i % 251) as u8).collect()
}

/// `administrator` may have all of the platform, `owner` a part.
fn served(backup: Option<Backup>) -> (tempfile::TempDir, Service) {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry::Registry::open(folder.path()).unwrap();
    let authorize = |parts: &http::request::Parts, namespace: &str| {
        let decided = match parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()) {
            Some(b"Bearer administrator") => Authorization::Allowed,
            Some(b"Bearer owner") if namespace == "default" => Authorization::Allowed,
            Some(b"Bearer owner") => Authorization::Forbidden,
            Some(b"Bearer of-one-who-is-away") => Authorization::Unknown,
            _ => Authorization::Unauthenticated,
        };
        std::future::ready(decided).boxed()
    };
    let service = service(registry, Arc::new(authorize), Limits::default());
    let service = match backup {
        Some(backup) => service.with_backups(backup),
        None => service,
    };
    (folder, service)
}

fn copies() -> Backup {
    Arc::new(|| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content()).unwrap();
        file.rewind().unwrap();
        std::future::ready(Ok(file)).boxed()
    })
}

async fn ask(service: &Service, method: &Method, headers: &[(&str, &str)]) -> Response<platform::Body> {
    let mut request = Request::builder().method(method).uri("/v1/backup");
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    service.handle(request.body(Full::<Bytes>::default()).unwrap()).await
}

const ADMINISTRATOR: (&str, &str) = ("authorization", "Bearer administrator");

#[tokio::test]
async fn who_gets_one() {
    let (_folder, service) = served(Some(copies()));
    for (method, headers, status, error) in [
        (Method::GET, vec![], 401, "Unauthenticated"),
        (Method::GET, vec![("authorization", "Bearer x")], 401, "Unauthenticated"),
        (Method::GET, vec![("authorization", "Bearer owner")], 403, "Forbidden"),
        (Method::GET, vec![("authorization", "Bearer of-one-who-is-away")], 503, "Undecided"),
        (Method::POST, vec![ADMINISTRATOR], 405, "MethodNotAllowed"),
        (Method::HEAD, vec![ADMINISTRATOR], 405, "MethodNotAllowed"),
        (Method::POST, vec![], 405, "MethodNotAllowed"),
        (Method::GET, vec![ADMINISTRATOR, ("host", "evil.example")], 421, "ForeignHost"),
        (Method::GET, vec![ADMINISTRATOR, ("origin", "http://evil.example")], 403, "ForeignOrigin"),
    ] {
        let (parts, body) = ask(&service, &method, &headers).await.into_parts();
        let body: serde_json::Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!((parts.status.as_u16(), body["error"].as_str()), (status, Some(error)), "{method} {headers:?}");
        assert!(body["next"].as_str().is_some_and(|next| !next.is_empty()), "{body}");
        assert_eq!(parts.headers.contains_key(header::ALLOW), status == 405);
        assert!(!body.to_string().contains("upload"), "it is about something else: {body}");
    }
    let (parts, body) = ask(&service, &Method::GET, &[ADMINISTRATOR]).await.into_parts();
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers[header::CONTENT_TYPE], "application/vnd.sqlite3");
    assert_eq!(parts.headers[header::CONTENT_LENGTH], content().len().to_string());
    assert_eq!(body.collect().await.unwrap().to_bytes(), content());
    let (_folder, without) = served(None);
    assert_eq!(ask(&without, &Method::GET, &[ADMINISTRATOR]).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn one_at_a_time() {
    let (_folder, service) = served(Some(copies()));
    let first = ask(&service, &Method::GET, &[ADMINISTRATOR]).await;
    assert_eq!(first.status(), StatusCode::OK);
    let second = ask(&service, &Method::GET, &[ADMINISTRATOR]).await;
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.headers()[header::RETRY_AFTER], "1");
    let text = second.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("too many backups are in progress"));
    // A client that leaves in the middle makes room for the next, and so does one that has all of it.
    drop(first);
    for _ in 0..2 {
        let next = ask(&service, &Method::GET, &[ADMINISTRATOR]).await;
        assert_eq!(next.into_body().collect().await.unwrap().to_bytes().len(), content().len());
    }
}

#[tokio::test]
async fn a_copy_that_cannot_be_made() {
    let broken = Arc::new(AtomicBool::new(true));
    let backup: Backup = {
        let broken = broken.clone();
        Arc::new(move || match broken.load(Ordering::Relaxed) {
            true => std::future::ready(Err(std::io::Error::other("/var/lib/dhow is full"))).boxed(),
            false => copies()(),
        })
    };
    let (_folder, service) = served(Some(backup));
    let refused = ask(&service, &Method::GET, &[ADMINISTRATOR]).await;
    assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("BackupFailed") && !text.contains("/var/lib"), "{text}");
    broken.store(false, Ordering::Relaxed);
    assert_eq!(ask(&service, &Method::GET, &[ADMINISTRATOR]).await.status(), StatusCode::OK);
}
