//! Which names a definition may use: those that no kind of its group has.

use serde_json::{Value, json};

/// Names as `spec.names` and `status.acceptedNames` hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub short: Vec<String>,
    pub kind: String,
    pub list_kind: String,
    pub categories: Vec<String>,
}

/// The names that the kinds of a group have so far.
#[derive(Default)]
pub struct Taken {
    /// Plural, singular and short names.
    resources: Vec<String>,
    kinds: Vec<String>,
}

impl Names {
    pub fn of(names: &Value) -> Self {
        let text = |name: &str| names[name].as_str().unwrap_or_default().to_owned();
        let list = |name: &str| {
            let list = names[name].as_array().into_iter().flatten();
            list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        Self {
            plural: text("plural"),
            singular: text("singular"),
            short: list("shortNames"),
            kind: text("kind"),
            list_kind: text("listKind"),
            categories: list("categories"),
        }
    }

    pub fn to_json(&self) -> Value {
        let mut names = json!({"plural": self.plural, "kind": self.kind});
        for (field, text) in [("singular", &self.singular), ("listKind", &self.list_kind)] {
            if !text.is_empty() {
                names[field] = text.as_str().into();
            }
        }
        for (field, list) in [("shortNames", &self.short), ("categories", &self.categories)] {
            if !list.is_empty() {
                names[field] = json!(list);
            }
        }
        names
    }
}

impl Taken {
    pub fn take(&mut self, names: &Names) {
        self.resources.extend([names.plural.clone(), names.singular.clone()]);
        self.resources.extend(names.short.clone());
        self.kinds.extend([names.kind.clone(), names.list_kind.clone()]);
    }

    /// What of the wanted names is free; what is not stays as it was `before`. With the last conflict, as reason and
    /// message of a condition.
    pub fn accept(&self, wanted: &Names, before: &Names) -> (Names, Option<(&'static str, String)>) {
        let mut accepted = before.clone();
        let mut conflict = None;
        let mut check = |name: &str, taken: &[String], reason: &'static str| {
            let free = !taken.iter().any(|taken| taken == name);
            if !free {
                conflict = Some((reason, format!("{name:?} is already in use")));
            }
            free
        };
        if check(&wanted.plural, &self.resources, "PluralConflict") {
            accepted.plural = wanted.plural.clone();
        }
        if check(&wanted.singular, &self.resources, "SingularConflict") {
            accepted.singular = wanted.singular.clone();
        }
        if wanted.short.iter().all(|name| check(name, &self.resources, "ShortNamesConflict")) {
            accepted.short = wanted.short.clone();
        }
        if check(&wanted.kind, &self.kinds, "KindConflict") {
            accepted.kind = wanted.kind.clone();
        }
        if check(&wanted.list_kind, &self.kinds, "ListKindConflict") {
            accepted.list_kind = wanted.list_kind.clone();
        }
        accepted.categories = wanted.categories.clone();
        (accepted, conflict)
    }
}
