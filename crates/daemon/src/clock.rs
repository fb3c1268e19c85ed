//! The only wall clock: everybody else is handed one, so that tests can hold time still.

use std::sync::Arc;

use jiff::Timestamp;

pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

#[expect(clippy::disallowed_methods, reason = "this room owns the wall clock")]
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}
