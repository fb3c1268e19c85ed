//! Deletion: preconditions, grace, finalizers, propagation.

use api::names::DEFINITION_CLEANUP;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use store::{Expect, StoreError};

use super::admit::is_released;
use super::definitions::terminate;
use super::object::{Encoded, parse};
use super::write::LASTING;
use super::{Answer, Call, metadata};
use crate::Inner;
use crate::kinds::definitions::is_own;
use crate::kinds::{Deletion, Kind};
use crate::options;
use crate::protobuf;
use crate::request::{Query, content_type, decode};
use crate::status::{self, ApiError, FieldError, Result};

const ATTEMPTS: usize = 32;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// The kinds that are answered with the object that is gone, as in Kubernetes.
const SHOWN_LAST: [&str; 3] = ["pods", "services", "serviceaccounts"];

/// `DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    grace: Option<i64>,
    policy: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    pub dry_run: bool,
}

/// What a deletion does.
enum Deed {
    Remove(Value),
    Mark(Value),
    /// It is already on its way.
    Nothing,
}

/// What is left of a deleted object.
pub(super) struct Deleted {
    pub body: bytes::Bytes,
    pub revision: Option<store::Revision>,
    pub gone: bool,
}

impl Options {
    pub fn parse(call: &Call<'_>, body: &[u8]) -> Result<Self> {
        let given = match body.is_empty() {
            true => Value::Null,
            false => decode(body, content_type(&call.parts.headers), Some(protobuf::DELETE_OPTIONS))?,
        };
        match given["kind"].as_str() {
            None | Some("" | "DeleteOptions") => Self::of(&given, call.query),
            Some(other) => Err(ApiError::BadRequest(format!("a deletion has DeleteOptions and no {other}"))),
        }
    }

    fn of(body: &Value, query: &Query) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let grace = match query.get("gracePeriodSeconds") {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| ApiError::BadRequest(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?,
            ),
            None => body["gracePeriodSeconds"].as_i64(),
        };
        let policy = query.get("propagationPolicy").map(str::to_owned).or_else(|| text(&body["propagationPolicy"]));
        let orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
        let orphan = orphan.or_else(|| body["orphanDependents"].as_bool());
        let dry_run = query.get("dryRun").map(|word| vec![word.into()]).or_else(|| body["dryRun"].as_array().cloned());
        let is_dry = dry_run.as_ref().is_some_and(|words| !words.is_empty());
        let mut errors = vec![];
        if let (Some(policy), Some(_)) = (&policy, orphan) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy.as_str(), detail));
        }
        let known = ["Foreground", "Background", "Orphan", "nil"];
        errors.extend(options::one_of("propagationPolicy", policy.as_deref(), &known));
        errors.extend(options::dry_run(dry_run));
        if !errors.is_empty() {
            return Err(ApiError::InvalidOptions { options: "DeleteOptions", errors });
        }
        Ok(Self {
            grace,
            policy: policy.or_else(|| (orphan == Some(true)).then(|| "Orphan".to_owned())),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run: is_dry,
        })
    }
}

impl Inner {
    pub(super) fn delete(&self, call: &Call<'_>, body: &[u8]) -> Result<Answer> {
        let options = Options::parse(call, body)?;
        let deleted = self.delete_one(call.kind, &call.key()?, &options)?.ok_or_else(|| call.not_found())?;
        // What is gone is answered with a Status, but for a few kinds; what is still there with the object.
        let body = if deleted.gone && !SHOWN_LAST.contains(&call.kind.plural) {
            let object = parse(&deleted.body)?;
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            status::deleted(call.kind.resource(), call.required_name()?, uid).to_string().into()
        } else {
            deleted.body
        };
        Ok(Answer { status: StatusCode::OK, body, revision: deleted.revision })
    }

    /// `None`: not there.
    pub(super) fn delete_one(&self, kind: &Kind, key: &str, options: &Options) -> Result<Option<Deleted>> {
        for _ in 0..ATTEMPTS {
            let Some(entry) = self.store.get(key) else { return Ok(None) };
            let old = parse(&entry.value)?;
            check(kind, &old, options)?;
            let (object, gone) = match plan(kind, &old, options, (self.clock)())? {
                Deed::Nothing => {
                    return Ok(Some(Deleted { body: entry.value, revision: Some(entry.modified), gone: false }));
                }
                Deed::Mark(object) => (object, false),
                Deed::Remove(object) => (object, true),
            };
            if options.dry_run {
                let body = Encoded::new(&object).at(entry.modified);
                return Ok(Some(Deleted { body, revision: None, gone }));
            }
            let done = match gone {
                true => self.remove(kind, key, &object, entry.modified),
                false => self.put(kind, key, &object, Expect::At(entry.modified)),
            };
            match done {
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                done => {
                    let done = done?;
                    return Ok(Some(Deleted { body: done.value, revision: Some(done.revision), gone }));
                }
            }
        }
        Err(ApiError::TooManyRequests("the object changes faster than it can be deleted; try again".into()))
    }
}

fn check(kind: &Kind, old: &Value, options: &Options) -> Result<()> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    let lasting = match kind.deletion {
        Deletion::Namespace if LASTING.contains(&name) => Some("this namespace may not be deleted"),
        Deletion::Definition if is_own(name) => Some("this kind is built in and may not be deleted"),
        _ => None,
    };
    if let Some(why) = lasting.map(str::to_owned) {
        return Err(ApiError::Forbidden { resource: kind.resource(), name: name.to_owned(), why, cause: None });
    }
    for (what, field, wanted, hint) in [
        ("UID", "uid", &options.uid, "The object might have been deleted and then recreated"),
        ("ResourceVersion", "resourceVersion", &options.resource_version, "The object might have been modified"),
    ] {
        let is = old["metadata"][field].as_str().unwrap_or_default();
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != is) {
            let why =
                format!("the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). {hint}");
            return Err(ApiError::Conflict { resource: kind.resource(), name: name.to_owned(), why });
        }
    }
    Ok(())
}

fn plan(kind: &Kind, old: &Value, options: &Options, now: Timestamp) -> Result<Deed> {
    let mut object = old.clone();
    let grace = grace(kind, old, options);
    let marked = !old["metadata"]["deletionTimestamp"].is_null();
    let mut finalizers_changed = propagate(&mut object, options)?;
    if kind.deletion == Deletion::Definition && !marked {
        finalizers_changed |= add_finalizer(&mut object, DEFINITION_CLEANUP)?;
    }
    let left = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let sooner = kind.deletion == Deletion::Graceful && grace < left;
    if marked && !sooner && !finalizers_changed {
        return Ok(if is_released(kind, &object) { Deed::Remove(object) } else { Deed::Nothing });
    }
    if !marked && kind.deletion == Deletion::Immediate && !is_held(&object) {
        // It was never on its way, and its last state does not say so.
        return Ok(Deed::Remove(object));
    }
    let meta = metadata::of(&mut object)?;
    if !marked || sooner {
        // A pod's time is when it must be gone, everything else's when it was asked to go.
        let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        meta.insert("deletionTimestamp".into(), metadata::time(at).into());
        let own_way = matches!(kind.deletion, Deletion::Namespace | Deletion::Definition);
        if !own_way {
            meta.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
        if !marked && kind.generation && !own_way {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            meta.insert("generation".into(), generation.into());
        }
    }
    match kind.deletion {
        Deletion::Namespace => object["status"]["phase"] = "Terminating".into(),
        Deletion::Definition if !marked => terminate(&mut object, now),
        Deletion::Definition | Deletion::Immediate | Deletion::Graceful => {}
    }
    Ok(if is_released(kind, &object) { Deed::Remove(object) } else { Deed::Mark(object) })
}

fn is_held(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// How long a pod gets to stop. One that no node runs, or that has ended, needs no time.
fn grace(kind: &Kind, object: &Value, options: &Options) -> i64 {
    if kind.deletion != Deletion::Graceful {
        return 0;
    }
    let unbound = object["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unbound || ended {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace.unwrap_or(own).max(0)
}

/// Adds the finalizer that the policy asks for. Whether the object changed.
fn propagate(object: &mut Value, options: &Options) -> Result<bool> {
    let wanted = match options.policy.as_deref() {
        Some("Foreground") => FOREGROUND,
        Some("Orphan") => ORPHAN,
        _ => return Ok(false),
    };
    add_finalizer(object, wanted)
}

fn add_finalizer(object: &mut Value, wanted: &str) -> Result<bool> {
    let meta = metadata::of(object)?;
    let Some(finalizers) = meta.entry("finalizers").or_insert_with(|| json!([])).as_array_mut() else {
        return Ok(false);
    };
    if finalizers.iter().any(|finalizer| finalizer == wanted) {
        return Ok(false);
    }
    finalizers.push(wanted.into());
    Ok(true)
}
