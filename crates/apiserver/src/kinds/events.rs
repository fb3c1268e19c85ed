//! Events, under the two groups that show them: they are stored as `core/v1` and `events.k8s.io` is a view.

use serde_json::Value;
use store::Durability;

use super::{Shape, Strategy, View, set_default};
use crate::table::{Columns, builtin};

/// The kept name, and the name in `events.k8s.io`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

pub static EVENT: Strategy = Strategy {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    shape: Shape::Builtin("io.k8s.api.core.v1.Event"),
    durability: |_| Durability::Ephemeral,
    default: |event| {
        let Some(event) = event.as_object_mut() else { return };
        set_default(event, "reportingComponent", "");
        set_default(event, "reportingInstance", "");
    },
    fields: &[
        ("involvedObject.kind", "/involvedObject/kind"),
        ("involvedObject.namespace", "/involvedObject/namespace"),
        ("involvedObject.name", "/involvedObject/name"),
        ("involvedObject.uid", "/involvedObject/uid"),
        ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
        ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
        ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
        ("reason", "/reason"),
        ("reportingComponent", "/reportingComponent"),
        ("source", "/source/component"),
        ("type", "/type"),
    ],
    columns: Columns::Printed(builtin::EVENT),
    ..Strategy::BASE
};

pub static EVENT_VIEW: Strategy = Strategy {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    shape: Shape::Builtin("io.k8s.api.events.v1.Event"),
    durability: |_| Durability::Ephemeral,
    fields: EVENT.fields,
    columns: Columns::Printed(builtin::EVENT),
    view: Some(View {
        of: &EVENT,
        read: |event| rename(event, "events.k8s.io/v1", RENAMED),
        write: |event| rename(event, "v1", RENAMED.map(|(kept, shown)| (shown, kept))),
    }),
    ..Strategy::BASE
};

fn rename(event: &mut Value, api_version: &str, names: [(&str, &str); 7]) {
    let Some(event) = event.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = event.shift_remove(from) {
            event.insert(to.into(), value);
        }
    }
    event.insert("apiVersion".into(), api_version.into());
}
