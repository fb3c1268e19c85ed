//! The server from outside: through kube-rs, through kubectl, and at its edges.

#![allow(clippy::unwrap_used, reason = "all of it is test code, what stands outside of test functions too")]

mod client;
mod definitions;
mod edges;
mod fuzz;
mod harness;
mod history;
mod kubectl;
mod lists;
mod long;
mod streams;
