//! Functions from a folder: Python and Node, their contracts, from zero and back.

use http::Request;
use serde_json::json;

use crate::harness::{Platform, able, eventually};

pub const HELLO: &[(&str, &str)] = &[(
    "main.py",
    "import os\n\ndef handle(request):\n    return {'hello': request.query.get('name', 'world'), 'pod': os.environ['HOSTNAME']}\n",
)];

#[tokio::test]
async fn python_answers_from_zero_warm_and_goes_back_to_zero() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    platform.scale_to_zero("hello");
    assert_eq!(platform.pods("hello"), Vec::<String>::new());
    let cold = platform.get("hello", "/?name=cold").await;
    assert_eq!((cold.status.as_u16(), cold.json()["hello"].as_str()), (200, Some("cold")), "{}", cold.text());
    let warm = platform.get("hello", "/?name=warm").await;
    assert_eq!(warm.json()["pod"], cold.json()["pod"], "a warm request uses the instance that is there");
    assert_eq!(platform.pods("hello"), [cold.json()["pod"].as_str().expect("a pod's name").to_owned()]);
    platform.scale_to_zero("hello");
    assert_eq!(platform.pods("hello"), Vec::<String>::new());
}

#[tokio::test]
async fn idle_functions_go_to_zero_by_themselves() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let manifest = json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "brief"},
        "spec": {"runtime": "python", "scale": {"idleSeconds": 6},
                 "source": {"inline": {"files": {"main.py": "def handle(request):\n    return 'ok'\n"}}}},
    });
    let path = platform.dir.path().join("brief.json");
    std::fs::write(&path, manifest.to_string()).expect("written");
    platform.kubectl_ok(&["apply", "-f", path.to_str().expect("UTF-8")]);
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "function/brief", "--timeout=60s"]);
    assert_eq!(platform.get("brief", "/").await.text(), "ok");
    eventually("the idle instance is gone", || async {
        let pods = platform.pods("brief");
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await;
    assert_eq!(platform.get("brief", "/").await.text(), "ok");
}

#[tokio::test]
async fn node_serves_fetch_and_listener_handlers() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let fetch = "export default { async fetch(request) { const u = new URL(request.url);\n  return new Response(`hello ${u.searchParams.get('name')} ${await request.text()}`, {headers: {'x-kind': 'fetch'}}); } };\n";
    platform.deploy("fetching", &[("package.json", r#"{"type":"module","main":"index.mjs"}"#), ("index.mjs", fetch)]);
    let reply = platform.send("fetching", Request::post("/?name=node"), "body").await;
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "hello node body"));
    assert_eq!(reply.headers["x-kind"], "fetch");
    let listener = "module.exports = (req, res) => { res.setHeader('content-type', 'text/plain'); res.end('classic ' + req.url); };\n";
    platform.deploy("classic", &[("index.js", listener)]);
    assert_eq!(platform.get("classic", "/a/b?c=1").await.text(), "classic /a/b?c=1");
    platform.scale_to_zero("classic");
    assert_eq!(platform.get("classic", "/again").await.text(), "classic /again");
}

#[tokio::test]
async fn python_serves_asgi_and_wsgi_applications() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let asgi = "async def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    await send({'type': 'http.response.start', 'status': 201, 'headers': [(b'x-kind', b'asgi')]})\n    await send({'type': 'http.response.body', 'body': scope['path'].encode()})\n";
    platform.deploy("asgi", &[("main.py", asgi)]);
    let reply = platform.get("asgi", "/some/path").await;
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (201, "/some/path"));
    let wsgi = "def app(environ, start_response):\n    start_response('200 OK', [('content-type', 'text/plain')])\n    return [b'wsgi ', environ['PATH_INFO'].encode()]\n";
    platform.deploy("wsgi", &[("main.py", wsgi)]);
    assert_eq!(platform.get("wsgi", "/x").await.text(), "wsgi /x");
}

#[tokio::test]
async fn events_arrive_in_both_http_modes() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let python = "def handle_event(event):\n    print('event', event.id)\n    return {'type': 'reply', 'source': '/python', 'data': {'saw': event.type, 'n': event.data['n']}}\n";
    let node = "export async function onEvent(event) { return {type: 'reply', source: '/node', data: {saw: event.type, n: event.data.n}}; }\n";
    platform.deploy("pyevents", &[("main.py", python)]);
    platform.deploy("jsevents", &[("index.mjs", node)]);
    for function in ["pyevents", "jsevents"] {
        let binary = Request::post("/")
            .header("ce-specversion", "1.0")
            .header("ce-id", "1")
            .header("ce-type", "binary")
            .header("ce-source", "/test")
            .header("content-type", "application/json");
        let structured =
            json!({"specversion": "1.0", "id": "2", "type": "structured", "source": "/test", "data": {"n": 2}});
        for (request, body, want) in [
            (binary, r#"{"n":1}"#.to_owned(), json!({"saw": "binary", "n": 1})),
            (
                Request::post("/").header("content-type", "application/cloudevents+json"),
                structured.to_string(),
                json!({"saw": "structured", "n": 2}),
            ),
        ] {
            let reply = platform.send(function, request, body).await;
            assert_eq!(reply.status.as_u16(), 200, "{function}: {}", reply.text());
            assert_eq!(reply.headers["ce-type"], "reply", "{function}");
            assert_eq!(reply.json(), want, "{function}");
        }
        let malformed = Request::post("/").header("content-type", "application/cloudevents+json");
        assert_eq!(platform.send(function, malformed, "{").await.status.as_u16(), 400, "{function}");
    }
}

#[tokio::test]
async fn dependencies_are_installed_once_and_cached() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let files = |answer: &str| {
        vec![
            ("requirements.txt", "iniconfig==2.0.0\n".to_owned()),
            (
                "main.py",
                format!("import iniconfig\n\ndef handle(request):\n    return '{answer} ' + iniconfig.__name__\n"),
            ),
        ]
    };
    fn borrow<'a>(files: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
        files.iter().map(|(name, content)| (*name, content.as_str())).collect()
    }
    platform.deploy("deps", &borrow(&files("one")));
    assert_eq!(platform.get("deps", "/").await.text(), "one iniconfig");
    platform.deploy("deps", &borrow(&files("two")));
    eventually("the new revision answers", || async {
        let text = platform.get("deps", "/").await.text();
        if text == "two iniconfig" { Ok(()) } else { Err(text) }
    })
    .await;
    platform.deploy(
        "jsdeps",
        &[
            ("package.json", r#"{"name":"jsdeps","type":"module","main":"index.mjs","dependencies":{"is-number":"7.0.0"}}"#),
            ("index.mjs", "import isNumber from 'is-number';\nexport default { fetch: () => new Response(String(isNumber(3))) };\n"),
        ],
    );
    assert_eq!(platform.get("jsdeps", "/").await.text(), "true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_deploy_replaces_the_old_without_a_failed_request() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let source = |answer: u32| format!("def handle(request):\n    return '{answer}'\n");
    platform.deploy("rolling", &[("main.py", &source(0))]);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (gateway, host, stopped) = (platform.endpoint("gateway"), platform.host("rolling"), stop.clone());
    let load = tokio::spawn(async move {
        let mut answers = vec![];
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let request = Request::get("/").header("host", &host).body(Default::default()).expect("a request");
            let reply = crate::harness::send(&gateway, request).await.expect("an answer");
            answers.push((reply.status.as_u16(), reply.text()));
        }
        answers
    });
    for answer in 1..=3 {
        let dir = platform.write_function("rolling", &[("main.py", &source(answer))]);
        let path = dir.to_str().expect("UTF-8").to_owned();
        let output = tokio::task::block_in_place(|| platform.dhow(&["deploy", &path]));
        assert!(output.status.success(), "{}", crate::harness::said(&output));
        eventually("the new source answers", || async {
            let text = platform.get("rolling", "/").await.text();
            if text == answer.to_string() { Ok(()) } else { Err(text) }
        })
        .await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let answers = load.await.expect("the load ends");
    let failed: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), answers.len());
}
