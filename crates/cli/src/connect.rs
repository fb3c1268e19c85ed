//! Finding the platform: its kubeconfig, its API, and where it says that it listens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::names::ENDPOINTS_CONFIG_MAP;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};

use crate::args::Global;
use crate::door::{self, Door};
use crate::failure::innermost;
use crate::{Failure, Result};

const CONNECT: Duration = Duration::from_secs(5);
/// The shortest that an API server gives.
const TOKEN_SECONDS: i64 = 600;

/// A platform that was found; it may not answer.
pub struct Platform {
    pub client: Client,
    pub server: String,
    pub namespace: String,
    /// Dhow's own.
    pub system_namespace: String,
    /// The kubeconfig's bearer token, which the platform API wants as well.
    pub token: Option<String>,
}

/// What the platform publishes about itself.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    pub gateway: Option<String>,
    pub platform: Option<String>,
    pub domain: Option<String>,
    /// The most bytes of a packed source that it takes.
    pub max_source: Option<u64>,
    /// Whom a token is for that uploads come with; the kubeconfig's own token when absent.
    pub audience: Option<String>,
}

/// The parts of the environment that say where a kubeconfig is.
struct Surroundings {
    variables: BTreeMap<&'static str, String>,
    is_root: bool,
}

const VARIABLES: [&str; 4] = ["DHOW_KUBECONFIG", "KUBECONFIG", "XDG_DATA_HOME", "HOME"];

impl Surroundings {
    fn read() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value));
        // Whoever owns our own entry in /proc is who we are.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        Self { variables: VARIABLES.into_iter().filter_map(set).collect(), is_root }
    }

    /// Where `dhow up` keeps everything unless told otherwise.
    fn data_dir(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some("/var/lib/dhow".into());
        }
        let of = |name| self.variables.get(name).map(PathBuf::from);
        of("XDG_DATA_HOME").or_else(|| Some(of("HOME")?.join(".local/share"))).map(|dir| dir.join("dhow"))
    }

    /// The file to read, and who named it; the default one only counts when it is there.
    fn kubeconfig(&self, flag: Option<&Path>, exists: impl Fn(&Path) -> bool) -> Option<(PathBuf, String)> {
        if let Some(path) = flag {
            return Some((path.to_owned(), "--kubeconfig".into()));
        }
        for name in ["DHOW_KUBECONFIG", "KUBECONFIG"] {
            let listed = self.variables.get(name).map(|value| std::env::split_paths(value).collect::<Vec<_>>());
            if let Some(path) = listed.and_then(|paths| paths.into_iter().find(|p| !p.as_os_str().is_empty())) {
                return Some((path, name.into()));
            }
        }
        let path = self.data_dir()?.join("kubeconfig");
        exists(&path).then(|| (path, "the default data directory".into()))
    }
}

/// The default data directory of this user.
pub fn default_data_dir() -> Option<PathBuf> {
    Surroundings::read().data_dir()
}

pub async fn platform(global: &Global) -> Result<Platform> {
    // A second provider of cryptography in one process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let surroundings = Surroundings::read();
    let found = surroundings.kubeconfig(global.kubeconfig.as_deref(), Path::exists);
    let Some((path, named_by)) = found else {
        return Err(Failure::unreachable("no platform was found: there is no kubeconfig")
            .next("start one with: dhow up (or name its kubeconfig with --kubeconfig or DHOW_KUBECONFIG)"));
    };
    let shown = path.display();
    let unusable = |error: String| {
        Failure::unreachable(format!("the kubeconfig {shown} (from {named_by}) cannot be used: {error}"))
            .next("is the platform running? start it with: dhow up")
    };
    let kubeconfig = Kubeconfig::read_from(&path).map_err(|e| unusable(innermost(&e)))?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.map_err(|e| unusable(innermost(&e)))?;
    config.connect_timeout = Some(CONNECT);
    let auth = serde_json::to_value(&config.auth_info).unwrap_or_default();
    let in_file = || std::fs::read_to_string(auth["tokenFile"].as_str()?).ok();
    let token = auth["token"].as_str().map(str::to_owned).or_else(in_file).map(|t| t.trim().to_owned());
    let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config).map_err(|e| unusable(innermost(&e)))?;
    Ok(Platform { client, server, namespace, system_namespace: global.system_namespace.clone(), token })
}

impl Platform {
    /// A typed API in the namespace that commands work in.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn endpoints(&self) -> Result<Endpoints> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.system_namespace);
        let found = maps.get_opt(ENDPOINTS_CONFIG_MAP).await;
        let found = found.map_err(|e| Failure::api("asking where the platform listens", &e))?;
        let mut data = found.and_then(|map| map.data).unwrap_or_default();
        let mut take = |key: &str| data.remove(key);
        Ok(Endpoints {
            gateway: take("gateway"),
            platform: take("platform"),
            domain: take("domain"),
            max_source: take("maxSource").and_then(|bytes| bytes.parse().ok()),
            audience: take("audience"),
        })
    }

    pub fn gateway(&self, endpoints: &Endpoints) -> Result<Door> {
        self.door(endpoints.gateway.as_deref(), door::GATEWAY, endpoints)
    }

    pub fn uploads(&self, endpoints: &Endpoints) -> Result<Door> {
        self.door(endpoints.platform.as_deref(), door::BUILDER, endpoints)
    }

    fn door(&self, published: Option<&str>, part: door::Part, endpoints: &Endpoints) -> Result<Door> {
        match published {
            Some(url) => Ok(Door::At(url.to_owned())),
            // Only a cluster says so, and there pods can be reached without an address.
            None if endpoints.audience.is_some() => {
                let (client, namespace) = (self.client.clone(), self.system_namespace.clone());
                Ok(Door::Through { client, namespace, part })
            }
            None => Err(self.missing(part.component)),
        }
    }

    fn missing(&self, key: &str) -> Failure {
        Failure::unreachable(format!("the platform does not say where its {key} is"))
            .object(format!("configmap/{ENDPOINTS_CONFIG_MAP} in {}", self.system_namespace))
            .next("is it still starting? look with: dhow status")
    }

    /// What an upload to the namespace comes with.
    pub async fn upload_token(&self, endpoints: &Endpoints) -> Result<Option<String>> {
        let Some(audience) = &endpoints.audience else { return Ok(self.token.clone()) };
        let spec = TokenRequestSpec {
            audiences: vec![audience.clone()],
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let made = self.api::<ServiceAccount>().create_token_request("default", &PostParams::default(), &request).await;
        let what = format!("asking for a token to upload to the namespace {}", self.namespace);
        let made = made.map_err(|e| Failure::api(&what, &e))?;
        Ok(made.status.map(|status| status.token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_kubeconfig_is() {
        let check = |flag: Option<&str>, variables: &[(&'static str, &str)], is_root, there: bool| {
            let variables = variables.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
            let found = Surroundings { variables, is_root }.kubeconfig(flag.map(Path::new), |_| there);
            found.map(|(path, _)| path.display().to_string()).unwrap_or_default()
        };
        let all = [("DHOW_KUBECONFIG", "/d"), ("KUBECONFIG", "/k1:/k2"), ("HOME", "/home/me")];
        for (flag, variables, is_root, there, want) in [
            (Some("/flag"), &all[..], true, true, "/flag"),
            (None, &all[..], true, true, "/d"),
            (None, &all[1..], true, true, "/k1"),
            (None, &[("KUBECONFIG", ":/k2")][..], true, true, "/k2"),
            (None, &all[2..], true, true, "/var/lib/dhow/kubeconfig"),
            (None, &all[2..], false, true, "/home/me/.local/share/dhow/kubeconfig"),
            (None, &[("XDG_DATA_HOME", "/x"), ("HOME", "/h")][..], false, true, "/x/dhow/kubeconfig"),
            (None, &[][..], true, false, ""),
            (None, &[][..], false, true, ""),
        ] {
            assert_eq!(check(flag, variables, is_root, there), want, "{flag:?} {variables:?}");
        }
    }
}
