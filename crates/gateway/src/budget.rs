//! How many requests of a revision may be sent twice. Pure.
//!
//! Without a bound an overloaded revision whose instances die of it would be given its load again with every death.

/// What one resend costs, in what one request brings: one request in ten may be sent again.
const COST: u32 = 10;
/// Saved at most, and there at the beginning: an instance that dies may have had hundreds of requests in hand.
const MOST: u32 = 1_000 * COST;

#[derive(Debug)]
pub(crate) struct Budget(u32);

impl Default for Budget {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Budget {
    /// A request came.
    pub fn earn(&mut self) {
        self.0 = (self.0 + 1).min(MOST);
    }

    /// Whether one may be sent again, which is paid for.
    pub fn spend(&mut self) -> bool {
        let left = self.0.checked_sub(COST);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_ten_after_what_was_saved() {
        let spent = |budget: &mut Budget| std::iter::repeat_with(|| budget.spend()).take_while(|may| *may).count();
        let mut budget = Budget::default();
        for (requests, want) in [(0, 1_000), (9, 0), (1, 1), (105, 10), (5, 1), (1_000_000, 1_000)] {
            (0..requests).for_each(|_| budget.earn());
            assert_eq!(spent(&mut budget), want, "after {requests} more requests");
        }
    }
}
