//! From OpenAPI to [`Schema`].

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::{Bound, Demands, Form, ListType, Schema, Strategic, format};

const REFERENCE: &str = "#/components/schemas/";
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
/// A schema, which may have schemas inside: it refers to itself, also by types that are a schema or something else.
const RECURSIVE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
const RECURSIVE_OR_OTHER: [&str; 2] = ["OrArray", "OrBool"];
/// Nothing is known of what is nested deeper, and no definition that is accepted is.
const DEEPEST: usize = 64;

/// The definitions of Kubernetes' own kinds, as OpenAPI.
pub fn builtin_definitions() -> Map<String, Value> {
    let packed = include_bytes!("../../data/builtin.json.gz");
    let mut text = vec![];
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut text)
        .expect("the embedded definitions are a gzip file made by data/extract.py");
    serde_json::from_slice(&text).expect("the embedded definitions are a JSON object")
}

/// Times that Go has as values: it shows the absent one as null. The documents do not tell them from the others.
const TIMES: [(&str, &[&str]); 8] = [
    ("core.v1.ContainerStateRunning", &["startedAt"]),
    ("core.v1.ContainerStateTerminated", &["startedAt", "finishedAt"]),
    ("core.v1.Event", &["eventTime", "firstTimestamp", "lastTimestamp"]),
    ("core.v1.NodeCondition", &["lastHeartbeatTime", "lastTransitionTime"]),
    ("core.v1.PodCondition", &["lastProbeTime", "lastTransitionTime"]),
    ("apps.v1.DeploymentCondition", &["lastUpdateTime", "lastTransitionTime"]),
    ("apps.v1.ReplicaSetCondition", &["lastTransitionTime"]),
    ("core.v1.NamespaceCondition", &["lastTransitionTime"]),
];

struct Compiler {
    definitions: Map<String, Value>,
    done: HashMap<String, Arc<Schema>>,
}

/// Compiled nodes are shared: all workloads hold the same `PodSpec`.
static BUILTIN: LazyLock<Mutex<Compiler>> =
    LazyLock::new(|| Mutex::new(Compiler { definitions: builtin_definitions(), done: HashMap::new() }));

/// The schema of one of Kubernetes' own kinds.
pub fn builtin(name: &str) -> Arc<Schema> {
    BUILTIN.lock().unwrap_or_else(PoisonError::into_inner).definition(name)
}

/// The schema of a kind that has a definition, from its `openAPIV3Schema`.
pub fn custom(schema: &Value) -> Arc<Schema> {
    let mut root = compile(schema, true, &mut |_| Arc::default());
    root.form = Form::Object;
    identify(&mut root);
    Arc::new(root)
}

/// The schema of a value inside such an object.
pub fn value(schema: &Value) -> Schema {
    compile(schema, true, &mut |_| Arc::default())
}

/// Every object of the API has these, whatever its schema says of them.
fn identify(schema: &mut Schema) {
    let text = || Arc::new(Schema { form: Form::String, ..Schema::default() });
    schema.properties.insert("apiVersion".into(), text());
    schema.properties.insert("kind".into(), text());
    schema.properties.insert("metadata".into(), builtin(OBJECT_META));
}

impl Compiler {
    fn definition(&mut self, name: &str) -> Arc<Schema> {
        if let Some(done) = self.done.get(name) {
            return done.clone();
        }
        if name == RECURSIVE {
            return self.level(DEEPEST);
        }
        let compiled = match (name, self.definitions.get(name).cloned()) {
            (_, None) => Schema { preserve_unknown: true, ..Schema::default() },
            (QUANTITY, _) => Schema { form: Form::Quantity, ..Schema::default() },
            (_, Some(definition)) => compile(&definition, false, &mut |name| self.definition(name)),
        };
        // The last two words of `io.k8s.api.core.v1.PodSpec`.
        let words: Vec<&str> = name.rsplitn(3, '.').take(2).collect();
        let go = Some(words.into_iter().rev().collect::<Vec<_>>().join(".").into());
        let times = TIMES.iter().find(|(of, _)| name.strip_prefix("io.k8s.api.").is_some_and(|name| name == *of));
        let compiled = Schema { go, times: times.map_or(&[], |(_, times)| times), ..compiled };
        let compiled = Arc::new(compiled);
        self.done.insert(name.to_owned(), compiled.clone());
        compiled
    }

    /// A schema with so many levels of schemas inside.
    fn level(&mut self, level: usize) -> Arc<Schema> {
        let key = format!("{RECURSIVE}/{level}");
        if let Some(done) = self.done.get(&key) {
            return done.clone();
        }
        let definition = self.definitions.get(RECURSIVE).cloned().filter(|_| level > 0);
        let compiled = match definition {
            None => Schema { preserve_unknown: true, ..Schema::default() },
            Some(definition) => compile(&definition, false, &mut |name| match name.strip_prefix(RECURSIVE) {
                Some("") => self.level(level - 1),
                Some(or) if RECURSIVE_OR_OTHER.contains(&or) => {
                    let inner = self.level(level - 1);
                    Arc::new(Schema { form: Form::ObjectOrOther, ..over(&inner, Schema::default()) })
                }
                _ => self.definition(name),
            }),
        };
        let compiled = Arc::new(Schema { go: Some("v1.JSONSchemaProps".into()), ..compiled });
        self.done.insert(key, compiled.clone());
        compiled
    }
}

/// `structural`: keep the demands, not only the shape.
fn compile(source: &Value, structural: bool, resolve: &mut dyn FnMut(&str) -> Arc<Schema>) -> Schema {
    let mut node = |source: &Value| match source["$ref"].as_str() {
        // What is said beside a reference is about this use of it.
        Some(reference) if source.as_object().is_some_and(|s| s.len() == 1) => {
            resolve(reference.trim_start_matches(REFERENCE))
        }
        Some(reference) => {
            let target = resolve(reference.trim_start_matches(REFERENCE));
            Arc::new(over(&target, compile(source, structural, resolve)))
        }
        None => Arc::new(compile(source, structural, resolve)),
    };
    let properties = source["properties"].as_object();
    let properties: HashMap<_, _> =
        properties.into_iter().flatten().map(|(name, s)| (name.as_str().into(), node(s))).collect();
    let additional = source.get("additionalProperties").filter(|s| s.is_object()).map(&mut node);
    let items = source.get("items").map(&mut node);
    let flag = |name: &str| source[name].as_bool().unwrap_or(false);
    let form = form(source);
    let embedded = flag("x-kubernetes-embedded-resource");
    let default = source.get("default").filter(|d| !d.is_null()).cloned();
    let mut below = properties.values().chain(&additional).chain(&items);
    let has_defaults = default.is_some() || below.any(|schema: &Arc<Schema>| schema.has_defaults);
    let demands = structural.then(|| Box::new(demands(source, resolve)));
    let shapeless = form == Form::Object && properties.is_empty() && additional.is_none();
    let mut schema = Schema {
        form,
        additional,
        items,
        list: list_type(source),
        atomic_map: source["x-kubernetes-map-type"] == "atomic",
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields")
            || source["additionalProperties"] == true
            || (shapeless && !structural),
        properties,
        strategic: strategic(source),
        default,
        has_defaults,
        embedded,
        nullable: flag("nullable"),
        go: go_name(source).map(Into::into),
        required: texts(&source["required"]),
        times: &[],
        demands,
    };
    if embedded {
        identify(&mut schema);
    }
    schema
}

/// A reference with what its use says: how it merges, and its default.
fn over(target: &Schema, own: Schema) -> Schema {
    Schema {
        form: target.form,
        properties: target.properties.clone(),
        additional: target.additional.clone(),
        items: target.items.clone(),
        list: target.list.clone(),
        atomic_map: target.atomic_map || own.atomic_map,
        preserve_unknown: target.preserve_unknown,
        strategic: own.strategic,
        has_defaults: target.has_defaults || own.default.is_some(),
        default: own.default,
        embedded: target.embedded,
        nullable: false,
        go: target.go.clone(),
        required: target.required.clone(),
        times: target.times,
        demands: None,
    }
}

fn form(source: &Value) -> Form {
    if source["x-kubernetes-int-or-string"] == true || source["format"] == "int-or-string" {
        return Form::IntOrString;
    }
    match source["type"].as_str() {
        Some("object") => Form::Object,
        Some("array") => Form::Array,
        Some("string") => Form::String,
        Some("integer") => Form::Integer,
        Some("number") => Form::Number,
        Some("boolean") => Form::Boolean,
        _ => Form::Any,
    }
}

/// What Go calls a type that is no struct.
fn go_name(source: &Value) -> Option<&str> {
    match (source["type"].as_str()?, source["format"].as_str()) {
        ("string", Some("byte")) => Some("[]uint8"),
        ("string", _) => Some("string"),
        ("boolean", _) => Some("bool"),
        ("integer", format) => Some(format.unwrap_or("int64")),
        ("number", _) => Some("float64"),
        _ => None,
    }
}

fn texts(list: &Value) -> Vec<Box<str>> {
    list.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.into())).collect()
}

/// Lists that only say how a strategic merge patch treats them are merged the same way by apply.
fn list_type(source: &Value) -> ListType {
    let keys = || -> Vec<Box<str>> {
        let keys = source["x-kubernetes-list-map-keys"].as_array();
        keys.into_iter().flatten().filter_map(|key| Some(key.as_str()?.into())).collect()
    };
    match source["x-kubernetes-list-type"].as_str() {
        Some("map") => ListType::Map(keys()),
        Some("set") => ListType::Set,
        Some(_) => ListType::Atomic,
        None if strategic(source).merge => match source["x-kubernetes-patch-merge-key"].as_str() {
            Some(key) => ListType::Map(vec![key.into()]),
            None => ListType::Set,
        },
        None => ListType::Atomic,
    }
}

fn strategic(source: &Value) -> Strategic {
    let strategies = source["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
    let has = |name: &str| strategies.split(',').any(|s| s == name);
    Strategic { merge: has("merge"), merge_key: source["x-kubernetes-patch-merge-key"].as_str().map(Into::into) }
}

fn demands(source: &Value, resolve: &mut dyn FnMut(&str) -> Arc<Schema>) -> Demands {
    let list = |name: &str| source[name].as_array().cloned().unwrap_or_default();
    let size = |name: &str| source[name].as_u64().map(|n| n as usize);
    let bound = |name: &str, exclusive: &str| {
        let exclusive = source[exclusive] == true;
        source[name].as_f64().map(|number| Bound { number, exclusive })
    };
    let mut each = |schema: &Value| Arc::new(compile(schema, true, resolve));
    let mut branches = |name: &str| source[name].as_array().into_iter().flatten().map(&mut each).collect();
    Demands {
        all_of: branches("allOf"),
        any_of: branches("anyOf"),
        one_of: branches("oneOf"),
        not: source.get("not").map(each),
        required: list("required").iter().filter_map(|name| Some(name.as_str()?.into())).collect(),
        enumeration: list("enum"),
        minimum: bound("minimum", "exclusiveMinimum"),
        maximum: bound("maximum", "exclusiveMaximum"),
        multiple_of: source["multipleOf"].as_f64(),
        min_length: size("minLength"),
        max_length: size("maxLength"),
        min_items: size("minItems"),
        max_items: size("maxItems"),
        min_properties: size("minProperties"),
        max_properties: size("maxProperties"),
        // A definition with a pattern that does not compile is not accepted.
        pattern: source["pattern"].as_str().and_then(|text| Some((text.into(), format::pattern(text).ok()?))),
        format: source["format"].as_str().map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_types() {
        let pod = builtin("io.k8s.api.core.v1.Pod");
        let spec = &pod.properties["spec"];
        let container = spec.properties["containers"].items.clone().unwrap();
        for (list, want) in [
            (&spec.properties["containers"], ListType::Map(vec!["name".into()])),
            (&container.properties["ports"], ListType::Map(vec!["containerPort".into(), "protocol".into()])),
            (&container.properties["args"], ListType::Atomic),
            (&pod.properties["metadata"].properties["finalizers"], ListType::Set),
        ] {
            assert_eq!(list.list, want);
        }
        let ports = container.properties["ports"].items.clone().unwrap();
        assert_eq!(ports.properties["protocol"].default, Some("TCP".into()));
        assert_eq!(container.properties["ports"].strategic.merge_key.as_deref(), Some("containerPort"));
        assert!(spec.properties["nodeSelector"].atomic_map);
    }
}
