//! SIGTERM and SIGKILL of the platform in the middle of things: what was acknowledged goes on, and nothing is left.

use http::Request;

use crate::function::HELLO;
use crate::harness::{Platform, eventually, kubectl, machine};

#[tokio::test]
async fn sigterm_in_the_middle_of_a_request_lets_it_finish() {
    if !machine() {
        return;
    }
    let mut platform = Platform::start().await;
    let slow = "import time\n\ndef handle(request):\n    print('begun')\n    time.sleep(2)\n    return 'finished'\n";
    platform.deploy("slow", &[("main.py", slow)]);
    let (gateway, host) = (platform.endpoint("gateway"), platform.host("slow"));
    let call = tokio::spawn(async move {
        let request = Request::get("/").header("host", host).body(Default::default()).expect("a request");
        crate::harness::send(&gateway, request).await.map(|r| (r.status.as_u16(), r.text())).map_err(|e| e.to_string())
    });
    eventually("the request is being handled", || async {
        let logs = platform.dhow_ok(&["logs", "slow"]);
        if logs.contains("begun") { Ok(()) } else { Err(logs) }
    })
    .await;
    assert_eq!(platform.stop().await, 0, "{}", platform.log());
    assert_eq!(call.await.expect("the call ends"), Ok((200, "finished".to_owned())));
}

/// A function whose installation takes its time, and needs no network.
const SLOW_TO_BUILD: &[(&str, &str)] = &[
    ("index.mjs", "import word from 'slow';\nexport default { fetch: () => new Response(word) };\n"),
    (
        "package.json",
        r#"{"main": "index.mjs", "scripts": {"preinstall": "sleep 3"}, "dependencies": {"slow": "file:./slow"}}"#,
    ),
    ("slow/package.json", r#"{"name": "slow", "version": "1.0.0", "main": "index.js"}"#),
    ("slow/index.js", "module.exports = 'built';\n"),
];

#[tokio::test]
async fn sigterm_and_sigkill_in_the_middle_of_a_build() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let mut platform = Platform::start().await;
    for (round, kill) in [true, false].into_iter().enumerate() {
        let name = format!("mid{round}");
        let dir = platform.write_function(&name, SLOW_TO_BUILD);
        platform.dhow_ok(&["deploy", "--no-wait", dir.to_str().expect("UTF-8")]);
        eventually("the build is under way", || async {
            let function = platform.object("function", &name);
            let built =
                function["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Built");
            let reason = built.map(|c| c["reason"].clone()).unwrap_or_default();
            if reason == "Running" { Ok(()) } else { Err(reason) }
        })
        .await;
        if kill {
            platform.kill();
        } else {
            assert_eq!(platform.stop().await, 0, "{}", platform.log());
        }
        platform.launch().await;
        eventually("it is built, and answers", || async {
            let reply = platform.get(&name, "/").await;
            if reply.text() == "built" { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    }
    platform.stop_and_count().await;
}

#[tokio::test]
async fn sigkill_in_the_middle_of_a_request() {
    if !machine() {
        return;
    }
    let mut platform = Platform::start().await;
    let slow = "import time\n\ndef handle(request):\n    print('begun', request.path)\n    time.sleep(request.path == '/slow' and 60)\n    return 'ok'\n";
    platform.deploy("slow", &[("main.py", slow)]);
    let (gateway, host) = (platform.endpoint("gateway"), platform.host("slow"));
    let call = tokio::spawn(async move {
        let request = Request::get("/slow").header("host", host).body(Default::default()).expect("a request");
        crate::harness::send(&gateway, request).await.map(|r| r.status.as_u16()).map_err(|e| e.to_string())
    });
    eventually("the request is being handled", || async {
        let logs = platform.dhow_ok(&["logs", "slow"]);
        if logs.contains("begun /slow") { Ok(()) } else { Err(logs) }
    })
    .await;
    platform.kill();
    assert!(call.await.expect("the call ends").is_err(), "the caller is told by the connection");
    platform.launch().await;
    eventually("the function is there", || async {
        let reply = platform.get("slow", "/").await;
        if reply.text() == "ok" { Ok(()) } else { Err(reply.text()) }
    })
    .await;
    platform.stop_and_count().await;
}

#[tokio::test]
async fn sigterm_and_sigkill_in_the_middle_of_a_deploy() {
    if !machine() {
        return;
    }
    let mut platform = Platform::start().await;
    for (round, kill) in [true, false].into_iter().enumerate() {
        let name = format!("mid{round}");
        let dir = platform.write_function(&name, HELLO);
        let path = dir.to_str().expect("UTF-8").to_owned();
        platform.dhow_ok(&["deploy", "--no-wait", &path]);
        if kill {
            platform.kill();
        } else {
            platform.stop().await;
        }
        platform.launch().await;
        platform.kubectl_ok(&["wait", "--for=condition=Ready", &format!("function/{name}"), "--timeout=60s"]);
        eventually("it answers", || async {
            let reply = platform.get(&name, "/").await;
            if reply.status.as_u16() == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    }
    platform.stop_and_count().await;
}
