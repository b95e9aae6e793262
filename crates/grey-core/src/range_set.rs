//! A set of tasks as sorted, disjoint, non-adjacent ranges: a million waiting tasks of an array are one range.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{TaskId, TaskRange};

/// Tasks as ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RangeSet {
    ranges: Ranges,
}

/// Most sets are one range or none, and those need no memory beside their row.
#[derive(Debug, Clone)]
enum Ranges {
    One([TaskRange; 1]),
    Any(Vec<TaskRange>),
}

impl Default for Ranges {
    fn default() -> Ranges {
        Ranges::Any(Vec::new())
    }
}

impl Ranges {
    fn as_slice(&self) -> &[TaskRange] {
        match self {
            Ranges::One(range) => range,
            Ranges::Any(ranges) => ranges,
        }
    }

    /// Puts others in the place of the range at `position`.
    fn replace(&mut self, position: usize, by: &[TaskRange]) {
        match (&mut *self, by) {
            (Ranges::One(_), []) => *self = Ranges::default(),
            (Ranges::One(range), [only]) => *range = [*only],
            (Ranges::One(_), several) => *self = Ranges::Any(several.to_vec()),
            (Ranges::Any(ranges), _) => {
                ranges.splice(position..position + 1, by.iter().copied());
                if let [only] = **ranges {
                    *self = Ranges::One([only]);
                }
            }
        }
    }
}

/// Which of the two forms it is makes no difference.
impl PartialEq for Ranges {
    fn eq(&self, other: &Ranges) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Ranges {}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ranges, D::Error> {
        let ranges = Vec::deserialize(deserializer)?;
        Ok(if let [only] = *ranges { Ranges::One([only]) } else { Ranges::Any(ranges) })
    }
}

impl RangeSet {
    /// The set of one range; empty when the range is.
    pub fn of(range: TaskRange) -> RangeSet {
        RangeSet { ranges: if range.count == 0 { Ranges::default() } else { Ranges::One([range]) } }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[TaskRange] {
        self.ranges.as_slice()
    }

    /// The lowest task.
    pub fn first(&self) -> Option<TaskId> {
        self.ranges().first().map(|range| range.first)
    }

    /// How many tasks.
    pub fn count(&self) -> u64 {
        self.ranges().iter().map(|range| u64::from(range.count)).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges().is_empty()
    }

    fn position(&self, task: TaskId) -> Option<usize> {
        let after = self.ranges().partition_point(|range| range.first <= task);
        let position = after.checked_sub(1)?;
        self.ranges().get(position).filter(|range| range.contains(task)).map(|_| position)
    }

    /// Whether `task` is in the set.
    pub fn contains(&self, task: TaskId) -> bool {
        self.position(task).is_some()
    }

    /// Takes `part` out if all of it is in the set; otherwise changes nothing and says so.
    #[must_use]
    pub fn remove(&mut self, part: TaskRange) -> bool {
        let Some(position) = self.position(part.first) else { return false };
        let Some(whole) = self.ranges().get(position).copied() else { return false };
        if part.count == 0 || part.end() > whole.end() {
            return false;
        }
        let before = part.first.0 - whole.first.0;
        let after = whole.end().0 - part.end().0;
        // Both lie within `whole`, whose count is a u32.
        let left = TaskRange { first: whole.first, count: before as u32 };
        let right = TaskRange { first: part.end(), count: after as u32 };
        match (before, after) {
            (0, 0) => self.ranges.replace(position, &[]),
            (0, _) => self.ranges.replace(position, &[right]),
            (_, 0) => self.ranges.replace(position, &[left]),
            (_, _) => self.ranges.replace(position, &[left, right]),
        }
        true
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.ranges = Ranges::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_range_needs_no_memory_beside_its_row() {
        assert_eq!(size_of::<RangeSet>(), size_of::<Vec<TaskRange>>());
    }

    proptest! {
        #[test]
        fn removing_ranges_is_removing_their_tasks(
            count in 1u32..200,
            parts in proptest::collection::vec((0u64..220, 0u32..40), 0..40),
        ) {
            let mut set = RangeSet::of(TaskRange { first: TaskId(10), count });
            let mut model: BTreeSet<u64> = (10..10 + u64::from(count)).collect();
            for (first, length) in parts {
                let part = TaskRange { first: TaskId(first), count: length };
                let whole = length > 0 && part.tasks().all(|task| model.contains(&task.0));
                prop_assert_eq!(set.remove(part), whole);
                if whole {
                    for task in part.tasks() {
                        model.remove(&task.0);
                    }
                }
                prop_assert_eq!(set.count(), model.len() as u64);
                let bytes = postcard::to_allocvec(&set).unwrap();
                let ranges = set.ranges().to_vec();
                prop_assert_eq!(&bytes, &postcard::to_allocvec(&ranges).unwrap(), "kept as its ranges");
                prop_assert_eq!(&postcard::from_bytes::<RangeSet>(&bytes).unwrap(), &set);
                prop_assert_eq!(set.first().map(|task| task.0), model.first().copied());
                for task in 0..230 {
                    prop_assert_eq!(set.contains(TaskId(task)), model.contains(&task));
                }
            }
        }
    }
}
