//! Which devices of a worker are free, by number.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::Devices;

/// The free ones of each kind, numbered from zero.
#[derive(Debug)]
pub(crate) struct FreeDevices(BTreeMap<String, BTreeSet<u32>>);

impl FreeDevices {
    /// All of them.
    pub(crate) fn new(devices: &[Devices]) -> FreeDevices {
        FreeDevices(devices.iter().map(|kind| (kind.name.clone(), (0..kind.count).collect())).collect())
    }

    /// Whether there are so many.
    pub(crate) fn has(&self, needed: &[Devices]) -> bool {
        needed.iter().all(|kind| self.0.get(&kind.name).is_some_and(|free| free.len() >= kind.count as usize))
    }

    /// Takes the lowest of each kind.
    pub(crate) fn take(&mut self, needed: &[Devices]) -> Vec<(String, Vec<u32>)> {
        let mut taken = Vec::with_capacity(needed.len());
        for kind in needed {
            let Some(free) = self.0.get_mut(&kind.name) else { continue };
            let numbers: Vec<u32> = (0..kind.count).map_while(|_| free.pop_first()).collect();
            taken.push((kind.name.clone(), numbers));
        }
        taken
    }

    /// Makes devices free again.
    pub(crate) fn give_back(&mut self, devices: &[(String, Vec<u32>)]) {
        for (name, numbers) in devices {
            if let Some(free) = self.0.get_mut(name) {
                free.extend(numbers);
            }
        }
    }
}
