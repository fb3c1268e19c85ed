//! Random scripts: a few writers, a few objects, every kind of write, and the history of it at the end.

use serde_json::{Value, json};

use super::script::{Script, Step};

/// Enough that writers meet, few enough that most scripts are read by a person.
const STEPS: u64 = 14;
const MANAGERS: [&str; 3] = ["one", "two", "three"];
const NAMES: [&str; 2] = ["a", "b"];
const WORDS: [&str; 4] = ["v", "w", "", "x-y"];

/// The same numbers for the same seed, on every machine (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.roll(of.len() as u64);
        &of[usize::try_from(at).expect("an index")]
    }

    /// Once in so many.
    fn chance(&mut self, of: u64) -> bool {
        self.roll(of) == 0
    }
}

/// A kind that random scripts write.
struct Target {
    path: &'static str,
    api_version: &'static str,
    kind: &'static str,
    /// What it has beside metadata.
    body: fn(&mut Dice) -> Value,
    /// What operations of JSON patches are about, beside metadata: a member, and what it is in.
    places: [&'static str; 2],
    /// Kubernetes' own kinds take strategic patches; a kind without them is defined first.
    strategic: bool,
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

const TARGETS: [Target; 4] = [
    Target {
        path: "/api/v1/namespaces/{ns}/configmaps",
        api_version: "v1",
        kind: "ConfigMap",
        body: map,
        places: ["/data/k", "/data"],
        strategic: true,
    },
    Target {
        path: "/api/v1/namespaces/{ns}/services",
        api_version: "v1",
        kind: "Service",
        body: service,
        places: ["/metadata/labels/u", "/metadata/labels/v"],
        strategic: true,
    },
    Target {
        path: "/apis/apps/v1/namespaces/{ns}/replicasets",
        api_version: "apps/v1",
        kind: "ReplicaSet",
        body: replica_set,
        places: ["/metadata/labels/u", "/metadata/labels/v"],
        strategic: true,
    },
    Target {
        path: "/apis/{ns}.example.com/v1/namespaces/{ns}/things",
        api_version: "{ns}.example.com/v1",
        kind: "Thing",
        body: thing,
        places: ["/spec/values/k", "/spec/values"],
        strategic: false,
    },
];

pub fn script(seed: u64) -> Script {
    let mut dice = Dice(seed);
    let target = dice.one(&TARGETS);
    let first = Step {
        method: "POST".into(),
        path: format!("{}?fieldManager=first", target.path),
        body: object(&mut dice, target, "first").to_string(),
        ..Step::default()
    };
    let mut steps = if target.strategic { vec![] } else { defined() };
    steps.push(first);
    let created = steps.len();
    steps.extend((0..STEPS).map(|_| step(&mut dice, target)));
    // So that nothing holds the namespace.
    steps.extend(NAMES.iter().chain(&["first"]).map(|name| Step {
        method: "PATCH".into(),
        path: format!("{}/{name}?fieldManager=last", target.path),
        headers: vec![("content-type".into(), "application/merge-patch+json".into())],
        body: json!({"metadata": {"finalizers": null}}).to_string(),
        ..Step::default()
    }));
    // Of a kind that a controller writes to, too, the history is also the controller's.
    let selectors = ["labelSelector=s", "labelSelector=t%3Dv"];
    for selector in selectors.iter().filter(|_| target.kind != "ReplicaSet") {
        steps.push(Step {
            method: "GET".into(),
            path: format!(
                "{}?watch=true&timeoutSeconds=1&resourceVersion={{{created}/metadata/resourceVersion}}&{selector}",
                target.path
            ),
            ..Step::default()
        });
    }
    if !target.strategic {
        let path = format!("{DEFINITIONS}/things.{{ns}}.example.com");
        steps.push(Step { method: "DELETE".into(), path, ..Step::default() });
    }
    Script { title: format!("random: {seed}"), steps }
}

/// The definition of the kind of things, and that it is served.
fn defined() -> Vec<Step> {
    let text = json!({"type": "string"});
    let item = json!({"type": "object", "required": ["name"], "properties": {
        "name": text, "value": text, "protocol": {"type": "string", "default": "TCP"}}});
    let spec = json!({"type": "object", "properties": {
        "count": {"type": "integer", "default": 1},
        "word": {"type": "string", "nullable": true},
        "list": {"type": "array", "items": text},
        "set": {"type": "array", "items": text, "x-kubernetes-list-type": "set"},
        "map": {"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        "values": {"type": "object", "additionalProperties": text},
        "atomic": {"type": "object", "properties": {"x": text, "y": text}, "x-kubernetes-map-type": "atomic"},
    }});
    let version = json!({"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                         "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.{ns}.example.com"},
        "spec": {"group": "{ns}.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                 "versions": [version]},
    });
    let make =
        Step { method: "POST".into(), path: DEFINITIONS.into(), body: definition.to_string(), ..Step::default() };
    let path = "/apis/{ns}.example.com/v1/things".into();
    vec![make, Step { method: "WAIT".into(), path, ..Step::default() }]
}

fn step(dice: &mut Dice, target: &Target) -> Step {
    let name = *dice.one(&NAMES);
    let one = format!("{}/{name}", target.path);
    let manager = *dice.one(&MANAGERS);
    let dry = if dice.chance(10) { "&dryRun=All" } else { "" };
    let write = |method: &str, path: String, media: &str, body: &Value| Step {
        method: method.into(),
        path: format!("{path}?fieldManager={manager}{dry}"),
        headers: vec![("content-type".into(), media.into())],
        body: body.to_string(),
        ..Step::default()
    };
    match dice.roll(12) {
        0 => write("POST", target.path.into(), "application/json", &object(dice, target, name)),
        1 => write("PUT", one, "application/json", &object(dice, target, name)),
        2 | 3 => write("PATCH", one, "application/merge-patch+json", &patch(dice, target)),
        4 if target.strategic => write("PATCH", one, "application/strategic-merge-patch+json", &patch(dice, target)),
        4 | 5 => write("PATCH", one, "application/json-patch+json", &operations(dice, target)),
        6..=9 => {
            let mut step = write("PATCH", one, "application/apply-patch+yaml", &object(dice, target, name));
            if dice.chance(2) {
                step.path += "&force=true";
            }
            step
        }
        10 => Step { method: "DELETE".into(), path: one, ..Step::default() },
        _ => Step {
            method: "GET".into(),
            path: format!(
                "{}?labelSelector={}",
                target.path,
                dice.one(&["s", "t", "!t,s", "t in (v, w)", "t notin (v),s"])
            ),
            ..Step::default()
        },
    }
}

fn object(dice: &mut Dice, target: &Target, name: &str) -> Value {
    let mut object = (target.body)(dice);
    object["apiVersion"] = target.api_version.into();
    object["kind"] = target.kind.into();
    object["metadata"] = metadata(dice);
    object["metadata"]["name"] = name.into();
    // What the history at the end is about.
    object["metadata"]["labels"]["s"] = "1".into();
    object
}

fn patch(dice: &mut Dice, target: &Target) -> Value {
    let mut patch = if dice.chance(3) { json!({}) } else { (target.body)(dice) };
    if dice.chance(2) {
        patch["metadata"] = metadata(dice);
    }
    if dice.chance(4) {
        let field = *dice.one(&["labels", "annotations", "finalizers"]);
        patch["metadata"][field] = Value::Null;
    }
    patch
}

fn metadata(dice: &mut Dice) -> Value {
    let mut metadata = json!({"labels": {}});
    if dice.chance(2) {
        metadata["labels"]["t"] = (*dice.one(&WORDS)).into();
    }
    if dice.chance(3) {
        metadata["annotations"] = json!({ *dice.one(&["n", "example.com/m"]): *dice.one(&WORDS) });
    }
    if dice.chance(6) {
        metadata["finalizers"] = json!([format!("example.com/{}", dice.one(&NAMES))]);
    }
    metadata
}

fn operations(dice: &mut Dice, target: &Target) -> Value {
    let [one, all] = target.places;
    let operations = (0..1 + dice.roll(3)).map(|_| {
        let path = *dice.one(&["/metadata/labels/t", "/metadata/annotations", one, all, "/metadata/labels/s"]);
        let word = *dice.one(&WORDS);
        let value = match path {
            "/metadata/annotations" => json!({ "n": word }),
            "/data" | "/spec/values" => json!({ "k": word, "l": word }),
            _ => word.into(),
        };
        match dice.roll(4) {
            0 => json!({"op": "add", "path": path, "value": value}),
            1 => json!({"op": "replace", "path": path, "value": value}),
            2 => json!({"op": "remove", "path": path}),
            _ => json!({"op": "test", "path": path, "value": value}),
        }
    });
    operations.collect()
}

fn map(dice: &mut Dice) -> Value {
    let mut data = json!({});
    for key in ["k", "l", "m"] {
        if dice.chance(2) {
            data[key] = (*dice.one(&WORDS)).into();
        }
    }
    if dice.chance(5) { json!({"binaryData": {"b": "AAA="}}) } else { json!({ "data": data }) }
}

fn service(dice: &mut Dice) -> Value {
    let ports = [("http", 80), ("https", 443), ("more", 8080)];
    let chosen = ports.iter().filter(|_| dice.chance(2)).map(|(name, port)| json!({"name": name, "port": port}));
    let chosen: Vec<Value> = chosen.collect();
    let mut spec = json!({"clusterIP": "None", "ports": chosen, "selector": {"app": *dice.one(&WORDS)}});
    if dice.chance(3) {
        spec["sessionAffinity"] = (*dice.one(&["None", "ClientIP"])).into();
    }
    json!({ "spec": spec })
}

fn replica_set(dice: &mut Dice) -> Value {
    let mut containers = vec![];
    for name in ["c", "d"] {
        if containers.is_empty() || dice.chance(2) {
            let mut container = json!({"name": name, "image": *dice.one(&["i:1", "i:2"])});
            if dice.chance(2) {
                container["env"] = json!([{"name": *dice.one(&["A", "B"]), "value": *dice.one(&WORDS)}]);
            }
            if dice.chance(3) {
                container["ports"] = json!([{"containerPort": *dice.one(&[80, 81])}]);
            }
            containers.push(container);
        }
    }
    json!({"spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": containers}},
    }})
}

fn thing(dice: &mut Dice) -> Value {
    let mut spec = json!({});
    let words = |dice: &mut Dice| -> Vec<&str> { WORDS.into_iter().filter(|_| dice.chance(2)).collect() };
    for list in ["list", "set"] {
        if dice.chance(3) {
            spec[list] = words(dice).into();
        }
    }
    if dice.chance(2) {
        let names = ["x", "y", "z"].into_iter().filter(|_| dice.chance(2)).collect::<Vec<_>>();
        let item = |name| json!({"name": name, "value": *dice.one(&WORDS)});
        spec["map"] = names.into_iter().map(item).collect();
    }
    for (field, keys) in [("values", ["k", "l"]), ("atomic", ["x", "y"])] {
        for key in keys {
            if dice.chance(3) {
                spec[field][key] = (*dice.one(&WORDS)).into();
            }
        }
    }
    if dice.chance(3) {
        spec["count"] = dice.roll(4).into();
    }
    if dice.chance(4) {
        spec["word"] = if dice.chance(2) { Value::Null } else { "w".into() };
    }
    json!({ "spec": spec })
}
