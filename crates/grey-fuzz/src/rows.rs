//! Rows of a checkpoint: whatever they say, they are a state that holds its invariants and goes on, or are refused.

use std::collections::BTreeMap;

use grey_core::{Command, Entry, State};

use crate::bytes::Bytes;
use crate::commands::{applied, busy, next};
use crate::identities::enrolled;
use crate::mutate::variable;

/// What a fuzzer changes: which row, and what its value becomes.
pub(crate) fn load(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let state = if bytes.chance(4) { enrolled() } else { busy() };
    let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = state.all_rows().into_iter().collect();
    let keys: Vec<Vec<u8>> = rows.keys().cloned().collect();
    let changes = bytes.below(4);
    for _ in 0..changes {
        // A table first: of live tasks there are many rows, of the others few.
        let table = bytes.byte() % 13;
        let of_table: Vec<&Vec<u8>> = keys.iter().filter(|key| key.first() == Some(&table)).collect();
        let Some(key) = bytes.pick(&of_table) else { continue };
        match bytes.below(8) {
            0 => drop(rows.remove(key)),
            1 => {
                let to = [key.get(..1).unwrap_or_default(), bytes.slice(12)].concat();
                if let Some(value) = rows.remove(key) {
                    rows.insert(to, value);
                }
            }
            2 => drop(rows.insert(key.clone(), bytes.slice(255).to_vec())),
            3 | 4 => {
                let Some(value) = rows.get_mut(key) else { continue };
                let at = usize::from(bytes.byte()) % (value.len() + 1);
                let end = (at + usize::from(bytes.below(3))).min(value.len());
                let anchor = u64::from(value.get(at).copied().unwrap_or(0));
                value.splice(at..end, variable(bytes.near(anchor)));
            }
            _ => {
                let Some(value) = rows.get_mut(key) else { continue };
                let at = usize::from(bytes.byte()) % (value.len() + 1);
                let taken = usize::from(bytes.below(12));
                let end = (at + taken).min(value.len());
                value.splice(at..end, bytes.slice(12).to_vec());
            }
        }
    }
    let loaded = State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
    let Ok(mut state) = loaded else { return };
    state.check().expect("what was loaded holds its invariants");
    // What was taken for a state goes on like any other.
    if state.applied_index() > (1 << 52) {
        return;
    }
    for _ in 0..6 {
        let Ok(entry) = next(&state, &mut bytes).encode() else { continue };
        applied(&mut state, 3, &entry);
    }
    let placed =
        Entry { time_ms: state.meta().time_ms, command: Command::Plan(grey_core::plan(&state, 100)) };
    if let Ok(bytes) = placed.encode() {
        applied(&mut state, 3, &bytes);
    }
}

pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let mut random = crate::Random::seeded(15);
    // Each table's first row with a number in its beginning changed.
    let mut corpus: Vec<Vec<u8>> =
        (0..12).map(|table| [vec![0, 1, table, 0, 3, table, 1, 0, 2], random.bytes(30)].concat()).collect();
    corpus.extend((0..6).map(|row| [vec![1, 1, 12, row, 3, row, 1, 0, 2], random.bytes(30)].concat()));
    corpus.extend((0..6).map(|_| random.bytes(120)));
    corpus
}
