//! Images made by tests, pushed as any client pushes.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use registry::Digest;
use registry::image::layer_from_dir;
use serde_json::{Value, json};

use super::{Platform, send};

impl Platform {
    /// A Linux image that holds nothing but one program of `tests/tools` at its root, and what is in `root` already. Gives its
    /// name, with its digest.
    pub async fn image(&self, name: &str, root: &Path, program: &str, mut config: Value) -> String {
        std::fs::create_dir_all(root).expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/tools/{program}.rs"));
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let flags = ["--edition=2024", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"];
        let compiled = Command::new(rustc).args(flags).arg(root.join(program)).arg(source).status();
        assert!(compiled.expect("rustc runs").success());
        let mut layer = vec![];
        let info = layer_from_dir(root, "/", &mut layer).expect("a layer");
        config["Entrypoint"] = json!([format!("/{program}")]);
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": config, "rootfs": {"type": "layers", "diff_ids": [info.diff_id]},
        });
        let config = config.to_string().into_bytes();
        let blob =
            |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": Digest::of(bytes), "size": bytes.len()});
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media,
            "config": blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        for bytes in [&config, &layer] {
            let path = format!("/v2/default/{name}/blobs/uploads/?digest={}", Digest::of(bytes));
            push(self, Method::POST, &path, "application/octet-stream", bytes).await;
        }
        let digest = Digest::of(&manifest);
        push(self, Method::PUT, &format!("/v2/default/{name}/manifests/latest"), media, &manifest).await;
        format!("{}/default/{name}@{digest}", self.endpoint("registry"))
    }
}

async fn push(platform: &Platform, method: Method, path: &str, media: &str, body: &[u8]) {
    let config: Value = serde_json::from_slice(&std::fs::read(platform.kubeconfig()).expect("a file")).expect("JSON");
    let token = config["users"][0]["user"]["token"].as_str().expect("a token").to_owned();
    let credentials = STANDARD.encode(format!("dhow:{token}"));
    let address = platform.endpoint("registry");
    let request = Request::builder().method(method).uri(path).header("host", &address).header("content-type", media);
    let request = request.header("authorization", format!("Basic {credentials}")).body(body.to_vec().into());
    let reply = send(&address, request.expect("a request")).await.expect("an answer");
    assert_eq!(reply.status, 201, "{path}: {}", reply.text());
}
