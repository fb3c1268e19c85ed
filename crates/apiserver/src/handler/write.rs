//! Create, replace, patch and apply.
//!
//! A write is computed outside the store's writer from what is there, and committed only if that is still there;
//! otherwise it is computed again. So the slow part of a write blocks nobody.

use http::StatusCode;
use serde_json::{Value, json};
use store::{Entry, Expect, Revision, StoreError, Write};

use super::admit::{self, Live, MODIFIED, Outcome, Part, Writing};
use super::object::{Encoded, parse};
use super::scale::{scale_of, scaled};
use super::{Answer, Call, decode, metadata, not_allowed};
use crate::Inner;
use crate::fieldset::{Applied, Managed, Operation, apply_ownership, before_first_apply, fields_of};
use crate::index::Index;
use crate::kinds::{Deletion, EVENT_PREFIX, Kind};
use crate::patch::{Format, KUBECTL, Patch, applied_config, last_applied, merge_applied, record, remove_given_up};
use crate::request::content_type;
use crate::schema;
use crate::status::{ApiError, FieldError, Resource, Result};

/// How often a write is computed again because somebody else was faster.
const ATTEMPTS: usize = 32;
/// Names tried for one `generateName`.
const NAMES: usize = 8;

/// Kinds whose objects a replace makes when they are not there, as in Kubernetes.
const MADE_BY_UPDATE: [&str; 3] = ["services", "leases", "events"];

/// The namespaces that everything relies on: made when missing, and never deleted.
pub(super) const LASTING: [&str; 4] =
    ["default", "kube-system", api::names::NODE_LEASE_NAMESPACE, api::names::SYSTEM_NAMESPACE];

/// What somebody wants of an object that exists.
enum Intent {
    Replace(Value),
    Patch(Patch),
    Apply { config: Value, force: bool },
}

/// What a commit did.
pub(super) struct Committed {
    pub value: bytes::Bytes,
    pub revision: Revision,
}

impl Inner {
    pub(super) fn create(&self, call: &Call<'_>, body: &[u8]) -> Result<Answer> {
        if call.subresource.is_some() {
            return Err(not_allowed());
        }
        let mut object = decode::body(call, body)?;
        call.kind.to_kept(&mut object);
        let manager = call.manager();
        let writing = self.writing(call, &manager);
        self.check_namespace(call, &object)?;
        self.check_definition(call.kind)?;
        for _ in 0..NAMES {
            let admitted = admit::create(&writing, object.clone(), None)?;
            call.say(advice(call, &admitted, None));
            match self.insert(call, admitted) {
                Ok(answer) => return Ok(answer),
                // Only a generated name can be tried again.
                Err(ApiError::AlreadyExists { .. })
                    if object["metadata"]["name"].as_str().is_none_or(str::is_empty) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::Unavailable("no free name was found for this generateName; try again".into()))
    }

    pub(super) fn replace(&self, call: &Call<'_>, body: &[u8]) -> Result<Answer> {
        let mut object = decode::body(call, body)?;
        call.kind.to_kept(&mut object);
        let needs_revision = call.kind.is_custom() && call.subresource != Some("scale");
        if needs_revision && object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
            if self.store.get(&call.key()?).is_none() {
                return Err(call.not_found());
            }
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            let name = call.name.unwrap_or_default().to_owned();
            // Told of the resource, where other faults are told of the kind.
            let resource = Resource { kind: call.kind.plural, ..call.kind.resource() };
            return Err(ApiError::Invalid { resource, name, errors: vec![error] });
        }
        if call.subresource == Some("scale") {
            metadata::bears_its_name(&object, call.required_name()?)?;
        } else {
            // Said before anybody looks whether there is something to replace.
            metadata::identify(&mut object.clone(), call.kind, call.namespace, call.name)?;
        }
        self.modify(call, &Intent::Replace(object))
    }

    pub(super) fn patch(&self, call: &Call<'_>, body: &[u8]) -> Result<Answer> {
        if call.subresource == Some("finalize") {
            return Err(not_allowed());
        }
        let format = Format::of(content_type(&call.parts.headers), call.kind.is_custom())?;
        let force = call.query.flag("force");
        if format != Format::Apply {
            return self.modify(call, &Intent::Patch(Patch::decode(format, body)?));
        }
        let config = decode::body(call, body)?;
        if config["metadata"]["managedFields"].as_array().is_some_and(|list| !list.is_empty()) {
            return Err(ApiError::BadRequest("metadata.managedFields must be nil".into()));
        }
        if call.subresource != Some("scale") {
            metadata::says_what_it_is(&config, call.kind)?;
        }
        if call.kind.is_custom() && call.subresource != Some("scale") {
            fits(call, &config)?;
        }
        self.modify(call, &Intent::Apply { config, force })
    }

    /// Computes and commits until nobody was faster.
    fn modify(&self, call: &Call<'_>, intent: &Intent) -> Result<Answer> {
        let key = call.key()?;
        let manager = call.manager();
        let writing = self.writing(call, &manager);
        for _ in 0..ATTEMPTS {
            let Some(entry) = self.store.get(&key) else {
                match intent {
                    Intent::Apply { config, .. } if writing.part == Part::Whole => {
                        match self.create_applied(call, &writing, config) {
                            Err(ApiError::AlreadyExists { .. }) => continue,
                            done => return done,
                        }
                    }
                    Intent::Replace(object) if may_be_made(call, object) => {
                        let admitted = admit::create(&writing, object.clone(), None)?;
                        self.check_namespace(call, &admitted)?;
                        call.say(advice(call, &admitted, None));
                        match self.insert(call, admitted) {
                            Err(ApiError::AlreadyExists { .. }) => continue,
                            done => return done,
                        }
                    }
                    _ => return Err(call.not_found()),
                }
            };
            let live = Live::new(seen(call.kind, &entry)?);
            let mut warnings = vec![];
            let outcome =
                plan(call, &writing, intent, &live, &mut warnings).inspect_err(|_| call.say(warnings.clone()))?;
            let (object, remove) = match outcome {
                Outcome::Same => {
                    warnings.extend(advice(call, &live.object, Some(&live.object)));
                    call.say(warnings);
                    let body = self.shown_part(call, &entry.value)?;
                    return Ok(Answer { status: StatusCode::OK, body, revision: Some(entry.modified) });
                }
                Outcome::Put(object) => (object, false),
                Outcome::Remove(object) => (object, true),
            };
            warnings.extend(advice(call, &object, Some(&live.object)));
            let committed = if call.query.dry_run() {
                Committed { value: Encoded::new(&object).at(entry.modified), revision: entry.modified }
            } else {
                let done = match remove {
                    // The last state is the one that was stored; only who asked hears what came of it.
                    true => self
                        .remove(call.kind, &key, &parse(&entry.value)?, entry.modified)
                        .map(|done| Committed { value: Encoded::new(&object).at(entry.modified), ..done }),
                    false => self.put(call.kind, &key, &object, Expect::At(entry.modified)),
                };
                match done {
                    Err(ApiError::Store(StoreError::Conflict { .. })) => continue,
                    done => done?,
                }
            };
            call.say(warnings);
            let body = self.shown_part(call, &committed.value)?;
            return Ok(Answer { status: StatusCode::OK, body, revision: Some(committed.revision) });
        }
        let name = call.name.unwrap_or_default().to_owned();
        Err(ApiError::Conflict { resource: call.kind.resource(), name, why: MODIFIED.into() })
    }

    fn create_applied(&self, call: &Call<'_>, writing: &Writing<'_>, config: &Value) -> Result<Answer> {
        metadata::says_its_name(config, call.required_name()?)?;
        if let Some(uid) = config["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            let name = call.required_name()?.to_owned();
            return Err(ApiError::Conflict { resource: call.kind.resource(), name, why });
        }
        let mut config = part_of_config(call, config)?;
        metadata::identify(&mut config, call.kind, call.namespace, call.name)?;
        self.check_namespace(call, &config)?;
        self.check_definition(call.kind)?;
        let nothing = admit::nothing(call.kind);
        let objects = Applied { live: &nothing, config: &config, new: &config, before: None };
        let author = writing.author(Operation::Apply);
        let managed = apply_ownership(&Managed::default(), &author, objects, true)?;
        let admitted = admit::create(writing, config, Some(managed))?;
        call.say(advice(call, &admitted, None));
        self.insert(call, admitted)
    }

    fn insert(&self, call: &Call<'_>, object: Value) -> Result<Answer> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = call.kind.key(call.namespace, name);
        let exists = |entry: Option<Entry<Index>>| {
            let (resource, name) = (call.kind.resource(), name.to_owned());
            let deleting = entry.is_some_and(|entry| entry.index.deleting);
            // A made name is tried again, and so is an apply: neither meets one on its way out for long.
            match deleting && call.parts.method == http::Method::POST {
                true => ApiError::BeingDeleted { resource, name },
                false => ApiError::AlreadyExists { resource, name },
            }
        };
        if call.query.dry_run() {
            if let Some(entry) = self.store.get(&key) {
                return Err(exists(Some(entry)));
            }
            let body = object.to_string().into();
            return Ok(Answer { status: StatusCode::CREATED, body, revision: None });
        }
        let committed = match self.put(call.kind, &key, &object, Expect::Absent) {
            Err(ApiError::Store(StoreError::Conflict { .. })) => return Err(exists(self.store.get(&key))),
            done => done?,
        };
        if key.starts_with(EVENT_PREFIX) {
            self.bound_events(key.into());
        }
        let revision = Some(committed.revision);
        Ok(Answer { status: StatusCode::CREATED, body: committed.value, revision })
    }

    fn writing<'a>(&self, call: &'a Call<'_>, manager: &'a str) -> Writing<'a> {
        Writing {
            kind: call.kind,
            namespace: call.namespace,
            name: call.name,
            part: Part::of(call.subresource),
            manager,
            user: &call.caller.user.name,
            now: (self.clock)(),
        }
    }

    pub(super) fn put(&self, kind: &Kind, key: &str, object: &Value, expect: Expect) -> Result<Committed> {
        let committed = self.store_object(kind, key, object, expect)?;
        if kind.deletion == Deletion::Definition {
            self.settle_definitions()?;
        }
        Ok(committed)
    }

    pub(super) fn store_object(&self, kind: &Kind, key: &str, object: &Value, expect: Expect) -> Result<Committed> {
        let encoded = Encoded::new(object);
        let row = kind.stored();
        let index = Index::of(row.fields, object);
        let change = self.store.write(key, expect, (row.durability)(object), |revision, _| {
            Ok::<_, ApiError>(Write::Put { value: encoded.at(revision), index })
        })?;
        let value = change.current.map(|entry| entry.value).unwrap_or_default();
        Ok(Committed { value, revision: change.revision })
    }

    pub(super) fn remove(&self, kind: &Kind, key: &str, object: &Value, at: Revision) -> Result<Committed> {
        let encoded = Encoded::new(object);
        let durability = (kind.stored().durability)(object);
        let change = self.store.write(key, Expect::At(at), durability, |revision, _| {
            Ok::<_, ApiError>(Write::Delete { last: encoded.at(revision) })
        })?;
        let value = change.last.unwrap_or_default();
        if kind.deletion == Deletion::Definition {
            self.settle_definitions()?;
        }
        Ok(Committed { value, revision: change.revision })
    }

    /// The answer's body: the object, or its scale when that was written.
    pub(super) fn shown_part(&self, call: &Call<'_>, value: &bytes::Bytes) -> Result<bytes::Bytes> {
        match call.subresource {
            Some("scale") => Ok(scale_of(call.kind, &parse(value)?).to_string().into()),
            _ => Ok(value.clone()),
        }
    }

    /// Nothing is created in a namespace that is missing or going away.
    fn check_namespace(&self, call: &Call<'_>, object: &Value) -> Result<()> {
        let Some(namespace) = call.namespace else {
            return if call.kind.namespaced { Err(not_allowed()) } else { Ok(()) };
        };
        let kinds = self.kinds.load();
        let row = kinds.find("", "v1", "namespaces").ok_or(ApiError::NoSuchPath)?;
        let Some(entry) = self.store.get(&row.key(None, namespace)) else {
            return Err(ApiError::NotFound { resource: row.resource(), name: namespace.to_owned() });
        };
        if !entry.index.deleting {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        Err(ApiError::Forbidden {
            resource: call.kind.resource(),
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            why,
            cause: Some(Box::new(("NamespaceTerminating", format!("namespace {namespace} is being terminated")))),
        })
    }

    /// Keeps the newest Events only.
    fn bound_events(&self, key: std::sync::Arc<str>) {
        let dropped = {
            let mut events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            events.push_back(key);
            if events.len() > self.max_events { events.pop_front() } else { None }
        };
        let kinds = self.kinds.load();
        let Some((key, kind)) = dropped.zip(kinds.find("", "v1", "events")) else { return };
        // Already gone, or changed this very moment: then it is young again and the next one goes.
        let Some(entry) = self.store.get(&key) else { return };
        if let Ok(object) = parse(&entry.value) {
            let _ = self.remove(kind, &key, &object, entry.modified);
        }
    }

    /// Makes what is missing of [`LASTING`].
    pub fn make_namespaces(&self) -> Result<()> {
        let kinds = self.kinds.load();
        let kind = kinds.find("", "v1", "namespaces").ok_or(ApiError::NoSuchPath)?;
        for name in LASTING {
            let key = kind.key(None, name);
            if self.store.get(&key).is_some() {
                continue;
            }
            let now = (self.clock)();
            let writing = Writing::own(kind, name, now);
            let object = admit::create(&writing, json!({"metadata": {"name": name}}), None)?;
            self.put(kind, &key, &object, Expect::Absent)?;
        }
        Ok(())
    }
}

/// Refuses an applied object that says what its schema does not, or says it twice: nobody could own that.
fn fits(call: &Call<'_>, config: &Value) -> Result<()> {
    let faults = schema::apply_faults(config, call.kind.schema());
    if faults.is_empty() {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (metadata, kind) = (&config["metadata"], call.kind);
    let of = format!(
        "{}/{}; {}, Kind={}",
        text(&metadata["namespace"]),
        text(&metadata["name"]),
        kind.api_version(),
        kind.kind
    );
    let faults = match &faults[..] {
        [only] => only.clone(),
        all => format!("errors:\n{}", all.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")),
    };
    Err(ApiError::BadRequest(format!("failed to create typed patch object ({of}): {faults}")))
}

/// A stored object as it is worked on: in the version that the request is about. Views are worked on as they are stored.
fn seen(kind: &Kind, entry: &Entry<Index>) -> Result<Value> {
    let mut object = parse(&entry.value)?;
    if let (None, Some(conversion)) = (&kind.view, kind.conversion(entry.modified)) {
        conversion.apply(&mut object);
    }
    Ok(object)
}

/// The program's own components read no warnings.
fn advice(call: &Call<'_>, new: &Value, old: Option<&Value>) -> Vec<String> {
    if call.caller.trusted { vec![] } else { (call.kind.stored().advise)(new, old) }
}

/// Whether a replace makes what is not there. One that says what it replaces does not.
fn may_be_made(call: &Call<'_>, object: &Value) -> bool {
    let says = |field: &str| object["metadata"][field].as_str().is_some_and(|text| !text.is_empty());
    call.subresource.is_none() && MADE_BY_UPDATE.contains(&call.kind.plural) && !says("uid") && !says("resourceVersion")
}

/// What `old` becomes. Pure but for the clock that `writing` already read.
fn plan(
    call: &Call<'_>,
    writing: &Writing<'_>,
    intent: &Intent,
    live: &Live,
    warnings: &mut Vec<String>,
) -> Result<Outcome> {
    let schema = call.kind.schema();
    let old = &live.object;
    match intent {
        Intent::Replace(object) => match writing.part {
            Part::Scale => {
                stale_scale(call, old, object)?;
                admit::update(writing, live, scaled(call.kind, old, object)?, None)
            }
            _ => admit::update(writing, live, object.clone(), None),
        },
        Intent::Patch(patch) if writing.part == Part::Scale => {
            let scale = patch.apply(&scale_of(call.kind, old), schema)?;
            if let Some(why) = schema::misfit(&scale, &schema::builtin(decode::SCALE), "Scale") {
                let error = FieldError::invalid("patch", scale.to_string(), why);
                return Err(ApiError::InvalidPatch(Box::new(error)));
            }
            stale_scale(call, old, &scale)?;
            admit::update(writing, live, scaled(call.kind, old, &scale)?, None)
        }
        Intent::Patch(patch) => {
            let mut seen = if patch.is_json() { live.whole() } else { old.clone() };
            if let (Some(_), Some(conversion)) = (&call.kind.view, call.kind.conversion(live.written())) {
                conversion.apply(&mut seen);
            }
            let mut new = patch.apply(&seen, schema)?;
            metadata::says_its_name(&new, call.required_name()?)?;
            metadata::keeps_its_uid(&new, old, call.kind)?;
            *warnings = decode::screen_patched(call, &seen, &new)?;
            call.kind.to_kept(&mut new);
            admit::update(writing, live, new, None)
        }
        Intent::Apply { config, force } => plan_apply(call, writing, config, *force, live),
    }
}

fn plan_apply(call: &Call<'_>, writing: &Writing<'_>, config: &Value, force: bool, live: &Live) -> Result<Outcome> {
    let (schema, config_as_given) = (call.kind.schema(), config);
    let given = config["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
    if given.is_some_and(|given| live.object["metadata"]["resourceVersion"] != given) {
        let name = call.name.unwrap_or_default().to_owned();
        return Err(ApiError::Conflict { resource: call.kind.resource(), name, why: MODIFIED.into() });
    }
    let mut config = part_of_config(call, config)?;
    metadata::identify(&mut config, call.kind, call.namespace, call.name)?;
    let narrowed = (writing.part == Part::Status).then(|| live.status_only());
    let old = narrowed.as_ref().unwrap_or(&live.object);
    let author = writing.author(Operation::Apply);
    let mut merged = merge_applied(old, &config, schema);
    let first = live.managed.is_empty().then(|| before_first_apply(&author, &admit::nothing(call.kind), old));
    let before = first.as_ref().unwrap_or(&live.managed);
    if let Some(last) = before.fields(&author.owner) {
        let mut kept = fields_of(&config, schema);
        kept.add(&before.of_others(&author.owner));
        remove_given_up(&mut merged, schema, last, &kept);
    }
    let last = (writing.manager == KUBECTL && writing.part == Part::Whole).then(|| last_applied(old)).flatten();
    let objects = Applied { live: old, config: &config, new: &merged, before: last.as_ref() };
    let managed = apply_ownership(before, &author, objects, force)?;
    if last.is_some() {
        record(&mut merged, config_as_given);
    }
    admit::update(writing, live, merged, Some(managed))
}

/// An applied configuration reduced to the part that it may write.
fn part_of_config(call: &Call<'_>, config: &Value) -> Result<Value> {
    let mut config = applied_config(config);
    call.kind.to_kept(&mut config);
    admit::normalize(call.kind, &mut config);
    let Some(object) = config.as_object_mut() else { return Ok(config) };
    match Part::of(call.subresource) {
        Part::Status => {
            let with_metadata = call.kind.status == Some(crate::kinds::Status::WithMetadata);
            object.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
            if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.retain(|name, _| match name.as_str() {
                    "name" | "namespace" => true,
                    "labels" | "annotations" => with_metadata,
                    _ => false,
                });
            }
        }
        Part::Scale => {
            let metadata = object.get("metadata").cloned().unwrap_or_default();
            let replicas = object.get("spec").map(|spec| spec["replicas"].clone()).unwrap_or_default();
            return Ok(json!({
                "metadata": {"name": metadata["name"]},
                "spec": {"replicas": replicas},
            }));
        }
        Part::Whole if call.kind.status.is_some() => {
            object.shift_remove("status");
        }
        Part::Whole | Part::Finalize => {}
    }
    Ok(config)
}

fn stale_scale(call: &Call<'_>, old: &Value, scale: &Value) -> Result<()> {
    let given = scale["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
    if given.is_none_or(|given| old["metadata"]["resourceVersion"] == given) {
        return Ok(());
    }
    let name = call.name.unwrap_or_default().to_owned();
    Err(ApiError::Conflict { resource: call.kind.resource(), name, why: MODIFIED.into() })
}
