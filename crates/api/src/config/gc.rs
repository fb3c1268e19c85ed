//! `config-gc`: when old Revisions go.

use jiff::SignedDuration;

use super::{Data, Reader};

/// `None` switches a rule off.
#[derive(Clone, Debug, PartialEq)]
pub struct Gc {
    /// A Revision younger than this stays.
    pub since_create: Option<SignedDuration>,
    /// One that had traffic less than this ago stays.
    pub since_active: Option<SignedDuration>,
    /// So many without traffic stay, however old.
    pub min: usize,
    /// No more than these stay, however young.
    pub max: Option<usize>,
}

impl Gc {
    pub const NAME: &str = "config-gc";

    pub fn of(data: &Data) -> Self {
        Self::read(&mut Reader::new(data))
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let hours = SignedDuration::from_hours;
        let count = |text: &str| text.parse().map_err(|_| "is no number".to_owned());
        Self {
            since_create: reader.span_or_none("retain-since-create-time", hours(48)),
            since_active: reader.span_or_none("retain-since-last-active-time", hours(15)),
            min: reader.get("min-non-active-revisions", 20, count),
            max: reader.get("max-non-active-revisions", Some(1000), |text| match text {
                DISABLED => Ok(None),
                text => count(text).map(Some),
            }),
        }
    }
}

/// Says that a rule is off.
pub(super) const DISABLED: &str = "disabled";
