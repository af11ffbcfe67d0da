//! What a consumer wants to see.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::source::Select;

/// Chooses records by kind, by key, or by any function of both. What it leaves out is passed over,
/// and counts as processed.
#[derive(Clone, Default)]
pub struct Filter {
    /// A bit a kind; `None` is all.
    kinds: Option<Arc<[u64]>>,
    keys: Option<Arc<HashSet<u64>>>,
    choice: Option<Choice>,
}

type Choice = Arc<dyn Fn(u16, u64) -> bool + Send + Sync>;

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("kinds", &self.kinds.is_some())
            .field("keys", &self.keys.as_ref().map(|k| k.len()))
            .field("function", &self.choice.is_some())
            .finish()
    }
}

impl Filter {
    /// Every record. The default.
    #[must_use]
    pub fn all() -> Filter {
        Filter::default()
    }

    /// Records of these kinds.
    #[must_use]
    pub fn kinds(kinds: impl IntoIterator<Item = u16>) -> Filter {
        let mut bits = vec![0_u64; 1 << 10];
        for kind in kinds {
            bits[usize::from(kind) / 64] |= 1 << (kind % 64);
        }
        Filter { kinds: Some(bits.into()), ..Filter::default() }
    }

    /// Records with these keys.
    #[must_use]
    pub fn keys(keys: impl IntoIterator<Item = u64>) -> Filter {
        Filter { keys: Some(Arc::new(keys.into_iter().collect())), ..Filter::default() }
    }

    /// Records for which `choice(kind, key)` is true. It runs on the consumer's thread, for every
    /// record, and must not panic.
    #[must_use]
    pub fn by(choice: impl Fn(u16, u64) -> bool + Send + Sync + 'static) -> Filter {
        Filter { choice: Some(Arc::new(choice)), ..Filter::default() }
    }

    /// Records that both filters let through.
    #[must_use]
    pub fn and(self, other: Filter) -> Filter {
        Filter::by(move |kind, key| self.matches(kind, key) && other.matches(kind, key))
    }
}

impl Select for Filter {
    fn all(&self) -> bool {
        self.kinds.is_none() && self.keys.is_none() && self.choice.is_none()
    }

    fn matches(&self, kind: u16, key: u64) -> bool {
        let bit = |bits: &Arc<[u64]>| bits[usize::from(kind) / 64] >> (kind % 64) & 1 == 1;
        self.kinds.as_ref().is_none_or(bit)
            && self.keys.as_ref().is_none_or(|keys| keys.contains(&key))
            && self.choice.as_ref().is_none_or(|choice| choice(kind, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_combine() {
        assert!(Filter::all().all() && !Filter::kinds([]).all());
        let filter = Filter::kinds([0, 64, u16::MAX]).and(Filter::keys([7]));
        for kind in [0, 64, u16::MAX] {
            assert!(filter.matches(kind, 7) && !filter.matches(kind, 8));
        }
        assert!(!filter.matches(1, 7));
        assert!(Filter::by(|kind, key| u64::from(kind) == key).matches(3, 3));
    }
}
