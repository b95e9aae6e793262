//! A table of rows under sequential numbers, in the order of these.
//!
//! Rows lie in pages of neighbours, pages in chunks, and chunks in a list. Ids are given in sequence, so a chunk is nearly
//! always found where its number says; where rows are missing in between, by binary search. A tree of as many rows has a
//! node every dozen of them, and looking through its levels was most of what applying a placement cost.
//!
//! A page also knows which of its rows changed since the last checkpoint and which of these the checkpoint has. A row that
//! came and went in between leaves no trace, so that memory follows live work and not the length of the log.

use core::fmt;
use core::ops::{Bound, Index, RangeBounds};

/// Rows of a page: one for each bit of its sets.
const PAGE_ROWS: u32 = u32::BITS;
/// Pages of a chunk: one for each bit of its sets.
const CHUNK_PAGES: u32 = u64::BITS;
/// Numbers that a chunk covers.
const CHUNK_ROWS: u64 = PAGE_ROWS as u64 * CHUNK_PAGES as u64;
/// A page whose rows become this few gives room back. Once, so that emptying it costs one move more.
const FEW_ROWS: usize = 8;

/// What rows are kept under: an id that is a number.
pub trait Numbered: Copy + Ord {
    /// The number.
    fn number(self) -> u64;
}

/// Neighbouring rows, those that are there without gaps.
#[derive(Clone)]
struct Page<K, V> {
    /// Which rows are there.
    present: u32,
    /// Which rows changed since the last checkpoint.
    changed: u32,
    /// Which of those the last checkpoint has.
    saved: u32,
    rows: Vec<(K, V)>,
}

impl<K, V> Page<K, V> {
    const EMPTY: Page<K, V> = Page { present: 0, changed: 0, saved: 0, rows: Vec::new() };

    /// How many rows stand before that of a bit.
    fn rank(&self, bit: u32) -> usize {
        (self.present & !(u32::MAX << bit)).count_ones() as usize
    }

    fn has(&self, bit: u32) -> bool {
        self.present >> bit & 1 == 1
    }

    fn get(&self, bit: u32) -> Option<&(K, V)> {
        if self.has(bit) { self.rows.get(self.rank(bit)) } else { None }
    }

    fn put(&mut self, bit: u32, key: K, value: Option<V>) -> Option<V> {
        let rank = self.rank(bit);
        match (self.has(bit), value) {
            (true, Some(value)) => self.rows.get_mut(rank).map(|(_, row)| core::mem::replace(row, value)),
            (false, Some(value)) => {
                self.present |= 1 << bit;
                self.rows.insert(rank, (key, value));
                None
            }
            (true, None) => {
                self.present &= !(1 << bit);
                let (_, before) = self.rows.remove(rank);
                match self.rows.len() {
                    0 => self.rows = Vec::new(),
                    FEW_ROWS => self.rows.shrink_to(FEW_ROWS),
                    _ => {}
                }
                Some(before)
            }
            (false, None) => None,
        }
    }

    /// Notes a changed row. Untouched so far, the last checkpoint has it exactly when it was there until now.
    fn mark(&mut self, bit: u32, was_there: bool) {
        let (row, is_there) = (1 << bit, self.has(bit));
        if self.changed & row == 0 {
            if is_there || was_there {
                self.changed |= row;
                self.saved = if was_there { self.saved | row } else { self.saved & !row };
            }
        } else if !is_there && self.saved & row == 0 {
            self.changed &= !row;
        }
    }
}

#[derive(Clone)]
struct Chunk<K, V> {
    number: u64,
    /// Pages that have rows.
    used: u64,
    /// Pages that have changed rows.
    changed: u64,
    pages: Box<[Page<K, V>; CHUNK_PAGES as usize]>,
}

impl<K, V> Chunk<K, V> {
    fn new(number: u64) -> Chunk<K, V> {
        Chunk { number, used: 0, changed: 0, pages: Box::new([Page::EMPTY; CHUNK_PAGES as usize]) }
    }

    fn page(&self, page: u32) -> Option<&Page<K, V>> {
        self.pages.get(page as usize)
    }

    /// The first row from a place in the chunk on.
    fn first_from(&self, page: u32, bit: u32) -> Option<&(K, V)> {
        let here = self.page(page)?;
        if here.present & u32::MAX << bit != 0 {
            return here.rows.get(here.rank(bit));
        }
        let later = self.used & (u64::MAX << page) & !(1 << page);
        if later == 0 { None } else { self.page(later.trailing_zeros())?.rows.first() }
    }

    /// The last row up to a place in the chunk.
    fn last_to(&self, page: u32, bit: u32) -> Option<&(K, V)> {
        let here = self.page(page)?;
        let rank = here.rank(bit) + usize::from(here.has(bit));
        if let Some(last) = rank.checked_sub(1) {
            return here.rows.get(last);
        }
        let earlier = self.used & !(u64::MAX << page);
        earlier.checked_ilog2().and_then(|page| self.page(page)?.rows.last())
    }
}

/// Rows under sequential numbers.
#[derive(Clone)]
pub struct Table<K, V> {
    /// Ascending by number; none is without rows and changes.
    chunks: Vec<Chunk<K, V>>,
    rows: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table { chunks: Vec::new(), rows: 0 }
    }
}

/// Chunk, page and bit of a number.
fn place_of(number: u64) -> (u64, u32, u32) {
    // Both remainders are below 64.
    let within = (number % CHUNK_ROWS) as u32;
    (number / CHUNK_ROWS, within / PAGE_ROWS, within % PAGE_ROWS)
}

impl<K: Numbered, V> Table<K, V> {
    /// Where a chunk is, or would be.
    fn find(&self, chunk: u64) -> Result<usize, usize> {
        let Some(first) = self.chunks.first() else { return Err(0) };
        // Where every chunk in between exists, this is its place.
        if let Some(near) = chunk.checked_sub(first.number).and_then(|near| usize::try_from(near).ok())
            && self.chunks.get(near).is_some_and(|found| found.number == chunk)
        {
            return Ok(near);
        }
        self.chunks.binary_search_by_key(&chunk, |chunk| chunk.number)
    }

    fn chunk(&self, number: u64) -> Option<&Chunk<K, V>> {
        self.chunks.get(self.find(number).ok()?)
    }

    fn chunk_mut(&mut self, number: u64) -> Option<&mut Chunk<K, V>> {
        let at = match self.find(number) {
            Ok(at) => at,
            Err(at) => {
                self.chunks.insert(at, Chunk::new(number));
                at
            }
        };
        self.chunks.get_mut(at)
    }

    /// The row of a number.
    pub fn get(&self, key: &K) -> Option<&V> {
        let (chunk, page, bit) = place_of(key.number());
        self.chunk(chunk)?.page(page)?.get(bit).map(|(_, value)| value)
    }

    /// Whether there is a row of this number.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// All rows, ascending by number.
    pub fn iter(&self) -> Rows<'_, K, V> {
        self.range(..)
    }

    /// All numbers that have rows, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All rows without their numbers, ascending by these.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The rows of a range of numbers, ascending. A range whose end lies before its start has none.
    pub fn range(&self, range: impl RangeBounds<K>) -> Rows<'_, K, V> {
        let low = match range.start_bound() {
            Bound::Included(first) => Some(first.number()),
            Bound::Excluded(before) => before.number().checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let high = match range.end_bound() {
            Bound::Included(last) => Some(last.number()),
            Bound::Excluded(after) => after.number().checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        Rows { table: self, left: low.zip(high) }
    }

    fn first_from(&self, number: u64) -> Option<&(K, V)> {
        let (wanted, page, bit) = place_of(number);
        let (Ok(at) | Err(at)) = self.find(wanted);
        self.chunks.get(at..)?.iter().find_map(|chunk| {
            if chunk.number == wanted { chunk.first_from(page, bit) } else { chunk.first_from(0, 0) }
        })
    }

    fn last_to(&self, number: u64) -> Option<&(K, V)> {
        let (wanted, page, bit) = place_of(number);
        let end = self.find(wanted).map_or_else(|at| at, |at| at + 1);
        self.chunks.get(..end)?.iter().rev().find_map(|chunk| {
            if chunk.number == wanted {
                chunk.last_to(page, bit)
            } else {
                chunk.last_to(CHUNK_PAGES - 1, PAGE_ROWS - 1)
            }
        })
    }

    /// Inserts a row that the last checkpoint has.
    pub(crate) fn load(&mut self, key: K, value: V) {
        let (chunk, page, bit) = place_of(key.number());
        let Some(chunk) = self.chunk_mut(chunk) else { return };
        let Some(row) = chunk.pages.get_mut(page as usize) else { return };
        chunk.used |= 1 << page;
        self.rows += usize::from(row.put(bit, key, Some(value)).is_none());
    }

    /// Writes a row, or removes it, and notes that for the next checkpoint. Returns the row that was there.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) -> Option<V> {
        let (number, page, bit) = place_of(key.number());
        let is_there = value.is_some();
        if !is_there && self.chunk(number).is_none() {
            return None;
        }
        let chunk = self.chunk_mut(number)?;
        let rows = chunk.pages.get_mut(page as usize)?;
        let before = rows.put(bit, key, value);
        rows.mark(bit, before.is_some());
        let set = |set: u64, on: bool| if on { set | 1 << page } else { set & !(1 << page) };
        chunk.used = set(chunk.used, rows.present != 0);
        chunk.changed = set(chunk.changed, rows.changed != 0);
        let is_done = chunk.used == 0 && chunk.changed == 0;
        match (before.is_some(), is_there) {
            (false, true) => self.rows += 1,
            (true, false) => self.rows = self.rows.saturating_sub(1),
            _ => {}
        }
        if is_done && let Ok(at) = self.find(number) {
            self.chunks.remove(at);
        }
        before
    }

    /// Shows every row that changed since the last call, ascending by number; nothing for one that is to be deleted.
    pub(crate) fn take_changed(&mut self, mut show: impl FnMut(u64, Option<&V>)) {
        for chunk in &mut self.chunks {
            let mut pages = core::mem::take(&mut chunk.changed);
            while pages != 0 {
                let page = pages.trailing_zeros();
                pages &= pages - 1;
                let Some(rows) = chunk.pages.get_mut(page as usize) else { continue };
                let mut changed = core::mem::take(&mut rows.changed);
                while changed != 0 {
                    let bit = changed.trailing_zeros();
                    changed &= changed - 1;
                    let number = chunk.number * CHUNK_ROWS + u64::from(page * PAGE_ROWS + bit);
                    show(number, rows.get(bit).map(|(_, value)| value));
                }
            }
        }
        self.chunks.retain(|chunk| chunk.used != 0);
    }
}

/// Rows of a [`Table`], ascending by number.
#[derive(Clone)]
pub struct Rows<'a, K, V> {
    table: &'a Table<K, V>,
    /// The lowest and the highest number that may still come.
    left: Option<(u64, u64)>,
}

impl<'a, K: Numbered, V> Iterator for Rows<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let (low, high) = self.left.take()?;
        let (key, value) = self.table.first_from(low).filter(|(key, _)| key.number() <= high)?;
        self.left = key.number().checked_add(1).map(|low| (low, high));
        Some((key, value))
    }
}

impl<K: Numbered, V> DoubleEndedIterator for Rows<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let (low, high) = self.left.take()?;
        let (key, value) = self.table.last_to(high).filter(|(key, _)| key.number() >= low)?;
        self.left = key.number().checked_sub(1).map(|high| (low, high));
        Some((key, value))
    }
}

impl<'a, K: Numbered, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Rows<'a, K, V>;

    fn into_iter(self) -> Rows<'a, K, V> {
        self.iter()
    }
}

/// As of a map: there must be a row of this number.
impl<K: Numbered, V> Index<&K> for Table<K, V> {
    type Output = V;

    #[allow(
        clippy::expect_used,
        reason = "an index that is not there is the caller's mistake, as with a map"
    )]
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("there is a row of this number")
    }
}

/// Equality of the rows; which of them await a checkpoint is a replica's own affair.
impl<K: Numbered, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Table<K, V>) -> bool {
        self.rows == other.rows && self.iter().eq(other.iter())
    }
}

impl<K: Numbered + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TaskId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone)]
    enum Step {
        Load(u64, u8),
        Set(u64, u8),
        Remove(u64),
        /// Neighbours, so that whole pages and chunks come and go.
        SetAll(u64, u64),
        RemoveAll(u64, u64),
        Checkpoint,
    }

    /// Numbers around the bounds of pages and chunks, some far away, and the last one.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            6 => 0u64..200,
            3 => CHUNK_ROWS - 40..CHUNK_ROWS + 40,
            2 => 9 * CHUNK_ROWS..9 * CHUNK_ROWS + 70,
            1 => (u64::MAX - 70)..=u64::MAX,
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (number(), any::<u8>()).prop_map(|(number, value)| Step::Load(number, value)),
            6 => (number(), any::<u8>()).prop_map(|(number, value)| Step::Set(number, value)),
            6 => number().prop_map(Step::Remove),
            2 => (number(), 0u64..90).prop_map(|(number, count)| Step::SetAll(number, count)),
            3 => (number(), 0u64..200).prop_map(|(number, count)| Step::RemoveAll(number, count)),
            1 => Just(Step::Checkpoint),
        ]
    }

    /// The same as plain maps.
    #[derive(Default)]
    struct Model {
        rows: BTreeMap<u64, u8>,
        /// Changed rows, and whether the last checkpoint has them.
        changed: BTreeMap<u64, bool>,
    }

    impl Model {
        fn set(&mut self, number: u64, value: Option<u8>) -> Option<u8> {
            let before = match value {
                Some(value) => self.rows.insert(number, value),
                None => self.rows.remove(&number),
            };
            match self.changed.get(&number) {
                Some(false) if value.is_none() => drop(self.changed.remove(&number)),
                None if value.is_some() || before.is_some() => {
                    self.changed.insert(number, before.is_some());
                }
                _ => {}
            }
            before
        }
    }

    fn take(step: &Step, table: &mut Table<TaskId, u8>, model: &mut Model) -> Result<(), TestCaseError> {
        if let Step::Load(number, value) = *step {
            // A checkpoint is loaded before anything is changed.
            if !model.changed.contains_key(&number) {
                table.load(TaskId(number), value);
                model.rows.insert(number, value);
            }
            return Ok(());
        }
        let mut set = |number: u64, value: Option<u8>| {
            prop_assert_eq!(table.set(TaskId(number), value), model.set(number, value));
            Ok(())
        };
        match *step {
            Step::Load(..) => {}
            Step::Set(number, value) => set(number, Some(value))?,
            Step::Remove(number) => set(number, None)?,
            Step::SetAll(first, count) => {
                (first..first.saturating_add(count))
                    .try_for_each(|number| set(number, Some(number as u8)))?;
            }
            Step::RemoveAll(first, count) => {
                (first..first.saturating_add(count)).try_for_each(|number| set(number, None))?;
            }
            Step::Checkpoint => {
                let mut shown = Vec::new();
                table.take_changed(|number, value| shown.push((number, value.copied())));
                let changed = core::mem::take(&mut model.changed);
                let expected: Vec<_> =
                    changed.keys().map(|number| (*number, model.rows.get(number).copied())).collect();
                prop_assert_eq!(shown, expected);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_table_is_a_map_that_knows_what_changed(
            steps in proptest::collection::vec(step(), 0..120),
            bounds in proptest::collection::vec((number(), number()), 8),
            turns in proptest::collection::vec(any::<bool>(), 400),
        ) {
            let (mut table, mut model) = (Table::default(), Model::default());
            for step in steps.iter().chain([&Step::Checkpoint, &Step::Checkpoint]) {
                take(step, &mut table, &mut model)?;
                prop_assert_eq!(table.len(), model.rows.len());
                let empty = table.chunks.iter().filter(|chunk| chunk.used == 0 && chunk.changed == 0);
                prop_assert_eq!(empty.count(), 0, "what is empty is not kept");
            }
            prop_assert!(table.iter().map(|(key, value)| (key.0, *value)).eq(model.rows.clone()));
            prop_assert!(table.iter().rev().map(|(key, value)| (key.0, *value)).eq(model.rows.clone().into_iter().rev()));
            for (low, high) in bounds {
                let (first, last) = (TaskId(low), TaskId(high));
                prop_assert_eq!(table.get(&first), model.rows.get(&low));
                prop_assert!(table.range(..=last).map(|(key, _)| key.0).eq(model.rows.range(..=high).map(|row| *row.0)));
                prop_assert!(table.range(first..).map(|(key, _)| key.0).eq(model.rows.range(low..).map(|row| *row.0)));
                if low > high {
                    prop_assert_eq!(table.range(first..last).count(), 0);
                    continue;
                }
                // From both ends, in any order, until they meet.
                let (mut ours, mut plain) = (table.range(first..last), model.rows.range(low..high));
                for front in &turns {
                    let (ours, plain) =
                        if *front { (ours.next(), plain.next()) } else { (ours.next_back(), plain.next_back()) };
                    prop_assert_eq!(ours.map(|(key, value)| (&key.0, value)), plain);
                }
            }
        }
    }

    #[test]
    fn rows_that_came_and_went_leave_nothing_behind() {
        let mut table = Table::default();
        for number in 0..10 * CHUNK_ROWS {
            table.set(TaskId(number), Some(number));
            if let Some(gone) = number.checked_sub(5) {
                table.set(TaskId(gone), None);
            }
        }
        assert_eq!((table.len(), table.chunks.len()), (5, 1));
    }
}
