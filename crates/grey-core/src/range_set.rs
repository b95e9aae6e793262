//! A set of tasks as sorted, disjoint, non-adjacent ranges: a million waiting tasks of an array are one range.

use serde::{Deserialize, Serialize};

use crate::ids::{TaskId, TaskRange};

/// Tasks as ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RangeSet {
    ranges: Vec<TaskRange>,
}

impl RangeSet {
    /// The set of one range; empty when the range is.
    pub fn of(range: TaskRange) -> RangeSet {
        RangeSet { ranges: if range.count == 0 { Vec::new() } else { vec![range] } }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[TaskRange] {
        &self.ranges
    }

    /// The lowest task.
    pub fn first(&self) -> Option<TaskId> {
        self.ranges.first().map(|range| range.first)
    }

    /// How many tasks.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.count)).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn position(&self, task: TaskId) -> Option<usize> {
        let after = self.ranges.partition_point(|range| range.first <= task);
        let position = after.checked_sub(1)?;
        self.ranges.get(position).filter(|range| range.contains(task)).map(|_| position)
    }

    /// Whether `task` is in the set.
    pub fn contains(&self, task: TaskId) -> bool {
        self.position(task).is_some()
    }

    /// Takes `part` out if all of it is in the set; otherwise changes nothing and says so.
    #[must_use]
    pub fn remove(&mut self, part: TaskRange) -> bool {
        let Some(position) = self.position(part.first) else { return false };
        let Some(whole) = self.ranges.get(position).copied() else { return false };
        if part.count == 0 || part.end() > whole.end() {
            return false;
        }
        let before = part.first.0 - whole.first.0;
        let after = whole.end().0 - part.end().0;
        // Both lie within `whole`, whose count is a u32.
        let left = TaskRange { first: whole.first, count: before as u32 };
        let right = TaskRange { first: part.end(), count: after as u32 };
        match (before, after, self.ranges.get_mut(position)) {
            (0, 0, _) => drop(self.ranges.remove(position)),
            (0, _, Some(whole)) => *whole = right,
            (_, 0, Some(whole)) => *whole = left,
            (_, _, whole) => {
                whole.into_iter().for_each(|whole| *whole = left);
                self.ranges.insert(position + 1, right);
            }
        }
        true
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

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
                prop_assert_eq!(set.first().map(|task| task.0), model.first().copied());
                for task in 0..230 {
                    prop_assert_eq!(set.contains(TaskId(task)), model.contains(&task));
                }
            }
        }
    }
}
