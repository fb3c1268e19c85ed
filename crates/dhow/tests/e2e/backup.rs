//! What is kept can be copied while the platform runs, put back while it does not, and looked through either way.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Platform, kubectl, machine, said};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A process that is not asked to follow says all of a watch and ends by itself.
fn watch_since(platform: &Platform, revision: &str) -> String {
    let path = format!("/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1&resourceVersion={revision}");
    platform.kubectl_ok(&["get", "--raw", &path])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_made_online_and_restored_offline() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let mut platform = Platform::start().await;
    let data = platform.data_dir();
    let (copy, other) = (data.with_file_name("copy.db"), data.with_file_name("other.db"));
    let (data, copy, other) = (text(&data).to_owned(), text(&copy).to_owned(), text(&other).to_owned());
    platform.deploy("kept", &[("main.py", "def handle(request):\n    return 'kept'\n")]);
    platform.kubectl_ok(&["create", "configmap", "kept", "--from-literal=a=old"]);
    platform.dhow_ok(&["backup", &copy]);
    let mode = std::fs::metadata(&copy).expect("a backup").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "secrets are in it");
    let again = platform.dhow(&["backup", &copy]);
    assert!(said(&again).contains("is there already"), "{}", said(&again));
    platform.dhow_ok(&["backup", &other, "--data-dir", &data]);
    for file in [&copy, &other] {
        let report: Value =
            serde_json::from_str(&platform.dhow_ok(&["db", "check", file, "-o", "json"])).expect("JSON");
        assert!(report["objects"].as_u64() > Some(5) && report["problems"] == serde_json::json!([]), "{report}");
    }
    assert!(platform.dhow_ok(&["db", "check", "--data-dir", &data]).contains("all sound"), "while it runs");

    // Life goes on, and is undone.
    platform.kubectl_ok(&["patch", "configmap", "kept", "--type=merge", "-p", r#"{"data":{"a":"new"}}"#]);
    platform.kubectl_ok(&["create", "configmap", "later", "--from-literal=a=new"]);
    platform.dhow_ok(&["delete", "kept"]);
    let later = platform.object("configmap", "later");
    let held = later["metadata"]["resourceVersion"].as_str().expect("a revision");
    let refused = platform.dhow(&["restore", &copy, "--data-dir", &data]);
    assert!(!refused.status.success() && said(&refused).contains("stop it"), "{}", said(&refused));
    assert_eq!(platform.stop().await, 0);
    let restored = platform.dhow(&["restore", &copy, "--data-dir", &data]);
    assert!(
        restored.status.success() && said(&restored).contains("what was there before is in"),
        "{}",
        said(&restored)
    );
    assert!(platform.dhow_ok(&["db", "check", "--data-dir", &data]).contains("all sound"));
    platform.launch().await;
    assert_eq!(platform.object("configmap", "kept")["data"]["a"], "old");
    assert_eq!(platform.object("configmap", "later"), Value::Null);
    assert_eq!(platform.get("kept", "/").await.text(), "kept", "its image is still there");
    // Who watched what is no longer so is told to look again.
    let seen = watch_since(&platform, held);
    assert!(seen.contains(r#""type":"ERROR""#) && seen.contains("too old resource version"), "{seen}");
    platform.stop_and_count().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_named_and_refused() {
    if !machine() {
        return;
    }
    let mut platform = Platform::start().await;
    let data = platform.data_dir();
    let copy = data.with_file_name("copy.db");
    let (data, copy) = (text(&data).to_owned(), text(&copy).to_owned());
    platform.dhow_ok(&["backup", &copy]);
    assert_eq!(platform.stop().await, 0);
    // One bit of one value, which the file's own format does not see.
    let mut bytes = std::fs::read(&copy).expect("a backup");
    let needle = br#""kind":"Namespace""#;
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("an object");
    bytes[at + 9] ^= 1;
    let broken = format!("{copy}.broken");
    std::fs::write(&broken, bytes).expect("written");
    let checked = platform.dhow(&["db", "check", &broken]);
    assert!(!checked.status.success() && said(&checked).contains("wrong checksum"), "{}", said(&checked));
    let refused = platform.dhow(&["restore", &broken, "--data-dir", &data]);
    assert!(!refused.status.success() && said(&refused).contains("wrong checksum"), "{}", said(&refused));
    for (file, want) in [("/nonexistent", "cannot open"), ("/proc/self/exe", "not a database")] {
        let refused = platform.dhow(&["restore", file, "--data-dir", &data]);
        assert!(!refused.status.success() && said(&refused).contains(want), "{file}: {}", said(&refused));
    }
    platform.launch().await;
    platform.stop_and_count().await;
    // A machine that has nothing yet takes a backup, too.
    let mut second = Platform::new(&[]);
    let empty = second.data_dir();
    second.dhow_ok(&["restore", &copy, "--data-dir", text(&empty)]);
    second.launch().await;
    second.stop_and_count().await;
}
