//! The routing table: which back end answers a host, a path and a set of headers.
//!
//! Owns: compiling Knative's `Ingress` objects into an immutable table, and looking requests up in it. Must not know:
//! sockets, clocks, or what a back end is (it is a type parameter). The surprise: a path is a literal prefix, as
//! Knative defines it, so `/foo` also matches `/foobar`; longer prefixes win, then more header matches.

use std::collections::HashMap;
use std::sync::Arc;

use api::networking::{HttpOption, HttpPath, Ingress, IngressRule, Split, SplitPolicy, Visibility};
use api::wire::RevisionKey;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What one listener serves.
#[derive(Debug)]
pub struct Table<B> {
    hosts: HashMap<Box<str>, Arc<HostRules<B>>>,
}

/// The rules of one host, the most specific first.
#[derive(Debug)]
pub struct HostRules<B> {
    paths: Vec<Arc<PathRule<B>>>,
}

#[derive(Debug)]
pub struct PathRule<B> {
    prefix: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    pub rewrite_host: Option<HeaderValue>,
    /// From outside it is served over TLS only.
    pub https_only: bool,
    routes: Vec<Arc<Route<B>>>,
}

/// One back end of a path, with everything that a request to it needs.
#[derive(Debug)]
pub struct Route<B> {
    pub backend: B,
    /// The share of the path's traffic, cumulated over the splits before it.
    below: u32,
    /// Set on the request, over anything the client sent under these names.
    pub append: Vec<(HeaderName, HeaderValue)>,
    pub policy: SplitPolicy,
}

/// One Ingress, compiled once, however often the table around it is assembled.
#[derive(Debug)]
pub struct Compiled<B> {
    rules: Vec<CompiledRule<B>>,
}

#[derive(Debug)]
struct CompiledRule<B> {
    hosts: Vec<Box<str>>,
    visibility: Visibility,
    paths: Vec<Arc<PathRule<B>>>,
}

/// Which rules a table is assembled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Only what is visible from outside.
    Public,
    /// Everything.
    Internal,
}

/// Compiles one Ingress. `resolve` turns a back end's name and policy into what the request path uses.
pub fn compile<B>(ingress: &Ingress, resolve: &mut impl FnMut(RevisionKey, &SplitPolicy) -> B) -> Compiled<B> {
    let https_only = ingress.spec.http_option == Some(HttpOption::Redirected);
    let rules = ingress.spec.rules.iter().map(|rule| compile_rule(rule, https_only, resolve)).collect();
    Compiled { rules }
}

fn compile_rule<B>(
    rule: &IngressRule,
    https_only: bool,
    resolve: &mut impl FnMut(RevisionKey, &SplitPolicy) -> B,
) -> CompiledRule<B> {
    let hosts = rule.hosts.iter().map(|h| h.to_ascii_lowercase().into_boxed_str()).collect();
    let paths = rule.http.paths.iter().map(|path| Arc::new(compile_path(path, https_only, resolve))).collect();
    CompiledRule { hosts, visibility: rule.visibility, paths }
}

fn compile_path<B>(
    path: &HttpPath,
    https_only: bool,
    resolve: &mut impl FnMut(RevisionKey, &SplitPolicy) -> B,
) -> PathRule<B> {
    let mut below = 0;
    let mut routes = vec![];
    for split in path.splits.iter().filter(|split| split.percent > 0) {
        below += u32::try_from(split.percent).unwrap_or(0);
        routes.push(Arc::new(compile_split(path, split, below, resolve)));
    }
    PathRule {
        prefix: path.path.clone().unwrap_or_default(),
        headers: path.headers.iter().filter_map(|(name, want)| header(name, &want.exact)).collect(),
        https_only,
        rewrite_host: path.rewrite_host.as_deref().and_then(|host| HeaderValue::from_str(host).ok()),
        routes,
    }
}

fn compile_split<B>(
    path: &HttpPath,
    split: &Split,
    below: u32,
    resolve: &mut impl FnMut(RevisionKey, &SplitPolicy) -> B,
) -> Route<B> {
    let key = RevisionKey { namespace: split.service_namespace.clone(), revision: split.service_name.clone() };
    let policy = split.policy.clone().unwrap_or_default();
    let append = path.append_headers.iter().chain(&split.append_headers).filter_map(|(n, v)| header(n, v)).collect();
    Route { backend: resolve(key, &policy), below, append, policy }
}

/// A header that HTTP cannot carry is left out: the object was admitted, and half a rule serves better than none.
fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
}

impl<B> Default for Table<B> {
    fn default() -> Self {
        Self { hosts: HashMap::new() }
    }
}

impl<B> Table<B> {
    /// Puts compiled Ingresses together. When two claim the same host, their paths are served side by side and the
    /// first in order wins a tie, so the order must be stable.
    pub fn assemble<'a>(side: Side, ingresses: impl Iterator<Item = &'a Compiled<B>>) -> Self
    where
        B: 'a,
    {
        let mut hosts: HashMap<Box<str>, Vec<Arc<PathRule<B>>>> = HashMap::new();
        for rule in ingresses.flat_map(|ingress| &ingress.rules) {
            if side == Side::Public && rule.visibility == Visibility::ClusterLocal {
                continue;
            }
            for host in &rule.hosts {
                hosts.entry(host.clone()).or_default().extend(rule.paths.iter().cloned());
            }
        }
        let sorted = hosts.into_iter().map(|(name, mut paths)| {
            paths.sort_by_key(|p| std::cmp::Reverse((p.prefix.len(), p.headers.len())));
            (name, Arc::new(HostRules { paths }))
        });
        Self { hosts: sorted.collect() }
    }

    /// The rule for a request. `host` is lower case and has no port.
    pub fn find(&self, host: &str, path: &str, headers: &HeaderMap) -> Option<&Arc<PathRule<B>>> {
        let rules = self.hosts.get(host.strip_suffix('.').unwrap_or(host))?;
        rules.paths.iter().find(|rule| rule.matches(path, headers))
    }
}

impl<B> PathRule<B> {
    fn matches(&self, path: &str, headers: &HeaderMap) -> bool {
        path.starts_with(&self.prefix)
            && self.headers.iter().all(|(name, want)| headers.get_all(name).iter().any(|value| value == want))
    }

    /// The route to a back end that is known already.
    pub fn to(&self, wanted: impl Fn(&B) -> bool) -> Option<&Arc<Route<B>>> {
        self.routes.iter().find(|route| wanted(&route.backend))
    }

    /// The route for a random number below 100; the last one also takes what the percentages leave over.
    pub fn pick(&self, roll: impl FnOnce() -> u32) -> Option<&Arc<Route<B>>> {
        if let [only] = self.routes.as_slice() {
            return Some(only);
        }
        let roll = roll();
        self.routes.iter().find(|route| roll < route.below).or(self.routes.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingress(rules: serde_json::Value) -> Compiled<String> {
        let object = json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": "r", "namespace": "default"}, "spec": {"rules": rules},
        });
        let ingress: Ingress = serde_json::from_value(object).unwrap();
        compile(&ingress, &mut |key, _| format!("{}/{}", key.namespace, key.revision))
    }

    fn split(name: &str, percent: i64) -> serde_json::Value {
        json!({"serviceName": name, "serviceNamespace": "default", "servicePort": 80, "percent": percent})
    }

    fn rules() -> Compiled<String> {
        ingress(json!([
            {"hosts": ["Hello.default.test", "hello.default"], "visibility": "ExternalIP", "http": {"paths": [
                {"splits": [split("root", 100)]},
                {"path": "/api", "splits": [split("api", 100)]},
                {"path": "/api/v2", "splits": [split("v2", 100)]},
                {"path": "/api", "headers": {"X-Canary": {"exact": "yes"}}, "splits": [split("canary", 100)]},
            ]}},
            {"hosts": ["hello.default.svc.cluster.local"], "visibility": "ClusterLocal",
             "http": {"paths": [{"splits": [split("root", 100)]}]}},
            {"hosts": ["blue-hello.default.test"], "http": {"paths": [{"splits": [split("blue", 100)]}]}},
            {"hosts": ["mixed.test"], "http": {"paths": [{"splits": [split("a", 30), split("gone", 0), split("b", 70)]}]}},
        ]))
    }

    type Pairs = &'static [(&'static str, &'static str)];

    fn check(side: Side, host: &str, path: &str, headers: Pairs, roll: u32) -> Option<String> {
        let table = Table::assemble(side, [&rules()].into_iter());
        let headers: HeaderMap =
            headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        table.find(host, path, &headers).and_then(|rule| rule.pick(|| roll)).map(|route| route.backend.clone())
    }

    #[test]
    fn the_most_specific_rule_answers() {
        use Side::*;
        const CANARY: Pairs = &[("x-canary", "yes")];
        type Row = (Side, &'static str, &'static str, Pairs, u32, Option<&'static str>);
        let rows: &[Row] = &[
            (Public, "hello.default.test", "/", &[], 0, Some("default/root")),
            (Public, "hello.default.test.", "/", &[], 0, Some("default/root")),
            (Public, "hello.default", "/x", &[], 0, Some("default/root")),
            (Public, "hello.default.test", "/api", &[], 0, Some("default/api")),
            (Public, "hello.default.test", "/apis", &[], 0, Some("default/api")),
            (Public, "hello.default.test", "/api/v2/x", &[], 0, Some("default/v2")),
            (Public, "hello.default.test", "/api", CANARY, 0, Some("default/canary")),
            (Public, "hello.default.test", "/api", &[("x-canary", "no")], 0, Some("default/api")),
            (Public, "hello.default.test", "/", CANARY, 0, Some("default/root")),
            (Public, "blue-hello.default.test", "/", &[], 0, Some("default/blue")),
            (Public, "unknown.test", "/", &[], 0, None),
            (Public, "", "/", &[], 0, None),
            (Public, "hello.default.svc.cluster.local", "/", &[], 0, None),
            (Internal, "hello.default.svc.cluster.local", "/", &[], 0, Some("default/root")),
            (Internal, "hello.default.test", "/", &[], 0, Some("default/root")),
            (Public, "mixed.test", "/", &[], 0, Some("default/a")),
            (Public, "mixed.test", "/", &[], 29, Some("default/a")),
            (Public, "mixed.test", "/", &[], 30, Some("default/b")),
            (Public, "mixed.test", "/", &[], 99, Some("default/b")),
        ];
        for (side, host, path, headers, roll, want) in rows {
            let got = check(*side, host, path, headers, *roll);
            assert_eq!(got.as_deref(), *want, "{side:?} {host} {path} {headers:?} {roll}");
        }
    }

    #[test]
    fn appended_headers_of_the_split_come_last_and_impossible_ones_are_left_out() {
        let compiled = ingress(json!([{"hosts": ["h"], "http": {"paths": [{
            "appendHeaders": {"A": "path", "Bad\n": "x"},
            "splits": [{"serviceName": "s", "serviceNamespace": "n", "servicePort": 80, "percent": 100,
                        "appendHeaders": {"B": "split"}}]}]}}]));
        let table = Table::assemble(Side::Public, [&compiled].into_iter());
        let rule = table.find("h", "/", &HeaderMap::new()).unwrap();
        let names: Vec<_> = rule.pick(|| 0).unwrap().append.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_path_without_traffic_has_no_route() {
        let compiled = ingress(json!([{"hosts": ["h"], "http": {"paths": [{"splits": []}]}}]));
        let table = Table::assemble(Side::Public, [&compiled].into_iter());
        assert!(table.find("h", "/", &HeaderMap::new()).unwrap().pick(|| 0).is_none());
    }
}
