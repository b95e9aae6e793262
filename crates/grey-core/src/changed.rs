//! The rows of a table that an entry changed. They lie in the order in which they were first touched, beside a small
//! index by number, since an entry reads and writes what it changed many times and its rows are mostly neighbours.

use std::collections::BTreeMap;

use crate::table::Numbered;

/// So many rows are looked through one by one: most entries change fewer, and need no index then.
const LISTED_ROWS: usize = 8;
/// Neighbouring numbers that share a place in the index.
const SHARED: u64 = 16;

/// Rows as an entry leaves them; nothing for one that is no longer there.
pub(crate) struct Changed<K, V> {
    rows: Vec<(K, Option<V>)>,
    /// Where the rows of neighbouring numbers lie, from one; zero for one that is not changed. Empty while there are so
    /// few that they are looked through.
    places: BTreeMap<u64, [u32; SHARED as usize]>,
}

impl<K, V> Default for Changed<K, V> {
    fn default() -> Changed<K, V> {
        Changed { rows: Vec::new(), places: BTreeMap::new() }
    }
}

/// The remainder fits any integer.
fn split(number: u64) -> (u64, usize) {
    (number / SHARED, (number % SHARED) as usize)
}

impl<K: Numbered, V> Changed<K, V> {
    fn find(&self, key: K) -> Option<usize> {
        if self.rows.len() <= LISTED_ROWS {
            return self.rows.iter().position(|(row, _)| *row == key);
        }
        let (neighbours, offset) = split(key.number());
        let place = *self.places.get(&neighbours)?.get(offset)?;
        (place as usize).checked_sub(1)
    }

    fn note(places: &mut BTreeMap<u64, [u32; SHARED as usize]>, key: K, row: usize) {
        let (neighbours, offset) = split(key.number());
        if let Some(place) = places.entry(neighbours).or_default().get_mut(offset) {
            // An entry has a few megabytes; what it changes fits by far.
            *place = u32::try_from(row + 1).unwrap_or(u32::MAX);
        }
    }

    fn add(&mut self, key: K, value: Option<V>) -> usize {
        let row = self.rows.len();
        self.rows.push((key, value));
        if row == LISTED_ROWS {
            for (place, (key, _)) in self.rows.iter().enumerate() {
                Self::note(&mut self.places, *key, place);
            }
        } else if row > LISTED_ROWS {
            Self::note(&mut self.places, key, row);
        }
        row
    }

    /// The row of a number if it was changed; nothing inside when it was removed.
    pub(crate) fn get(&self, key: K) -> Option<&Option<V>> {
        self.rows.get(self.find(key)?).map(|(_, value)| value)
    }

    /// The row of a number for writing. If it was not changed so far it is what `row` says, and nothing changes when
    /// there is none.
    pub(crate) fn get_or_add(&mut self, key: K, row: impl FnOnce() -> Option<V>) -> Option<&mut Option<V>> {
        let place = match self.find(key) {
            Some(place) => place,
            None => self.add(key, Some(row()?)),
        };
        self.rows.get_mut(place).map(|(_, value)| value)
    }

    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        match self.find(key).and_then(|place| self.rows.get_mut(place)) {
            Some((_, row)) => *row = value,
            None => drop(self.add(key, value)),
        }
    }

    /// Removes the row of a number; nothing is noted of one that was neither changed nor is in the state.
    pub(crate) fn remove(&mut self, key: K, is_in_state: impl FnOnce() -> bool) {
        match self.find(key).and_then(|place| self.rows.get_mut(place)) {
            Some((_, row)) => *row = None,
            None if is_in_state() => drop(self.add(key, None)),
            None => {}
        }
    }

    /// The rows in the order in which they were first touched.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, Option<&V>)> {
        self.rows.iter().map(|(key, value)| (*key, value.as_ref()))
    }

    /// The rows, ascending by number.
    pub(crate) fn into_ascending(mut self) -> impl Iterator<Item = (K, Option<V>)> {
        let mut order: Vec<u32> = Vec::with_capacity(self.rows.len());
        if self.rows.len() <= LISTED_ROWS {
            self.rows.sort_unstable_by_key(|(key, _)| *key);
            order.extend(1..=self.rows.len() as u32);
        } else {
            order.extend(self.places.values().flatten().filter(|place| **place > 0));
        }
        order.into_iter().filter_map(move |place| {
            let (key, value) = self.rows.get_mut((place as usize).checked_sub(1)?)?;
            Some((*key, value.take()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TaskId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_changed_is_a_map_in_two_orders(
            steps in proptest::collection::vec((0u64..60, 0u8..5, any::<u8>()), 0..80),
            far in any::<u64>(),
        ) {
            let mut changed = Changed::default();
            let mut model: BTreeMap<u64, Option<u8>> = BTreeMap::new();
            let mut touched = Vec::new();
            for (number, what, value) in steps {
                // Some are far apart.
                let number = if number % 7 == 0 { far.wrapping_add(number) } else { number };
                prop_assert_eq!(changed.get(TaskId(number)), model.get(&number));
                if what < 3 && !model.contains_key(&number) {
                    touched.push(number);
                }
                match what {
                    0 => {
                        changed.set(TaskId(number), Some(value).filter(|value| *value > 40));
                        model.insert(number, Some(value).filter(|value| *value > 40));
                    }
                    1 => {
                        let found = changed.get_or_add(TaskId(number), || Some(value));
                        prop_assert_eq!(found.copied(), Some(*model.entry(number).or_insert(Some(value))));
                    }
                    2 => {
                        changed.remove(TaskId(number), || true);
                        model.insert(number, None);
                    }
                    3 => {
                        changed.remove(TaskId(number), || false);
                        model.entry(number).and_modify(|row| *row = None);
                    }
                    _ => {
                        let found = changed.get_or_add(TaskId(number), || None).copied();
                        prop_assert_eq!(found, model.get(&number).copied(), "nothing is added that is not there");
                    }
                }
            }
            let in_touched = touched.iter().map(|number| (TaskId(*number), model[number]));
            prop_assert!(changed.iter().map(|(key, value)| (key, value.copied())).eq(in_touched));
            prop_assert!(changed.into_ascending().map(|(key, value)| (key.0, value)).eq(model));
        }
    }
}
