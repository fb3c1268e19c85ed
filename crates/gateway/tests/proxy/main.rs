//! The gateway over real sockets, with real back ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends; clippy knows tests only by their attribute")]

mod failures;
mod harness;
mod probing;
mod protocols;
mod pushing;
mod routing;
mod secure;
mod several;
mod waiting;
mod watching;
