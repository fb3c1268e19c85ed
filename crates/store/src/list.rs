//! Lists: the entries below a prefix, now or as of a revision that the history still reaches.
//!
//! The past is the present with the newer changes undone: of each key that changed since, what the oldest of those
//! changes replaced.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use crate::store::{Entry, Revision};
use crate::watch::Feed;

/// A page of entries in key order.
#[derive(Clone, Debug)]
pub struct Listing<I> {
    /// All writes up to this revision are in it, and none after.
    pub revision: Revision,
    pub entries: Vec<Entry<I>>,
    /// Whether `limit` cut it short.
    pub more: bool,
    /// How many entries, wanted or not, come after the last one here.
    pub remaining: usize,
}

/// Which entries a list holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range<'a> {
    /// What their keys begin with.
    pub prefix: &'a str,
    /// What their keys come after.
    pub after: Option<&'a str>,
    /// At most this many of them; 0: all.
    pub limit: usize,
}

impl Range<'_> {
    fn lower(&self) -> Bound<&str> {
        match self.after {
            Some(after) if after >= self.prefix => Bound::Excluded(after),
            _ => Bound::Included(self.prefix),
        }
    }

    /// The entries of this range that `wanted` says yes to, of all that `entries` yields within its bounds.
    pub(crate) fn take<'e, I: 'e>(
        &self,
        revision: Revision,
        mut entries: impl Iterator<Item = &'e Entry<I>>,
        wanted: impl Fn(&Entry<I>) -> bool,
    ) -> Listing<I> {
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let page = entries.by_ref().filter(|entry| wanted(entry)).take(limit).cloned().collect();
        let remaining = entries.count();
        Listing { revision, entries: page, more: remaining > 0, remaining }
    }

    /// What the map holds within these bounds. An upper bound, so that counting does not look at keys.
    pub(crate) fn of<'m, V>(&self, map: &'m BTreeMap<Arc<str>, V>) -> impl Iterator<Item = (&'m Arc<str>, &'m V)> {
        let end = end_of(self.prefix);
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        // A place to go on from that is beyond the end is no range at all.
        let beyond = matches!((self.after, upper), (Some(after), Bound::Excluded(end)) if after >= end);
        (!beyond).then(|| map.range::<str, _>((self.lower(), upper))).into_iter().flatten()
    }
}

/// What must be put in place of the present's entries to see the past; `None`: the key was not there.
pub(crate) type Undone<'s, I> = BTreeMap<Arc<str>, Option<&'s Entry<I>>>;

/// The changes below the prefix that came after the revision, undone.
pub(crate) fn undone<'s, I>(feed: &'s Feed<I>, revision: Revision, prefix: &str) -> Undone<'s, I> {
    let mut undone = Undone::new();
    for change in feed.since(revision).filter(|change| change.key.starts_with(prefix)) {
        undone.entry(change.key.clone()).or_insert(change.previous.as_ref());
    }
    undone
}

/// The present and what replaces some of it, both in key order, as one.
pub(crate) struct Past<P: Iterator, U: Iterator> {
    pub present: Peekable<P>,
    pub undone: Peekable<U>,
}

impl<'s, I: 's, P, U> Iterator for Past<P, U>
where
    P: Iterator<Item = &'s Entry<I>>,
    U: Iterator<Item = (&'s Arc<str>, Option<&'s Entry<I>>)>,
{
    type Item = &'s Entry<I>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(&(key, was)) = self.undone.peek() else { return self.present.next() };
            match self.present.peek() {
                Some(entry) if entry.key < *key => return self.present.next(),
                Some(entry) if entry.key == *key => drop(self.present.next()),
                _ => {}
            }
            self.undone.next();
            if was.is_some() {
                return was;
            }
        }
    }
}

/// The least text that is greater than all that begin with this one. `None`: there is none.
fn end_of(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // Text is in the order of its characters' numbers; the surrogates between D7FF and E000 are no characters.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_prefixes() {
        for (prefix, want) in [
            ("", None),
            ("a/", Some("a0")),
            ("é", Some("ê")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
        ] {
            assert_eq!(end_of(prefix).as_deref(), want, "{prefix:?}");
        }
    }
}
