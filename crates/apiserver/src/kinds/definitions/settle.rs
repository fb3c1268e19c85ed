//! From all stored definitions to their statuses and to the table of kinds. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use store::Revision;

use super::names::{Names, Taken};
use super::{is_own, storage};
use crate::kinds::{Kind, Kinds, ROWS, Shape, Status, Strategy, Version, names as kept};
use crate::rules::advice;
use crate::table::Columns;

/// A stored definition, with the rows that it became when it was last looked at.
pub struct Known {
    pub object: Arc<Value>,
    pub created: Revision,
    pub modified: Revision,
    /// Since when objects are written as the present `spec` says.
    since: Revision,
    rows: Vec<Arc<Kind>>,
}

/// What is to be.
pub struct Settled {
    /// Statuses that differ from the stored ones: the whole objects, by key.
    pub write: Vec<(String, Value)>,
    pub kinds: Kinds,
}

impl Known {
    /// What is stored under a key now, given what was known of it before.
    pub fn new(object: Value, created: Revision, modified: Revision, before: Option<&Known>) -> Self {
        // Only a change of the specification changes what is served: a status or a label does not.
        let same = |known: &&Known| {
            let facts = |o: &Value| [o["spec"].clone(), o["metadata"]["uid"].clone(), served(o).into()];
            facts(&known.object) == facts(&object)
        };
        match before.filter(same) {
            Some(known) => {
                let (since, rows) = (known.since, known.rows.clone());
                Self { object: Arc::new(object), created, modified, since, rows }
            }
            None => {
                let rows = rows(&object, modified);
                Self { object: Arc::new(object), created, modified, since: modified, rows }
            }
        }
    }

    /// Ends the watches of rows that `after` does not have.
    pub fn end_replaced(&self, after: Option<&Known>) {
        for row in &self.rows {
            let stays = |known: &Known| known.rows.iter().any(|other| Arc::ptr_eq(row, other));
            if !after.is_some_and(stays) {
                row.replaced.cancel();
            }
        }
    }
}

/// Whether the kind is served: its names were accepted once. Until its last object is gone it stays.
pub(super) fn served(definition: &Value) -> bool {
    condition(definition, "Established").is_some_and(|condition| condition["status"] == "True")
}

fn condition<'a>(definition: &'a Value, name: &str) -> Option<&'a Value> {
    definition["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

/// Statuses and table for everything that is known. What is built in is taken from the table as it was, compiled as far as
/// it is.
pub fn settle(known: &BTreeMap<String, Known>, before: &Kinds, now: Timestamp) -> Settled {
    let mut write = vec![];
    let built_in = before.rows.iter().filter(|row| !matches!(row.shape, Shape::Defined(_)));
    let mut rows: Vec<Arc<Kind>> = built_in.cloned().collect();
    let mut stamps = HashMap::new();
    let mut taken: HashMap<&str, Taken> = HashMap::new();
    for row in ROWS.iter().filter(|row| !row.is_custom()) {
        let names = Names {
            plural: row.plural.into(),
            singular: row.singular.into(),
            short: row.short_names.iter().map(|name| (*name).to_owned()).collect(),
            kind: row.kind.into(),
            list_kind: format!("{}List", row.kind),
            categories: vec![],
        };
        taken.entry(row.group).or_default().take(&names);
    }
    // Whoever has a name keeps it; then the oldest comes first.
    let mut in_order: Vec<(&String, &Known)> = known.iter().collect();
    in_order.sort_by_key(|(_, known)| (!served(&known.object), known.created));
    for (key, known) in in_order {
        let group = known.object["spec"]["group"].as_str().unwrap_or_default();
        let taken = taken.entry(group).or_default();
        let status = status(&known.object, taken, now);
        taken.take(&Names::of(&status["acceptedNames"]));
        if known.object["status"] != status {
            let mut object = known.object.as_ref().clone();
            object["status"] = status;
            write.push((key.clone(), object));
        }
        rows.extend(known.rows.iter().cloned());
        if let Some(group) = kept::text(group) {
            let stamp = stamps.entry(group).or_insert(0);
            *stamp = known.since.max(*stamp);
        }
    }
    // A definition that goes changes its group, too.
    for stamp in stamps.values_mut() {
        *stamp = *stamp * 31 + rows.len() as u64;
    }
    Settled { write, kinds: Kinds::of(rows, stamps) }
}

fn status(definition: &Value, taken: &Taken, now: Timestamp) -> Value {
    let before = &definition["status"];
    let wanted = Names::of(&definition["spec"]["names"]);
    let (accepted, conflict) = taken.accept(&wanted, &Names::of(&before["acceptedNames"]));
    let mut status = before.clone();
    if !status.is_object() {
        status = json!({});
    }
    status["acceptedNames"] = accepted.to_json();
    let mut stored = before["storedVersions"].as_array().cloned().unwrap_or_default();
    if let Some(storage) = storage(&definition["spec"]).map(Value::from).filter(|storage| !stored.contains(storage)) {
        stored.push(storage);
    }
    status["storedVersions"] = stored.into();
    let mut conditions = before["conditions"].as_array().cloned().unwrap_or_default();
    let established = conflict.is_none() || served(definition);
    let names = match conflict {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => ("False", reason, message),
    };
    set(&mut conditions, "NamesAccepted", names, now);
    let (truth, reason, message) = match established {
        true => ("True", "InitialNamesAccepted", "the initial names have been accepted"),
        false => ("False", "NotAccepted", "not all names are accepted"),
    };
    set(&mut conditions, "Established", (truth, reason, message.to_owned()), now);
    status["conditions"] = conditions.into();
    status
}

/// Sets a condition; its time moves only when its status does.
pub fn set(conditions: &mut Vec<Value>, name: &str, (status, reason, message): (&str, &str, String), now: Timestamp) {
    let at = conditions.iter().position(|condition| condition["type"] == name);
    let time =
        at.filter(|at| conditions[*at]["status"] == status).map(|at| conditions[at]["lastTransitionTime"].clone());
    let time = time.unwrap_or_else(|| api::condition::whole_seconds(now).to_string().into());
    let condition =
        json!({"lastTransitionTime": time, "message": message, "reason": reason, "status": status, "type": name});
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// The rows of one definition, one for each version that is served. Our own types' are in the code.
fn rows(definition: &Value, since: Revision) -> Vec<Arc<Kind>> {
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    if is_own(name) || !served(definition) {
        return vec![];
    }
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let served = versions.filter(|version| version["served"] == true);
    served.filter_map(|version| row(definition, version)).map(|row| Arc::new(Kind::new(row, since))).collect()
}

/// `None`: there is no room left for its names.
fn row(definition: &Value, version: &Value) -> Option<Strategy> {
    let spec = &definition["spec"];
    let names = Names::of(&definition["status"]["acceptedNames"]);
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    let fields: Vec<(String, String)> = fields
        .filter_map(|field| field["jsonPath"].as_str())
        .map(|path| (path.trim_start_matches('.').to_owned(), crate::kinds::version::pointer(path)))
        .collect();
    let storage = kept::text(storage(spec)?)?;
    let shape = Version::of(spec, version, storage);
    let subresources = &version["subresources"];
    Some(Strategy {
        group: kept::text(spec["group"].as_str()?)?,
        version: kept::text(version["name"].as_str()?)?,
        kind: kept::text(&names.kind)?,
        plural: kept::text(&names.plural)?,
        singular: kept::text(&names.singular)?,
        short_names: kept::list(names.short.iter().map(String::as_str))?,
        categories: kept::list(names.categories.iter().map(String::as_str))?,
        namespaced: spec["scope"] == "Namespaced",
        status: subresources["status"].is_object().then_some(Status::Separate),
        scale: shape.scale.is_some(),
        generation: true,
        fields: kept::fields(fields.iter().map(|(name, pointer)| (name.as_str(), pointer.as_str())))?,
        shape: Shape::Defined(Arc::new(shape)),
        columns: Columns::OfDefinition,
        advise: advice::of_finalizers,
        ..Strategy::BASE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, kind: &str, short: &[&str], served: bool) -> Value {
        let conditions = if served { json!([{"type": "Established", "status": "True"}]) } else { json!([]) };
        json!({
            "metadata": {"name": format!("{name}.a.example"), "uid": name},
            "spec": {"group": "a.example", "scope": "Namespaced",
                     "names": {"plural": name, "singular": kind.to_lowercase(), "kind": kind,
                               "listKind": format!("{kind}List"), "shortNames": short},
                     "versions": [{"name": "v1", "served": true, "storage": true},
                                  {"name": "v1beta1", "served": true, "storage": false},
                                  {"name": "v1alpha1", "served": false, "storage": false}]},
            "status": {"conditions": conditions, "storedVersions": ["v1beta1"]},
        })
    }

    fn settled(definitions: &[Value]) -> (BTreeMap<String, Known>, Settled) {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let mut objects: Vec<Value> = definitions.to_vec();
        loop {
            let known = objects
                .iter()
                .enumerate()
                .map(|(i, object)| (format!("{i}"), Known::new(object.clone(), i as u64 + 1, i as u64 + 1, None)));
            let known: BTreeMap<String, Known> = known.collect();
            let settled = settle(&known, &Kinds::new(), now);
            if settled.write.is_empty() {
                return (known, settled);
            }
            for (key, object) in settled.write {
                objects[key.parse::<usize>().unwrap()] = object;
            }
        }
    }

    #[test]
    fn names_go_to_whoever_came_first() {
        let (known, settled) = settled(&[
            definition("widgets", "Widget", &["w"], false),
            definition("gadgets", "Widget", &[], false),
            definition("others", "Other", &["w"], true),
        ]);
        let of = |key: &str, name: &str| {
            let condition = condition(&known[key].object, name).unwrap();
            (condition["status"].as_str().unwrap().to_owned(), condition["reason"].as_str().unwrap().to_owned())
        };
        let owned = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        assert_eq!(of("2", "NamesAccepted"), owned("True", "NoConflicts"), "it has the name already");
        assert_eq!(of("0", "NamesAccepted"), owned("False", "ShortNamesConflict"));
        assert_eq!(of("0", "Established"), owned("False", "NotAccepted"));
        assert_eq!(of("1", "NamesAccepted"), owned("False", "ListKindConflict"));
        let served: Vec<_> = ["widgets", "gadgets", "others"]
            .into_iter()
            .filter(|plural| settled.kinds.find("a.example", "v1", plural).is_some())
            .collect();
        assert_eq!(served, ["others"]);
        assert!(settled.kinds.find("a.example", "v1beta1", "others").is_some());
        assert!(settled.kinds.find("a.example", "v1alpha1", "others").is_none(), "not served");
        assert_eq!(known["2"].object["status"]["storedVersions"], json!(["v1beta1", "v1"]));
    }

    #[test]
    fn rows_last_while_the_specification_does() {
        let (known, _) = settled(&[definition("widgets", "Widget", &[], false)]);
        let first = &known["0"];
        let mut labelled = first.object.as_ref().clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        let second = Known::new(labelled.clone(), 1, 7, Some(first));
        assert!(Arc::ptr_eq(&first.rows[0], &second.rows[0]));
        assert_eq!(second.since, first.since);
        labelled["spec"]["versions"][0]["schema"] = json!({});
        let third = Known::new(labelled, 1, 9, Some(&second));
        assert!(!Arc::ptr_eq(&second.rows[0], &third.rows[0]));
        second.end_replaced(Some(&third));
        assert!(second.rows[0].replaced.is_cancelled() && !third.rows[0].replaced.is_cancelled());
    }
}
