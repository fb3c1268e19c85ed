//! Every object type Dhow owns, the vocabulary of their status, and the messages its rooms exchange.
//!
//! Owns: the types of `dhow.dev`, of Knative Serving and of the internal Knative groups, their defaults,
//! validation and status verbs; label, annotation and reason constants; wire messages between rooms.
//! Must not know: any clock, socket, file or client. Everything here is a value or a pure function.
//! Kubernetes' own types are never redefined: they come from `k8s-openapi`.

pub mod autoscaling;
pub mod build;
pub mod class;
pub mod condition;
pub mod config;
mod definitions;
pub mod frames;
pub mod function;
pub mod image;
pub mod names;
pub mod networking;
pub mod quantity;
pub mod rules;
pub mod serving;
pub mod wire;

pub use condition::{Condition, ConditionSet, Conditions};
pub use definitions::definitions;
pub use k8s_openapi;
pub use wire::Clock;
