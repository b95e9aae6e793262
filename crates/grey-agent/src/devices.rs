//! Which devices of a worker are free, by number.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::Devices;

/// The free ones of each kind, numbered from zero.
#[derive(Debug)]
pub(crate) struct FreeDevices {
    free: BTreeMap<String, BTreeSet<u32>>,
    counts: BTreeMap<String, u32>,
}

impl FreeDevices {
    /// All of them.
    pub(crate) fn new(devices: &[Devices]) -> FreeDevices {
        FreeDevices {
            free: devices.iter().map(|kind| (kind.name.clone(), (0..kind.count).collect())).collect(),
            counts: devices.iter().map(|kind| (kind.name.clone(), kind.count)).collect(),
        }
    }

    /// Whether there are so many.
    pub(crate) fn has(&self, needed: &[Devices]) -> bool {
        needed
            .iter()
            .all(|kind| self.free.get(&kind.name).is_some_and(|free| free.len() >= kind.count as usize))
    }

    /// Takes the lowest of each kind.
    pub(crate) fn take(&mut self, needed: &[Devices]) -> Vec<(String, Vec<u32>)> {
        let mut taken = Vec::with_capacity(needed.len());
        for kind in needed {
            let Some(free) = self.free.get_mut(&kind.name) else { continue };
            let numbers: Vec<u32> = (0..kind.count).map_while(|_| free.pop_first()).collect();
            taken.push((kind.name.clone(), numbers));
        }
        taken
    }

    /// Takes what an attempt has already, as far as there is such a device.
    pub(crate) fn take_these(&mut self, devices: &[(String, Vec<u32>)]) {
        for (name, numbers) in devices {
            if let Some(free) = self.free.get_mut(name) {
                free.retain(|number| !numbers.contains(number));
            }
        }
    }

    /// Makes devices free again; one that there is no longer, since the worker was given less, is none.
    pub(crate) fn give_back(&mut self, devices: &[(String, Vec<u32>)]) {
        for (name, numbers) in devices {
            let count = self.counts.get(name).copied().unwrap_or(0);
            if let Some(free) = self.free.get_mut(name) {
                free.extend(numbers.iter().filter(|number| **number < count));
            }
        }
    }
}
