//! Brings the table of kinds in line with the stored definitions, after every write of one.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde_json::Value;
use store::{Expect, StoreError};

use super::admit::{self, Live, Outcome, Writing};
use super::object::parse;
use crate::Inner;
use crate::kinds::Kind;
use crate::kinds::definitions::{Known, own, settle};
use crate::status::{ApiError, Result};

/// What was last known of every definition, by key.
pub type Definitions = BTreeMap<String, Known>;

/// Rounds of statuses before something must be wrong: names can only be handed on once per definition.
const ROUNDS: usize = 1000;

impl Inner {
    /// Stores the definitions of our own types, as far as they are not there or another program's version is.
    pub fn make_definitions(&self) -> Result<()> {
        let kinds = self.kinds.load_full();
        let kind = definition_kind(&kinds)?;
        for wanted in own() {
            let name = wanted["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let key = kind.key(None, &name);
            let now = (self.clock)();
            let writing = Writing::own(kind, &name, now);
            let Some(entry) = self.store.get(&key) else {
                let object = admit::create(&writing, wanted, None)?;
                self.store_object(kind, &key, &object, Expect::Absent)?;
                continue;
            };
            let live = Live::new(parse(&entry.value)?);
            if live.object["spec"] == wanted["spec"] {
                continue;
            }
            let mut object = live.whole();
            object["spec"] = wanted["spec"].clone();
            if let Outcome::Put(object) = admit::update(&writing, &live, object, None)? {
                self.store_object(kind, &key, &object, Expect::At(entry.modified))?;
            }
        }
        self.settle_definitions()
    }

    /// Statuses first, until they are all as they should be; then the table.
    pub(super) fn settle_definitions(&self) -> Result<()> {
        let mut known = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = self.kinds.load_full();
        let kind = definition_kind(&kinds)?;
        for _ in 0..ROUNDS {
            let mut stored = Definitions::new();
            for entry in self.store.list(&kind.prefix(None)).entries {
                let key = entry.key.to_string();
                let known = match known.remove(&key) {
                    Some(known) if known.modified == entry.modified => known,
                    before => {
                        let now = Known::new(parse(&entry.value)?, entry.created, entry.modified, before.as_ref());
                        before.iter().for_each(|before| before.end_replaced(Some(&now)));
                        now
                    }
                };
                stored.insert(key, known);
            }
            // What is left of the old state is gone.
            std::mem::replace(&mut *known, stored).values().for_each(|gone| gone.end_replaced(None));
            let settled = settle(&known, &kinds, (self.clock)());
            if settled.write.is_empty() {
                self.kinds.store(Arc::new(settled.kinds));
                return Ok(());
            }
            for (key, object) in settled.write {
                let at = known.get(&key).map_or(Expect::Present, |known| Expect::At(known.modified));
                match self.store_object(kind, &key, &object, at) {
                    // Whoever was faster settles, too; here the next round sees what they did.
                    Ok(_) | Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Err(ApiError::Internal("the names of the definitions do not settle".into()))
    }

    /// Nothing new is made of a kind whose definition is going away.
    pub(super) fn check_definition(&self, kind: &Kind) -> Result<()> {
        if !kind.is_custom() {
            return Ok(());
        }
        let kinds = self.kinds.load();
        let key = definition_kind(&kinds)?.key(None, &format!("{}.{}", kind.plural, kind.group));
        match self.store.get(&key) {
            Some(entry) if entry.index.deleting => Err(ApiError::MethodNotAllowed(
                "create not allowed while custom resource definition is terminating".into(),
            )),
            _ => Ok(()),
        }
    }
}

fn definition_kind(kinds: &crate::kinds::Kinds) -> Result<&Arc<Kind>> {
    kinds.find("apiextensions.k8s.io", "v1", "customresourcedefinitions").ok_or(ApiError::NoSuchPath)
}

/// What a definition becomes when it is asked to go: its objects go first.
pub(super) fn terminate(definition: &mut Value, now: jiff::Timestamp) {
    let mut conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let terminating = ("True", "InstanceDeletionPending", message.to_owned());
    crate::kinds::definitions::set_condition(&mut conditions, "Terminating", terminating, now);
    definition["status"]["conditions"] = conditions.into();
}
