//! Room for messages of three classes, two of which have room of their own.

use crate::options::Checks;

/// What a message is, as far as room for it is concerned. The order is the one in which they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A sign of life. If it waited behind work, load would look like death.
    Heartbeat,
    /// A completion or a cancel: it ends work, so it frees more than it takes.
    Ending,
    /// Everything else.
    Other,
}

impl Class {
    /// All of them, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Heartbeat, Class::Ending, Class::Other];
}

/// A number of messages and their bytes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Bytes of all.
    pub bytes: u64,
}

impl Amount {
    pub(crate) fn one(bytes: u64) -> Amount {
        Amount { count: 1, bytes }
    }

    pub(crate) fn plus(self, other: Amount) -> Amount {
        Amount {
            count: self.count.saturating_add(other.count),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    pub(crate) fn minus(self, other: Amount) -> Amount {
        Amount {
            count: self.count.saturating_sub(other.count),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    pub(crate) fn at_most(self, other: Amount) -> Amount {
        Amount { count: self.count.min(other.count), bytes: self.bytes.min(other.bytes) }
    }
}

/// One of something for each class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PerClass<T> {
    heartbeat: T,
    ending: T,
    other: T,
}

impl<T> PerClass<T> {
    pub(crate) fn of(&self, class: Class) -> &T {
        match class {
            Class::Heartbeat => &self.heartbeat,
            Class::Ending => &self.ending,
            Class::Other => &self.other,
        }
    }

    pub(crate) fn of_mut(&mut self, class: Class) -> &mut T {
        match class {
            Class::Heartbeat => &mut self.heartbeat,
            Class::Ending => &mut self.ending,
            Class::Other => &mut self.other,
        }
    }
}

/// How much room there is: some of each class's own, and some that all of them share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityOptions {
    /// For heartbeats only; each at least 1.
    pub heartbeats: Amount,
    /// For completions and cancels only; each at least 1.
    pub endings: Amount,
    /// For whatever comes; each at least 1.
    pub shared: Amount,
}

impl CapacityOptions {
    pub(crate) fn check(&self, checks: &mut Checks, names: [(&'static str, &'static str); 3]) {
        // Sums of three stay far from the end of their integers.
        const MOST: u64 = 1 << 48;
        for (amount, (count, bytes)) in [self.heartbeats, self.endings, self.shared].iter().zip(names) {
            checks.within(count, amount.count, 1..=MOST);
            checks.within(bytes, amount.bytes, 1..=MOST);
        }
    }
}

/// Of what there is too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    Count,
    Bytes,
}

/// What is used of a capacity. A class uses its own room first; what goes beyond that takes from the shared room, so that no
/// class can take another's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    reserved: PerClass<Amount>,
    pub(crate) shared: Amount,
    used: PerClass<Amount>,
}

impl Capacity {
    pub(crate) fn new(options: &CapacityOptions) -> Capacity {
        let reserved =
            PerClass { heartbeat: options.heartbeats, ending: options.endings, other: Amount::default() };
        Capacity { reserved, shared: options.shared, used: PerClass::default() }
    }

    /// What is used of the shared room.
    pub(crate) fn shared_used(&self) -> Amount {
        Class::ALL
            .iter()
            .fold(Amount::default(), |sum, class| sum.plus(self.beyond_own(*class, Amount::default())))
    }

    fn beyond_own(&self, class: Class, more: Amount) -> Amount {
        self.used.of(class).plus(more).minus(*self.reserved.of(class))
    }

    /// Whether there is room for another message of a class.
    pub(crate) fn fits(&self, class: Class, bytes: u64) -> Result<(), Short> {
        let before = self.beyond_own(class, Amount::default());
        let wanted = self.beyond_own(class, Amount::one(bytes)).minus(before);
        let used = self.shared_used();
        // What takes nothing of the shared room fits even if that was made smaller than what is used of it.
        if wanted.count > 0 && used.count.saturating_add(wanted.count) > self.shared.count {
            Err(Short::Count)
        } else if wanted.bytes > 0 && used.bytes.saturating_add(wanted.bytes) > self.shared.bytes {
            Err(Short::Bytes)
        } else {
            Ok(())
        }
    }

    pub(crate) fn take(&mut self, class: Class, bytes: u64) {
        let used = self.used.of_mut(class);
        *used = used.plus(Amount::one(bytes));
    }

    pub(crate) fn give_back(&mut self, class: Class, bytes: u64) {
        let used = self.used.of_mut(class);
        *used = used.minus(Amount::one(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_class_takes_another_s_own_room() {
        let options = CapacityOptions {
            heartbeats: Amount { count: 1, bytes: 10 },
            endings: Amount { count: 2, bytes: 20 },
            shared: Amount { count: 3, bytes: 30 },
        };
        // What each class can take at most, whichever class was there first.
        for first in Class::ALL {
            let mut capacity = Capacity::new(&options);
            let mut fill = |class: Class| {
                let mut taken = 0;
                while capacity.fits(class, 10).is_ok() {
                    capacity.take(class, 10);
                    taken += 1;
                }
                taken
            };
            let own = |class: Class| match class {
                Class::Heartbeat => 1,
                Class::Ending => 2,
                Class::Other => 0,
            };
            assert_eq!(fill(first), own(first) + 3);
            for class in Class::ALL.into_iter().filter(|class| *class != first) {
                assert_eq!(fill(class), own(class), "{class:?} after {first:?}");
            }
            for class in Class::ALL {
                assert_eq!(capacity.fits(class, 10), Err(Short::Count));
            }
            capacity.give_back(first, 10);
            assert_eq!(capacity.fits(first, 11), Err(Short::Bytes));
            assert_eq!(capacity.fits(first, 10), Ok(()));
        }
    }
}
