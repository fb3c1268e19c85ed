//! The command line: every reading command speaks JSON, every error says what to do next.

use serde_json::Value;

use crate::function::HELLO;
use crate::harness::{DHOW, Platform, able, stderr};

#[tokio::test]
async fn every_reading_command_speaks_json() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    for args in [vec!["list"], vec!["describe", "hello"], vec!["status"], vec!["version"], vec!["logs", "hello"]] {
        let mut with_json = args.clone();
        with_json.extend(["-o", "json"]);
        let text = platform.dhow_ok(&with_json);
        for line in if args[0] == "logs" { text.lines().collect::<Vec<_>>() } else { vec![text.as_str()] } {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{args:?}: {e}: {line}"));
        }
    }
    let described: Value = serde_json::from_str(&platform.dhow_ok(&["describe", "hello", "-o", "json"])).expect("JSON");
    assert_eq!(described["instances"].as_array().map(Vec::len), Some(1), "{described}");
}

#[tokio::test]
async fn new_deploy_invoke_logs_delete() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    for language in ["python", "node"] {
        let name = format!("my-{language}");
        let run = |args: &[&str]| {
            let output = std::process::Command::new(DHOW)
                .args(args)
                .current_dir(platform.dir.path())
                .env("DHOW_KUBECONFIG", platform.kubeconfig())
                .output()
                .expect("dhow runs");
            assert!(output.status.success(), "{args:?}: {}", crate::harness::said(&output));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        run(&["new", language, &name]);
        let url = run(&["deploy", &name]);
        assert!(url.trim().starts_with(&format!("http://{}", platform.host(&name))), "{url}");
        assert!(!run(&["invoke", &name, "--data", "x"]).is_empty());
        assert!(run(&["list"]).contains(&name));
        run(&["delete", &name]);
        assert!(!run(&["list", "-o", "json"]).contains(&name));
    }
    let again = platform.dhow(&["new", "python", platform.dir.path().join("my-python").to_str().expect("UTF-8")]);
    assert!(!again.status.success(), "new never overwrites");
}

#[tokio::test]
async fn scale_up_on_request() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    platform.dhow_ok(&["scale", "hello", "--to", "3"]);
    assert_eq!(platform.pods("hello").len(), 3);
    platform.scale_to_zero("hello");
    assert_eq!(platform.pods("hello").len(), 0);
}

#[test]
fn errors_say_what_to_do_next() {
    let run = |args: &[&str]| {
        let output = std::process::Command::new(DHOW)
            .args(args)
            .env_remove("KUBECONFIG")
            .env("DHOW_KUBECONFIG", "/nonexistent/kubeconfig")
            .output()
            .expect("dhow runs");
        (output.status.code(), stderr(&output))
    };
    let (code, said) = run(&["list"]);
    assert!(code != Some(0) && said.contains("dhow up"), "{code:?} {said}");
    let (code, said) = run(&["deploy", "/nonexistent/folder"]);
    assert!(code != Some(0) && said.contains("/nonexistent/folder"), "{code:?} {said}");
    let (code, said) = run(&["new", "cobol", "x"]);
    assert!(code == Some(2) && said.contains("python") && said.contains("node"), "{code:?} {said}");
}
