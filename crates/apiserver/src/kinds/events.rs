//! Events, under the two groups that show them: they are stored as `core/v1` and `events.k8s.io` is a view.

use serde_json::Value;
use store::Durability;

use super::{Selectable, Shape, Strategy, View, set_default};
use crate::rules::event;
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

/// Shown even when they are empty, but not in the other group.
const SHOWN_EMPTY: [&str; 2] = ["reportingComponent", "reportingInstance"];

pub static EVENT: Strategy = Strategy {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    shape: Shape::Builtin("io.k8s.api.core.v1.Event"),
    durability: |_| Durability::Ephemeral,
    allocate: |event| {
        let Some(event) = event.as_object_mut() else { return };
        for name in SHOWN_EMPTY {
            set_default(event, name, "");
        }
    },
    validate: |event, _| event::check(event, "reportingComponent"),
    fields: &[
        Selectable::new("involvedObject.kind", "/involvedObject/kind"),
        Selectable::new("involvedObject.namespace", "/involvedObject/namespace"),
        Selectable::new("involvedObject.name", "/involvedObject/name"),
        Selectable::new("involvedObject.uid", "/involvedObject/uid"),
        Selectable::new("involvedObject.apiVersion", "/involvedObject/apiVersion"),
        Selectable::new("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
        Selectable::new("involvedObject.fieldPath", "/involvedObject/fieldPath"),
        Selectable::new("reason", "/reason"),
        Selectable::new("reportingComponent", "/reportingComponent"),
        Selectable::new("source", "/source/component"),
        Selectable::new("type", "/type"),
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
    validate: event::check_new,
    fields: EVENT.fields,
    columns: Columns::Printed(builtin::EVENT),
    view: Some(View {
        of: &EVENT,
        read: |event| {
            if let Some(event) = event.as_object_mut() {
                event.retain(|name, value| value != "" || !SHOWN_EMPTY.contains(&name.as_str()));
            }
            rename(event, "events.k8s.io/v1", RENAMED);
        },
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
