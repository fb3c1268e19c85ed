//! What a written object becomes: completed, checked, separated from its status. Pure.

use jiff::Timestamp;
use serde_json::{Map, Value};
use store::Revision;

use super::{metadata, scale};
use crate::fieldset::{Author, Managed, Operation, Owner, update_ownership};
use crate::kinds::{Deletion, Kind, Shape, Status};
use crate::schema;
use crate::status::{ApiError, FieldError, Resource, Result};

/// The part of an object that a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Status,
    Scale,
    Finalize,
}

impl Part {
    pub fn of(subresource: Option<&str>) -> Self {
        match subresource {
            Some("status") => Self::Status,
            Some("scale") => Self::Scale,
            Some("finalize") => Self::Finalize,
            _ => Self::Whole,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
        }
    }
}

/// A write, apart from the objects.
#[derive(Clone, Copy)]
pub struct Writing<'a> {
    pub kind: &'a Kind,
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
    pub part: Part,
    pub manager: &'a str,
    pub user: &'a str,
    pub now: Timestamp,
}

/// An object as it is stored, apart from who owns what: that is parsed once and copied never.
pub struct Live {
    pub object: Value,
    pub managed: Managed,
}

/// What is to be done about an object that was written.
pub enum Outcome {
    /// Nothing would change but times of ownership.
    Same,
    Put(Value),
    /// The last thing that held a deleted object is gone.
    Remove(Value),
}

impl Live {
    pub fn new(mut object: Value) -> Self {
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        let managed = metadata.and_then(|metadata| metadata.shift_remove("managedFields")).unwrap_or_default();
        Self { object, managed: Managed::parse(&managed) }
    }

    /// When it was written.
    pub fn written(&self) -> Revision {
        self.object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
    }

    /// The whole object again, for a patch that may look at everything.
    pub fn whole(&self) -> Value {
        let mut whole = self.object.clone();
        if let Some(managed) = self.managed.to_json() {
            whole["metadata"]["managedFields"] = managed;
        }
        whole
    }

    /// What a write of the status alone may see.
    pub fn status_only(&self) -> Value {
        let seen = self.object.as_object().into_iter().flatten().filter(|(name, _)| *name != "spec");
        Value::Object(seen.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

impl<'a> Writing<'a> {
    /// The server's own write of a whole object without a namespace.
    pub fn own(kind: &'a Kind, name: &'a str, now: Timestamp) -> Self {
        Self { kind, namespace: None, name: Some(name), part: Part::Whole, manager: "dhow", user: "dhow", now }
    }

    pub fn author(&self, operation: Operation) -> Author<'_> {
        let owner = Owner {
            manager: self.manager.to_owned(),
            operation,
            api_version: self.kind.owners_api_version(),
            subresource: self.part.name().to_owned(),
        };
        let owns_status = self.part != Part::Whole || self.kind.status.is_none();
        Author { owner, owns_status, schema: self.kind.schema(), time: self.time() }
    }

    fn time(&self) -> String {
        metadata::time(self.now)
    }
}

/// A new object. `managed`: who owns what, when it was applied; otherwise the writer owns all of it.
pub fn create(writing: &Writing<'_>, mut object: Value, managed: Option<Managed>) -> Result<Value> {
    let kind = writing.kind;
    metadata::identify(&mut object, kind, writing.namespace, writing.name)?;
    normalize(kind, &mut object);
    let meta = metadata::of(&mut object)?;
    if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(ApiError::BadRequest("resourceVersion should not be set on objects to be created".into()));
    }
    for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"] {
        meta.shift_remove(field);
    }
    let unnamed = meta.get("name").and_then(Value::as_str).is_none_or(str::is_empty);
    if let Some(prefix) = meta.get("generateName").and_then(Value::as_str).filter(|_| unnamed) {
        let name = metadata::generate_name(prefix);
        meta.insert("name".into(), name.into());
    }
    meta.insert("uid".into(), metadata::new_uid().into());
    meta.insert("creationTimestamp".into(), writing.time().into());
    meta.shift_remove("generation");
    if kind.generation {
        meta.insert("generation".into(), 1.into());
    }
    if kind.status == Some(Status::Separate)
        && let Some(object) = object.as_object_mut()
    {
        object.shift_remove("status");
    }
    complete(kind, &mut object);
    // What the server sets from here on is nobody's.
    let managed = managed.unwrap_or_else(|| {
        update_ownership(&Managed::default(), &writing.author(Operation::Update), &nothing(kind), &object)
    });
    (kind.stored().create)(&mut object);
    (kind.stored().sign)(&mut object, None, writing.user);
    check(kind, &object, None)?;
    (kind.stored().allocate)(&mut object);
    kind.to_stored(&mut object);
    store_ownership(&mut object, &managed)?;
    Ok(object)
}

/// `live` after somebody wrote `new`. `managed`: who owns what then, when it was applied.
pub fn update(writing: &Writing<'_>, live: &Live, mut new: Value, managed: Option<Managed>) -> Result<Outcome> {
    let (kind, old) = (writing.kind, &live.object);
    metadata::identify(&mut new, kind, writing.namespace, writing.name)?;
    preconditions(kind, old, &new, writing.part)?;
    normalize(kind, &mut new);
    let rewritten = rewritten_ownership(&new);
    let mut new = separate(writing, old, new)?;
    keep_servers_fields(old, &mut new)?;
    if writing.part == Part::Whole {
        complete(kind, &mut new);
        (kind.stored().sign)(&mut new, Some(old), writing.user);
        (kind.stored().allocate)(&mut new);
    } else {
        settle(kind, &mut new);
    }
    check(kind, &new, Some(old))?;
    let changed_spec = kind.generation && spec_changed(kind, old, &new);
    let meta = metadata::of(&mut new)?;
    if changed_spec {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta.insert("generation".into(), generation.into());
    }
    let managed = managed.unwrap_or_else(|| {
        let before = rewritten.as_ref().unwrap_or(&live.managed);
        // Who owns what is kept from the creation on, or from the first apply on, but not from in between.
        match before.is_empty() {
            true => Managed::default(),
            false => update_ownership(before, &writing.author(Operation::Update), old, &new),
        }
    });
    if same_but_ownership(old, &new) && managed.same_owners(&live.managed) {
        return Ok(Outcome::Same);
    }
    kind.to_stored(&mut new);
    store_ownership(&mut new, &managed)?;
    Ok(if is_released(kind, &new) { Outcome::Remove(new) } else { Outcome::Put(new) })
}

/// A client may rewrite the record of owners, as kubectl does when a person moves to server-side apply.
fn rewritten_ownership(new: &Value) -> Option<Managed> {
    match &new["metadata"]["managedFields"] {
        Value::Null => None,
        given => Some(Managed::parse(given)),
    }
}

fn preconditions(kind: &Kind, old: &Value, new: &Value, part: Part) -> Result<()> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let given = |field: &str| new["metadata"][field].as_str().filter(|value| !value.is_empty());
    let conflict = |why: String| Err(ApiError::Conflict { resource: kind.resource(), name: name.clone(), why });
    if let (Some(given), Some(is)) = (given("uid"), old["metadata"]["uid"].as_str())
        && given != is
    {
        return conflict(format!("Precondition failed: UID in precondition: {given}, UID in object meta: {is}"));
    }
    if given("resourceVersion").is_some_and(|given| old["metadata"]["resourceVersion"] != given) && part != Part::Scale
    {
        return conflict(MODIFIED.into());
    }
    Ok(())
}

pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Takes from `new` only what this part may write.
fn separate(writing: &Writing<'_>, old: &Value, mut new: Value) -> Result<Value> {
    let kind = writing.kind;
    match writing.part {
        Part::Whole => {
            if kind.status.is_some() {
                put(&mut new, "status", old.get("status").cloned());
            }
            if kind.deletion == Deletion::Namespace {
                put(&mut new, "spec", old.get("spec").cloned());
            }
            Ok(new)
        }
        Part::Status => {
            let mut whole = old.clone();
            put(&mut whole, "status", new.get("status").cloned());
            if kind.status == Some(Status::WithMetadata) {
                for field in ["labels", "annotations"] {
                    let value = new["metadata"].get(field).cloned();
                    let meta = metadata::of(&mut whole)?;
                    match value {
                        Some(value) => meta.insert(field.into(), value),
                        None => meta.shift_remove(field),
                    };
                }
            }
            Ok(whole)
        }
        Part::Scale => {
            let mut whole = old.clone();
            let path = scale::replicas_of(kind);
            scale::set(&mut whole, path, new.pointer(path).cloned().unwrap_or_default());
            Ok(whole)
        }
        Part::Finalize => {
            let mut whole = old.clone();
            put(&mut whole["spec"], "finalizers", new["spec"].get("finalizers").cloned());
            Ok(whole)
        }
    }
}

fn put(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(object) = object.as_object_mut() {
        match value {
            Some(value) => {
                object.insert(field.to_owned(), value);
            }
            None => {
                object.shift_remove(field);
            }
        }
    }
}

fn keep_servers_fields(old: &Value, new: &mut Value) -> Result<()> {
    let meta = metadata::of(new)?;
    for field in
        ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"]
    {
        match old["metadata"].get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.shift_remove(field),
        };
    }
    for field in ["managedFields", "resourceVersion", "selfLink"] {
        meta.shift_remove(field);
    }
    Ok(())
}

/// Takes out what is not kept: nulls that mean nothing, and members that a structural schema does not name.
pub fn normalize(kind: &Kind, object: &mut Value) {
    if kind.is_custom() {
        schema::prune(object, kind.schema());
    }
    // Typed decoding, of our own types too, takes null for absent.
    if !matches!(kind.shape, Shape::Defined(_)) {
        schema::drop_nulls(object);
    }
}

/// What a new object is compared with, to know who owns what.
pub fn nothing(kind: &Kind) -> Value {
    if kind.is_custom() { serde_json::json!({"metadata": {}}) } else { schema::empty(kind.schema()) }
}

/// Fills in what the user left out.
fn complete(kind: &Kind, object: &mut Value) {
    if kind.is_custom() {
        schema::apply_defaults(object, kind.schema());
    }
    (kind.stored().default)(object);
    settle(kind, object);
}

/// What typed decoding and encoding make of Kubernetes' own kinds.
fn settle(kind: &Kind, object: &mut Value) {
    match &kind.stored().shape {
        Shape::Builtin(name) if kind.view.is_some() => schema::settle(object, &schema::builtin(name)),
        Shape::Builtin(_) => schema::settle(object, kind.schema()),
        // Of defined kinds only the metadata are typed.
        Shape::Custom(_) | Shape::Defined(_) => {
            schema::settle(&mut object["metadata"], &schema::builtin(schema::OBJECT_META));
        }
    }
}

fn check(kind: &Kind, object: &Value, old: Option<&Value>) -> Result<()> {
    let mut errors = metadata::validate(object, kind);
    errors.extend(old.map(|old| metadata::validate_change(object, old)).unwrap_or_default());
    // A view's objects were translated already; what they are stored as is not checked against its schema.
    let demands = if kind.view.is_none() {
        demands(kind, object, old, errors.iter().any(|error| error.fault.hides_others()))
    } else {
        vec![]
    };
    if demands.is_empty() {
        errors.extend((kind.validate)(object, old));
    }
    errors.extend(demands);
    if errors.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    // A view's objects are told of as what they are stored as.
    let row = kind.stored();
    let resource = Resource { group: row.group, kind: row.kind, plural: row.plural };
    Err(ApiError::Invalid { resource, name, errors })
}

/// What the schema and its rules demand. Of an object that was there, what is unchanged is not complained about: the
/// definition may have become stricter since.
fn demands(kind: &Kind, object: &Value, old: Option<&Value>, faulty: bool) -> Vec<FieldError> {
    let schema = kind.schema();
    let mut errors = schema::validate(object, schema);
    if !kind.is_custom() {
        return errors;
    }
    let unchanged = |path: &str| old.is_some_and(|old| schema::is_unchanged(object, old, schema, path));
    errors.retain(|error| !unchanged(&error.field));
    errors.extend(scale::faults(kind, object));
    errors.extend(schema::embedded(object, schema));
    if old.is_none_or(|old| schema::duplicates(old, schema).is_empty()) {
        errors.extend(schema::duplicates(object, schema));
    }
    let Some(rules) = kind.rules() else { return errors };
    if faulty || errors.iter().any(|error| error.fault.hides_others()) {
        const WHY: &str = "some validation rules were not checked because the object was invalid; correct the existing \
                           errors to complete validation";
        errors.push(FieldError::invalid("<nil>", Value::Null, WHY));
        return errors;
    }
    let broken = rules.validate(object, old, schema).into_iter();
    errors.extend(broken.filter(|b| b.transition || !unchanged(&b.error.field)).map(|b| b.error));
    errors
}

fn spec_changed(kind: &Kind, old: &Value, new: &Value) -> bool {
    // Without a part of its own a status is like any other member.
    let is_spec = |name: &str| name != "metadata" && (name != "status" || kind.status.is_none());
    let names = |object: &Value| object.as_object().map_or(0, |o| o.keys().filter(|name| is_spec(name)).count());
    let mut members = old.as_object().into_iter().flatten().filter(|(name, _)| is_spec(name));
    names(old) != names(new) || members.any(|(name, value)| new.get(name) != Some(value))
}

fn same_but_ownership(old: &Value, new: &Value) -> bool {
    let same = |old: &Value, new: &Value, but: &[&str]| {
        let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return false };
        let kept = |object: &Map<String, Value>| object.keys().filter(|name| !but.contains(&name.as_str())).count();
        kept(old) == kept(new)
            && old.iter().all(|(name, value)| but.contains(&name.as_str()) || new.get(name) == Some(value))
    };
    same(&old["metadata"], &new["metadata"], &["managedFields", "resourceVersion"]) && same(old, new, &["metadata"])
}

fn store_ownership(object: &mut Value, managed: &Managed) -> Result<()> {
    let meta = metadata::of(object)?;
    match managed.to_json() {
        Some(value) => meta.insert("managedFields".into(), value),
        None => meta.shift_remove("managedFields"),
    };
    Ok(())
}

/// Whether an object is marked for deletion and nothing holds it any more.
pub fn is_released(kind: &Kind, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let stopping = kind.deletion == Deletion::Graceful && metadata["deletionGracePeriodSeconds"].as_i64() != Some(0);
    let contents = kind.deletion == Deletion::Namespace && !empty(&object["spec"]["finalizers"]);
    !metadata["deletionTimestamp"].is_null() && empty(&metadata["finalizers"]) && !stopping && !contents
}
