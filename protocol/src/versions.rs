//! Which versions of a form two sides understand, and which one they speak.

use serde::{Deserialize, Serialize};

/// Versions of a form, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl VersionRange {
    /// The highest version that both know; `None` where there is none.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.oldest, self.newest)
    }
}

impl std::str::FromStr for VersionRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (oldest, newest) = text.trim().split_once('-').unwrap_or((text.trim(), text.trim()));
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
        match (number(oldest), number(newest)) {
            (Some(oldest), Some(newest)) if oldest <= newest => Ok(Self { oldest, newest }),
            _ => Err("versions are written as a number, or as two with a hyphen between them: 1-2".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_speak_the_newest_that_both_know() {
        let range = |oldest, newest| VersionRange { oldest, newest };
        assert_eq!(range(1, 2).common(range(2, 3)), Some(2));
        assert_eq!(range(1, 1).common(range(1, 2)), Some(1), "one side is a version behind");
        assert_eq!(range(1, 1).common(range(2, 3)), None);
    }

    #[test]
    fn a_range_reads_back_what_it_writes() {
        let range = VersionRange { oldest: 1, newest: 3 };
        assert_eq!(range.to_string().parse(), Ok(range));
        assert_eq!("2".parse(), Ok(VersionRange { oldest: 2, newest: 2 }));
        for wrong in ["", "0", "2-1", "1-", "a-b", "-1"] {
            assert!(wrong.parse::<VersionRange>().is_err(), "{wrong}");
        }
    }
}
