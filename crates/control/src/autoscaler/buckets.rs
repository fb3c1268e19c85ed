//! A window of one-second buckets and its average; a window of maxima for delayed scale-down. Pure.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// Averages keep this many decimal digits, so that adding and removing never leaves dust.
const PRECISION: f64 = 1e6;

/// The sum per second of what was recorded, over the last `window` seconds.
#[derive(Clone, Debug)]
pub struct Buckets {
    /// Ring, indexed by the second modulo its length.
    sums: Vec<f64>,
    total: f64,
    first: Option<i64>,
    last: i64,
}

impl Buckets {
    pub fn new(window: SignedDuration) -> Self {
        Self { sums: vec![0.0; window.as_secs().max(1) as usize], total: 0.0, first: None, last: 0 }
    }

    pub fn seconds(&self) -> i64 {
        self.sums.len() as i64
    }

    /// Adds to the bucket of `now`; what is older than the window is left out.
    pub fn record(&mut self, now: Timestamp, value: f64) {
        let second = now.as_second();
        match self.first {
            None => {
                self.first = Some(second);
                self.last = second;
            }
            Some(_) if second <= self.last - self.seconds() => return,
            Some(_) if second - self.last >= self.seconds() => {
                self.sums.fill(0.0);
                self.total = 0.0;
                self.first = Some(second);
                self.last = second;
            }
            Some(first) => {
                // Seconds without a record count as zero.
                for passed in self.last + 1..=second {
                    let slot = self.slot(passed);
                    self.total -= self.sums[slot];
                    self.sums[slot] = 0.0;
                }
                self.first = Some(first.min(second));
                self.last = self.last.max(second);
            }
        }
        let slot = self.slot(second);
        self.sums[slot] += value;
        self.total += value;
    }

    /// The mean over the buckets of the window that can hold something: few while the window is young, and only
    /// those before the silence when nothing came lately.
    pub fn average(&self, now: Timestamp) -> f64 {
        let Some(first) = self.first else { return 0.0 };
        let silence = now.as_second() - self.last;
        if silence >= self.seconds() {
            return 0.0;
        }
        let silence = silence.max(0);
        let outdated: f64 = (self.last + 1..=self.last + silence).map(|s| self.sums[self.slot(s)]).sum();
        let valid = (self.last - first + 1).min(self.seconds() - silence);
        round((self.total - outdated) / valid as f64)
    }

    /// Whether nothing was recorded for more than a window.
    pub fn is_empty(&self, now: Timestamp) -> bool {
        self.first.is_none() || now.as_second() - self.last > self.seconds()
    }

    fn slot(&self, second: i64) -> usize {
        second.rem_euclid(self.seconds()) as usize
    }
}

fn round(value: f64) -> f64 {
    (value * PRECISION).round() / PRECISION
}

/// The largest of the values recorded within a window, in steps of one tick.
#[derive(Clone, Debug)]
pub struct Maxima {
    entries: VecDeque<(i64, i32)>,
    steps: i64,
    step: i64,
}

impl Maxima {
    pub fn new(window: SignedDuration, step: SignedDuration) -> Self {
        let step = step.as_secs().max(1);
        Self { entries: VecDeque::new(), steps: (window.as_secs() + step - 1) / step, step }
    }

    /// Records and returns the largest value still in the window.
    pub fn record(&mut self, now: Timestamp, value: i32) -> i32 {
        let index = now.as_second() / self.step;
        while self.entries.front().is_some_and(|(at, _)| *at <= index - self.steps) {
            self.entries.pop_front();
        }
        match self.entries.back_mut() {
            Some((at, largest)) if *at == index => *largest = value.max(*largest),
            _ => self.entries.push_back((index, value)),
        }
        self.entries.iter().map(|(_, v)| *v).max().unwrap_or(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn averages() {
        let window = SignedDuration::from_secs(5);
        type Record = (i64, f64);
        let rows: [(&str, &[Record], i64, f64); 8] = [
            ("nothing", &[], 0, 0.0),
            ("one bucket is the whole of a young window", &[(0, 4.0)], 0, 4.0),
            ("two reports in a second add up", &[(0, 4.0), (0, 2.0)], 0, 6.0),
            ("two buckets", &[(0, 4.0), (1, 2.0)], 1, 3.0),
            ("a second without a record is a zero", &[(0, 6.0), (2, 0.0)], 2, 2.0),
            ("the oldest falls out", &[(0, 50.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0)], 5, 1.0),
            (
                "silence removes buckets, not adds zeros",
                &[(0, 9.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 3.0)],
                6,
                5.0 / 3.0,
            ),
            ("silence of a window is zero", &[(0, 9.0)], 5, 0.0),
        ];
        for (name, records, now, want) in rows {
            let mut buckets = Buckets::new(window);
            for (second, value) in records {
                buckets.record(at(*second), *value);
            }
            assert_eq!(buckets.average(at(now)), round(want), "{name}");
        }
    }

    #[test]
    fn emptiness_and_restart() {
        let mut buckets = Buckets::new(SignedDuration::from_secs(5));
        assert!(buckets.is_empty(at(0)));
        buckets.record(at(0), 7.0);
        assert!(!buckets.is_empty(at(5)));
        assert!(buckets.is_empty(at(6)));
        buckets.record(at(20), 1.0);
        assert_eq!(buckets.average(at(20)), 1.0, "an old life does not count");
        buckets.record(at(10), 100.0);
        assert_eq!(buckets.average(at(20)), 1.0, "too old to count");
    }

    #[test]
    fn maxima() {
        let mut maxima = Maxima::new(SignedDuration::from_secs(6), SignedDuration::from_secs(2));
        for (second, value, want) in [(0, 5, 5), (2, 3, 5), (4, 1, 5), (6, 1, 3), (8, 1, 1), (8, 4, 4), (20, 0, 0)] {
            assert_eq!(maxima.record(at(second), value), want, "at {second}");
        }
    }
}
