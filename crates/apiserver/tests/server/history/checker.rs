//! Whether what clients of one key saw can be told as one thing after the other.
//!
//! The search of Wing and Gong with Lowe's memory of what was tried: among the operations that nothing forces behind
//! another, one after the other is tried as the next. Values are unique, so a value stands for its revision.

use std::collections::HashSet;

/// A key's content: the unique value, or nothing.
pub type Content = Option<u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Create(u64),
    /// Over that value only.
    Replace(u64, u64),
    Patch(u64),
    Delete,
    DeleteOnly(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A read saw it; a write did what it was asked to.
    Done(Content),
    Missing,
    Exists,
    Conflict,
    /// The connection broke: it may have happened, or not.
    Unknown,
}

/// One operation on one key, from the moment it was asked for to the moment its answer was there.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub from: u64,
    pub to: u64,
    pub action: Action,
    pub outcome: Outcome,
}

impl Operation {
    /// What the key may hold after this, if it can come next.
    fn after(&self, now: Content) -> [Option<Content>; 2] {
        let happened = match self.action {
            Action::Read => None,
            Action::Create(value) => now.is_none().then_some(Some(value)),
            Action::Replace(old, value) => (now == Some(old)).then_some(Some(value)),
            Action::Patch(value) => now.is_some().then_some(Some(value)),
            Action::Delete => now.is_some().then_some(None),
            Action::DeleteOnly(old) => (now == Some(old)).then_some(None),
        };
        let unless = |possible: bool| [possible.then_some(now), None];
        match self.outcome {
            Outcome::Unknown => [Some(now), happened],
            Outcome::Done(seen) if self.action == Action::Read => unless(seen.is_some() && seen == now),
            Outcome::Done(_) => [happened, None],
            Outcome::Missing => unless(now.is_none()),
            Outcome::Exists => unless(now.is_some()),
            Outcome::Conflict => match self.action {
                Action::Replace(old, _) | Action::DeleteOnly(old) => unless(now != Some(old)),
                // Somebody else was faster every time; that says nothing about the present.
                _ => unless(true),
            },
        }
    }
}

/// The operations that are done: all before `first`, and these few after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Done {
    first: usize,
    ahead: Vec<usize>,
}

impl Done {
    fn with(&self, index: usize) -> Self {
        let mut next = self.clone();
        next.ahead.push(index);
        next.ahead.sort_unstable();
        while next.ahead.first() == Some(&next.first) {
            next.ahead.remove(0);
            next.first += 1;
        }
        next
    }
}

/// `Err`: the operation that cannot be placed, with those around it.
pub fn check(mut operations: Vec<Operation>) -> Result<(), String> {
    operations.sort_by_key(|operation| operation.from);
    let mut seen = HashSet::new();
    let start = (Done { first: 0, ahead: vec![] }, None);
    let mut stack = vec![start];
    let mut furthest = 0;
    while let Some((done, content)) = stack.pop() {
        if done.first == operations.len() {
            return Ok(());
        }
        furthest = furthest.max(done.first);
        let mut soonest = u64::MAX;
        for (index, operation) in operations.iter().enumerate().skip(done.first) {
            if operation.from > soonest {
                break;
            }
            if done.ahead.contains(&index) {
                continue;
            }
            soonest = soonest.min(operation.to);
            for next in operation.after(content).into_iter().flatten() {
                let state = (done.with(index), next);
                if seen.insert(state.clone()) {
                    stack.push(state);
                }
            }
        }
    }
    let around = &operations[furthest.saturating_sub(8)..(furthest + 8).min(operations.len())];
    Err(format!("no order explains operation {furthest}: {around:#?}"))
}

#[cfg(test)]
mod tests {
    use super::{Action::*, Outcome::*, *};

    #[test]
    fn histories() {
        let row = |from, to, action, outcome| Operation { from, to, action, outcome };
        for (name, rows, fine) in [
            ("nothing", vec![], true),
            ("one after the other", vec![row(0, 1, Create(1), Done(Some(1))), row(2, 3, Read, Done(Some(1)))], true),
            ("a lost write", vec![row(0, 1, Create(1), Done(Some(1))), row(2, 3, Read, Missing)], false),
            ("at the same time", vec![row(0, 3, Create(1), Done(Some(1))), row(1, 2, Read, Missing)], true),
            (
                "back in time",
                vec![row(0, 9, Create(1), Done(Some(1))), row(1, 2, Read, Done(Some(1))), row(3, 4, Read, Missing)],
                false,
            ),
            (
                "an unknown write that happened",
                vec![row(0, 9, Create(1), Unknown), row(1, 2, Read, Missing), row(3, 4, Read, Done(Some(1)))],
                true,
            ),
            ("an unknown write that did not", vec![row(0, 1, Create(1), Unknown), row(2, 3, Read, Missing)], true),
            (
                "an unknown write that was undone",
                vec![row(0, 1, Create(1), Unknown), row(2, 3, Read, Done(Some(1))), row(4, 5, Read, Missing)],
                false,
            ),
            (
                "two replaced the same",
                vec![
                    row(0, 1, Create(1), Done(Some(1))),
                    row(2, 9, Replace(1, 2), Done(Some(2))),
                    row(3, 8, Replace(1, 3), Done(Some(3))),
                ],
                false,
            ),
            (
                "one of two replaced",
                vec![
                    row(0, 1, Create(1), Done(Some(1))),
                    row(2, 9, Replace(1, 2), Done(Some(2))),
                    row(3, 8, Replace(1, 3), Conflict),
                    row(10, 11, Delete, Done(None)),
                    row(12, 13, Create(4), Done(Some(4))),
                ],
                true,
            ),
        ] {
            assert_eq!(check(rows).is_ok(), fine, "{name}");
        }
    }
}
