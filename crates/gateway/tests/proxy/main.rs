//! The gateway over real sockets, with real back ends.

mod failures;
mod harness;
mod protocols;
mod routing;
mod waiting;
