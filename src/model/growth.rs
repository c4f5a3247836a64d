//! How the output of an attempt has grown: what whoever looks at its size notes, so that the output of several tasks can be
//! told in the order in which it was written. Tasks write straight into files, so that their lines carry no time; a look
//! says by when a part of them was there.
//!
//! One look is one line, `MONO_MS OUT_BYTES ERR_BYTES`. All of it can be deleted at any time.

/// Of the time since an attempt began, this part lies between two notes at least: a week of steady output is some ten
/// thousand lines, and the first second is told to the millisecond.
const PART: u64 = 1000;

/// The longest text of looks that is read, in bytes: much more than is ever written.
pub const MAX_TEXT: u64 = 4 * 1024 * 1024;

/// How long the output of an attempt was at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub mono_ms: u64,
    /// Bytes of stdout and of stderr.
    pub bytes: [u64; 2],
}

impl Look {
    /// As a line, with its line feed.
    pub fn line(&self) -> String {
        format!("{} {} {}\n", self.mono_ms, self.bytes[0], self.bytes[1])
    }

    fn parse(line: &str) -> Option<Look> {
        let mut numbers = line.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let look = Look { mono_ms: next()?, bytes: [next()?, next()?] };
        numbers.next().is_none().then_some(look)
    }
}

/// Says which looks at a growing output are worth a line.
#[derive(Debug)]
pub struct Noter {
    since_ms: u64,
    seen: Look,
    noted: Look,
}

impl Noter {
    /// For an attempt that began at `since_ms`.
    pub fn new(since_ms: u64) -> Noter {
        let none = Look { mono_ms: since_ms, bytes: [0, 0] };
        Noter { since_ms, seen: none, noted: none }
    }

    /// The output is `bytes` long now. Returns what is to be noted: growth, unless the last note is too fresh. What was seen
    /// then is noted later.
    pub fn see(&mut self, now_ms: u64, bytes: [u64; 2]) -> Option<Look> {
        let grown = [0, 1].map(|i| bytes[i].max(self.seen.bytes[i]));
        if grown != self.seen.bytes {
            self.seen = Look { mono_ms: now_ms, bytes: grown };
        }
        let pause = now_ms.saturating_sub(self.since_ms) / PART;
        if self.seen.bytes == self.noted.bytes || now_ms.saturating_sub(self.noted.mono_ms) < pause {
            return None;
        }
        self.noted = self.seen;
        Some(self.seen)
    }
}

/// All looks at the output of one attempt, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Growth {
    looks: Vec<Look>,
}

impl Growth {
    /// Reads what was noted. What is no look, or contradicts those before it, does not count.
    pub fn parse(text: &str) -> Growth {
        let mut looks: Vec<Look> = Vec::new();
        for look in text.lines().filter_map(Look::parse) {
            let last = looks.last().copied().unwrap_or_default();
            if look.mono_ms >= last.mono_ms && (0..2).all(|i| look.bytes[i] >= last.bytes[i]) {
                looks.push(look);
            }
        }
        Growth { looks }
    }

    /// By when the first `bytes` of stdout (0) or stderr (1) were there; `None`: nobody has looked since.
    pub fn seen_ms(&self, stream: usize, bytes: u64) -> Option<u64> {
        let at = self.looks.partition_point(|look| look.bytes[stream] < bytes);
        self.looks.get(at).map(|look| look.mono_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_noted_and_rest_is_not() {
        let mut noter = Noter::new(1000);
        assert_eq!(noter.see(1050, [0, 0]), None);
        assert_eq!(noter.see(1100, [5, 0]).unwrap().line(), "1100 5 0\n");
        assert_eq!(noter.see(1200, [5, 0]), None);
        assert_eq!(noter.see(1300, [5, 7]).unwrap().bytes, [5, 7]);
        // Emptied by who writes it: what was told stays told.
        assert_eq!(noter.see(1400, [0, 7]), None);
    }

    #[test]
    fn what_comes_too_soon_is_noted_later_with_its_own_time() {
        let mut noter = Noter::new(0);
        let hour = 3_600_000;
        assert!(noter.see(hour, [1, 0]).is_some());
        assert_eq!(noter.see(hour + 50, [2, 0]), None);
        assert_eq!(noter.see(hour + 100, [2, 0]), None);
        assert_eq!(noter.see(hour + 5000, [2, 0]), Some(Look { mono_ms: hour + 50, bytes: [2, 0] }));
        assert_eq!(noter.see(hour + 9000, [2, 0]), None);
    }

    #[test]
    fn the_notes_of_a_week_are_few() {
        let mut noter = Noter::new(0);
        let looks = 7 * 24 * 1800;
        let lines = (1..=looks).filter(|i| noter.see(i * 2000, [*i, 0]).is_some()).count();
        assert!((1000..20_000).contains(&lines), "{lines}");
    }

    #[test]
    fn a_byte_was_there_at_the_first_look_that_counts_it() {
        let growth = Growth::parse("100 5 0\n200 5 9\n300 8 9\n");
        assert_eq!([1, 5, 6, 8, 9].map(|b| growth.seen_ms(0, b)), [Some(100), Some(100), Some(300), Some(300), None]);
        assert_eq!([1, 9, 10].map(|b| growth.seen_ms(1, b)), [Some(200), Some(200), None]);
        assert_eq!(Growth::default().seen_ms(0, 1), None);
    }

    #[test]
    fn what_is_no_look_does_not_count() {
        let growth = Growth::parse("100 5 0\n\nx\n1 2\n100 2 0\n50 9 9\n1 2 3 4\n-1 2 3\n200 6 0\n300 6");
        let times: Vec<u64> = growth.looks.iter().map(|l| l.mono_ms).collect();
        assert_eq!(times, [100, 200]);
    }
}
