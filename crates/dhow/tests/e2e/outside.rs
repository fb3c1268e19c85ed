//! From outside a cluster to a service, through whatever the operator has at its edge.

use http::Request;

use crate::harness::{IMAGE, Platform, container, eventually, on_cluster, said, send};

/// Where Envoy listens, which tests/cluster/outside.sh starts.
const EDGE: &str = "127.0.0.1:18080";

#[tokio::test]
#[ignore = "needs an installation with --exposure: tests/cluster/run.sh"]
async fn a_request_comes_in_through_the_edge() {
    let how = std::env::var("DHOW_TEST_OUTSIDE").unwrap_or_default();
    let (kind, has_data_plane) = match how.split('=').next().unwrap_or_default() {
        "ingress" => ("ingresses.networking.k8s.io", true),
        "httproute" => ("httproutes.gateway.networking.k8s.io", true),
        "istio" => ("virtualservices.networking.istio.io", false),
        _ => return eprintln!("skipped: DHOW_TEST_OUTSIDE says not how"),
    };
    if !on_cluster() {
        return;
    }
    let platform = Platform::start().await;
    platform.apply(&container("hello", IMAGE));
    platform.serves("hello");
    let object = platform.object(kind, "hello-outside");
    assert!(object.to_string().contains(&platform.host("hello")), "{object}");
    if has_data_plane {
        let answer = eventually("an answer through the edge", || async {
            let request = Request::get("/").header("host", platform.host("hello")).body(Default::default());
            let reply = send(EDGE, request.expect("a request")).await.map_err(|e| e.to_string())?;
            if reply.status == 200 { Ok(reply.text()) } else { Err(format!("{} {}", reply.status, reply.text())) }
        })
        .await;
        assert_eq!(answer.trim(), "it works");
    }
    platform.kubectl_ok(&["delete", "ksvc/hello"]);
    eventually("nothing leads there any more", || async {
        let output = platform.kubectl(&["get", kind, "hello-outside"]);
        if said(&output).contains("not found") { Ok(()) } else { Err(said(&output)) }
    })
    .await;
}
