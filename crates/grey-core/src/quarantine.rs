//! What a worker's trouble costs it: the policy of quarantine, as a pure function.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::rejection::Rejection;

/// What the policy goes by; the same for the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineOptions {
    /// The first quarantine, in milliseconds; the n-th lasts n times as long; 1 to `longest_ms`.
    pub first_ms: u64,
    /// The longest quarantine, in milliseconds; 1 to [`limits::QUARANTINE_MS`].
    pub longest_ms: u64,
    /// After so long without another one a worker's quarantines are forgotten, in milliseconds from the end of the last; `longest_ms` to
    /// [`limits::QUARANTINE_FORGET_MS`].
    pub forget_after_ms: u64,
    /// Slots of a worker on probation; 1 to [`limits::WORKER_SLOTS`].
    pub probation_slots: u32,
    /// Attempts that have to succeed on probation; 1 to [`limits::WORKER_SLOTS`].
    pub probation_successes: u32,
    /// The most workers in quarantine at once, in thousandths of all; one may always be. 0 to 1,000.
    pub at_most_permille: u32,
}

impl Default for QuarantineOptions {
    fn default() -> QuarantineOptions {
        QuarantineOptions {
            first_ms: 30_000,
            longest_ms: 30 * 60 * 1_000,
            forget_after_ms: 24 * 3_600 * 1_000,
            probation_slots: 2,
            probation_successes: 5,
            at_most_permille: 100,
        }
    }
}

impl QuarantineOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// A [`Rejection::OutOfBounds`] for each that is wrong; its limit is the bound that is broken.
    pub fn validate(&self) -> Result<(), Vec<Rejection>> {
        let slots = 1..=u64::from(limits::WORKER_SLOTS);
        let bounds = [
            ("first_ms", self.first_ms, 1..=self.longest_ms),
            ("longest_ms", self.longest_ms, 1..=limits::QUARANTINE_MS),
            ("forget_after_ms", self.forget_after_ms, self.longest_ms..=limits::QUARANTINE_FORGET_MS),
            ("probation_slots", self.probation_slots.into(), slots.clone()),
            ("probation_successes", self.probation_successes.into(), slots),
            ("at_most_permille", self.at_most_permille.into(), 0..=1_000),
        ];
        let wrong: Vec<Rejection> = bounds
            .into_iter()
            .filter(|(_, given, bounds)| !bounds.contains(given))
            .map(|(field, given, bounds)| {
                let small = given < *bounds.start();
                Rejection::OutOfBounds {
                    field: field.to_owned(),
                    problem: if small { "is too small" } else { "is too large" }.to_owned(),
                    limit: if small { *bounds.start() } else { *bounds.end() },
                }
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Whether another worker may go into quarantine when so many of so many are there: a tenth of the workers, but always one. If more
    /// are in trouble at once, the cause is likely not theirs, and to shut them out would only make it worse.
    pub fn has_room(&self, quarantined: u64, workers: u64) -> bool {
        let most = u128::from(workers) * u128::from(self.at_most_permille) / 1_000;
        u128::from(quarantined) < most.max(1)
    }

    fn length_ms(&self, times: u32) -> u64 {
        self.first_ms.saturating_mul(times.into()).min(self.longest_ms)
    }
}

/// How a worker stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It gets work.
    #[default]
    Active,
    /// It may be dead: it gets no new work.
    Suspect {
        /// Whether it was on probation, and has to begin that anew when it is heard again.
        on_probation: bool,
    },
    /// It gets no work for a while.
    Quarantined {
        /// The end, in cluster milliseconds.
        until_ms: u64,
        /// Whether it has been suspect and was not heard since: then it is suspect again at the end.
        silent: bool,
    },
    /// It gets a little work, to show that it can do it.
    Probation {
        /// Attempts that have succeeded since.
        successes: u32,
    },
}

impl Standing {
    /// The name in listings.
    pub fn name(&self) -> &'static str {
        match self {
            Standing::Active => "active",
            Standing::Suspect { .. } => "suspect",
            Standing::Quarantined { .. } => "quarantined",
            Standing::Probation { .. } => "probation",
        }
    }
}

/// What happened to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthEvent {
    /// A failure detector suspects it.
    Suspected,
    /// It was heard again.
    Heard,
    /// It was lost, or its circuit breaker has opened: a reason for quarantine.
    Failed,
    /// One of its attempts has succeeded.
    Succeeded,
    /// Cluster time has moved on.
    Passed,
    /// An operator has released it.
    Released,
    /// An operator has ordered a quarantine, which no bound on how many there are holds up.
    Ordered,
}

/// What an event led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consequence {
    /// The standing is what it was, but for the successes of a probation and the silence in a quarantine.
    None,
    /// The standing is another one.
    Changed,
    /// It belongs in quarantine, but too many are there already: tell the operator. A probation begins anew, otherwise the standing is
    /// what it was.
    Alert,
}

/// A worker's standing and its history, as a row of the state.
///
/// ```text
/// Active ⇄ Suspect            suspected, heard again
/// Active | Suspect | Probation → Quarantined      failed; the n-th time for n × 30 s, capped
/// Quarantined → Probation     when its time is over; Suspect while it is not heard
/// Probation → Active          after some successes
/// Quarantined | Probation → Active   released by an operator; Suspect while it is not heard
/// ```
///
/// Time is that of the cluster, in milliseconds, so every replica finds the same.
///
/// ```
/// use grey_core::{HealthEvent, Quarantine, QuarantineOptions, Standing};
///
/// let options = QuarantineOptions::default();
/// let room = options.has_room(0, 3);
/// let (worker, _) = Quarantine::default().after(HealthEvent::Failed, 1_000, room, &options);
/// assert_eq!(worker.standing, Standing::Quarantined { until_ms: 31_000, silent: false });
/// let (worker, _) = worker.after(HealthEvent::Passed, 31_000, room, &options);
/// assert_eq!(worker.slots(16, &options), 2);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// How it stands.
    pub standing: Standing,
    /// How often it was in quarantine, as far as that is remembered.
    pub times: u32,
    /// When the last quarantine ended or is to end, in cluster milliseconds; 0 without one.
    pub last_until_ms: u64,
}

impl Quarantine {
    /// The row after an event at a time, and what it led to. `room` says whether another worker may go into quarantine
    /// ([`QuarantineOptions::has_room`]). A quarantine whose time is over ends before the event is looked at.
    pub fn after(
        self,
        event: HealthEvent,
        now_ms: u64,
        room: bool,
        options: &QuarantineOptions,
    ) -> (Quarantine, Consequence) {
        let row = self.passed(now_ms, options);
        let (next, alert) = match event {
            HealthEvent::Passed => (row, false),
            HealthEvent::Suspected => (row.stands(row.suspected()), false),
            HealthEvent::Heard => (row.stands(row.heard()), false),
            HealthEvent::Succeeded => (row.stands(row.succeeded(options)), false),
            HealthEvent::Released => (row.released(), false),
            HealthEvent::Failed => row.failed(now_ms, room, options),
            HealthEvent::Ordered => row.failed(now_ms, true, options),
        };
        let consequence = match (self.standing, next.standing) {
            _ if alert => Consequence::Alert,
            (Standing::Probation { .. }, Standing::Probation { .. })
            | (Standing::Quarantined { .. }, Standing::Quarantined { .. }) => Consequence::None,
            (before, after) if before == after => Consequence::None,
            _ => Consequence::Changed,
        };
        (next, consequence)
    }

    /// How many of a worker's slots may hold attempts.
    pub fn slots(&self, slots: u32, options: &QuarantineOptions) -> u32 {
        match self.standing {
            Standing::Active => slots,
            Standing::Probation { .. } => slots.min(options.probation_slots),
            Standing::Suspect { .. } | Standing::Quarantined { .. } => 0,
        }
    }

    /// When [`HealthEvent::Passed`] is due, in cluster milliseconds.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.standing {
            Standing::Quarantined { until_ms, .. } => Some(until_ms),
            _ => None,
        }
    }

    fn stands(self, standing: Standing) -> Quarantine {
        Quarantine { standing, ..self }
    }

    fn passed(self, now_ms: u64, options: &QuarantineOptions) -> Quarantine {
        let standing = match self.standing {
            Standing::Quarantined { until_ms, silent } if until_ms <= now_ms => {
                if silent {
                    Standing::Suspect { on_probation: true }
                } else {
                    Standing::Probation { successes: 0 }
                }
            }
            other => other,
        };
        let forgotten = now_ms.saturating_sub(self.last_until_ms) >= options.forget_after_ms;
        if forgotten && standing == Standing::Active { Quarantine::default() } else { self.stands(standing) }
    }

    fn suspected(&self) -> Standing {
        match self.standing {
            Standing::Active => Standing::Suspect { on_probation: false },
            Standing::Probation { .. } => Standing::Suspect { on_probation: true },
            Standing::Quarantined { until_ms, .. } => Standing::Quarantined { until_ms, silent: true },
            other => other,
        }
    }

    fn heard(&self) -> Standing {
        match self.standing {
            Standing::Suspect { on_probation: false } => Standing::Active,
            Standing::Suspect { on_probation: true } => Standing::Probation { successes: 0 },
            Standing::Quarantined { until_ms, .. } => Standing::Quarantined { until_ms, silent: false },
            other => other,
        }
    }

    fn succeeded(&self, options: &QuarantineOptions) -> Standing {
        match self.standing {
            Standing::Probation { successes }
                if successes.saturating_add(1) >= options.probation_successes =>
            {
                Standing::Active
            }
            Standing::Probation { successes } => Standing::Probation { successes: successes + 1 },
            other => other,
        }
    }

    /// As if nothing had been, but that who is not heard is not heard.
    fn released(&self) -> Quarantine {
        let silent =
            matches!(self.standing, Standing::Suspect { .. } | Standing::Quarantined { silent: true, .. });
        let standing = if silent { Standing::Suspect { on_probation: false } } else { Standing::Active };
        Quarantine { standing, ..Quarantine::default() }
    }

    /// The row after a reason for quarantine, and whether there was no room for it.
    fn failed(self, now_ms: u64, room: bool, options: &QuarantineOptions) -> (Quarantine, bool) {
        match self.standing {
            Standing::Quarantined { .. } => (self, false),
            _ if room => {
                let times = self.times.saturating_add(1);
                let until_ms = now_ms.saturating_add(options.length_ms(times));
                let silent = matches!(self.standing, Standing::Suspect { .. });
                let standing = Standing::Quarantined { until_ms, silent };
                (Quarantine { standing, times, last_until_ms: until_ms }, false)
            }
            Standing::Probation { .. } => (self.stands(Standing::Probation { successes: 0 }), true),
            Standing::Active | Standing::Suspect { .. } => (self, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthEvent::{Failed, Heard, Ordered, Passed, Released, Succeeded, Suspected};
    use Standing::{Active, Probation, Quarantined, Suspect};

    fn row(standing: Standing) -> Quarantine {
        Quarantine { standing, times: 1, last_until_ms: 30_000 }
    }

    #[test]
    fn every_event_in_every_standing_leads_where_the_table_says() {
        let suspect = Suspect { on_probation: false };
        let suspect_again = Suspect { on_probation: true };
        let quarantined = Quarantined { until_ms: 30_000, silent: false };
        let silent = Quarantined { until_ms: 30_000, silent: true };
        let second = Quarantined { until_ms: 20_000 + 60_000, silent: false };
        let second_silent = Quarantined { until_ms: 20_000 + 60_000, silent: true };
        let on_probation = Probation { successes: 3 };
        let anew = Probation { successes: 0 };
        let table = [
            (Active, [suspect, Active, second, Active, Active, Active]),
            (suspect, [suspect, Active, second_silent, suspect, suspect, suspect]),
            (suspect_again, [suspect_again, anew, second_silent, suspect_again, suspect_again, suspect]),
            (quarantined, [silent, quarantined, quarantined, quarantined, quarantined, Active]),
            (silent, [silent, quarantined, silent, silent, silent, suspect]),
            (
                on_probation,
                [suspect_again, on_probation, second, Probation { successes: 4 }, on_probation, Active],
            ),
        ];
        let events = [Suspected, Heard, Failed, Succeeded, Passed, Released];
        for (before, expected) in table {
            for (event, expected) in events.into_iter().zip(expected) {
                let (after, _) = row(before).after(event, 20_000, true, &QuarantineOptions::default());
                assert_eq!(after.standing, expected, "{event:?} while {before:?}");
            }
            // An order has its way whatever room there is, and there is room for a failure here.
            let [_, _, failed, ..] = expected;
            let (after, consequence) =
                row(before).after(Ordered, 20_000, false, &QuarantineOptions::default());
            assert_eq!(after.standing, failed, "ordered while {before:?}");
            assert_ne!(consequence, Consequence::Alert);
        }
    }

    #[test]
    fn a_quarantine_is_followed_by_a_probation_that_has_to_be_passed() {
        let options = QuarantineOptions::default();
        let (mut worker, consequence) = Quarantine::default().after(Failed, 0, true, &options);
        assert_eq!((worker.slots(16, &options), consequence), (0, Consequence::Changed));
        assert_eq!(worker.deadline_ms(), Some(30_000));
        assert_eq!(worker.after(Passed, 29_999, true, &options), (worker, Consequence::None));
        worker = worker.after(Passed, 30_000, true, &options).0;
        assert_eq!((worker.slots(16, &options), worker.slots(1, &options)), (2, 1));
        for _ in 0..4 {
            let (next, consequence) = worker.after(Succeeded, 40_000, true, &options);
            assert_eq!(consequence, Consequence::None);
            worker = next;
        }
        let (worker, consequence) = worker.after(Succeeded, 40_000, true, &options);
        assert_eq!((worker.standing, consequence), (Active, Consequence::Changed));
        assert_eq!(worker.slots(16, &options), 16);
    }

    #[test]
    fn who_is_silent_in_quarantine_gets_no_work_after_it_until_it_is_heard() {
        let options = QuarantineOptions::default();
        let worker =
            Quarantine::default().after(Suspected, 0, true, &options).0.after(Failed, 0, true, &options).0;
        let (worker, consequence) = worker.after(Passed, 30_000, true, &options);
        assert_eq!((worker.standing, consequence), (Suspect { on_probation: true }, Consequence::Changed));
        assert_eq!(worker.slots(16, &options), 0);
        let worker = worker.after(Heard, 90_000, true, &options).0;
        assert_eq!(worker.standing, Probation { successes: 0 });
    }

    #[test]
    fn it_lasts_longer_each_time_up_to_its_cap_and_is_forgotten_at_last() {
        let options = QuarantineOptions { longest_ms: 100_000, ..QuarantineOptions::default() };
        let mut worker = Quarantine::default();
        let mut now_ms = 0;
        for length_ms in [30_000, 60_000, 90_000, 100_000, 100_000] {
            worker = worker.after(Failed, now_ms, true, &options).0;
            assert_eq!(worker.deadline_ms(), Some(now_ms + length_ms));
            now_ms += length_ms + 5;
        }
        for _ in 0..5 {
            worker = worker.after(Succeeded, now_ms, true, &options).0;
        }
        now_ms += options.forget_after_ms;
        worker = worker.after(Failed, now_ms, true, &options).0;
        assert_eq!((worker.deadline_ms(), worker.times), (Some(now_ms + 30_000), 1));
    }

    #[test]
    fn a_tenth_of_the_workers_but_always_one_may_be_in_quarantine() {
        let options = QuarantineOptions::default();
        let cases =
            [(0, 0, true), (0, 1, true), (1, 5, false), (1, 19, false), (1, 20, true), (2, 20, false)];
        for (quarantined, workers, room) in cases {
            assert_eq!(options.has_room(quarantined, workers), room, "{quarantined} of {workers}");
        }
    }

    #[test]
    fn beyond_that_an_alert_takes_the_place_of_a_quarantine() {
        let options = QuarantineOptions::default();
        let cases = [
            (Active, Active),
            (Suspect { on_probation: false }, Suspect { on_probation: false }),
            (Probation { successes: 4 }, Probation { successes: 0 }),
        ];
        for (before, after) in cases {
            let expected = (row(after), Consequence::Alert);
            assert_eq!(row(before).after(Failed, 20_000, false, &options), expected);
        }
        let quarantined = row(Quarantined { until_ms: 30_000, silent: false });
        let expected = (quarantined, Consequence::None);
        assert_eq!(quarantined.after(Failed, 20_000, false, &options), expected, "it is there already");
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        QuarantineOptions::default().validate().unwrap();
        let wrong = QuarantineOptions {
            first_ms: 0,
            longest_ms: limits::QUARANTINE_MS + 1,
            probation_slots: 0,
            at_most_permille: 1_001,
            ..QuarantineOptions::default()
        };
        assert_eq!(wrong.validate().unwrap_err().len(), 5, "forgetting would come before the end, too");
    }
}
