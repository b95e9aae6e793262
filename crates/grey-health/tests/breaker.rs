//! The circuit breaker against a plainly written model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_health::{BreakerOptions, BreakerState, Call, CallOutcome, Chance, CircuitBreaker};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Admit,
    /// Answers one of the calls under way.
    Answer(usize, CallOutcome),
    /// Its caller forgets it.
    Lose(usize),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(CallOutcome::Failed),
        4 => Just(CallOutcome::Succeeded),
        1 => Just(CallOutcome::Refused),
    ];
    let step = prop_oneof![
        3 => (0u64..30).prop_map(Step::Wait),
        8 => Just(Step::Admit),
        8 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::Answer(which, outcome)),
        1 => any::<usize>().prop_map(Step::Lose),
        2 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..300)
}

fn options() -> BreakerOptions {
    BreakerOptions {
        window: 6,
        least_calls: 4,
        failed_permille: 500,
        open_ms: 50,
        jitter_ms: 0,
        probes: 2,
        probe_timeout_ms: 40,
        successes: 3,
    }
}

/// The model moves by single milliseconds and keeps one list of calls: which life they belong to, since when they are under
/// way, what came of them.
#[derive(Default)]
struct Model {
    now_ms: u64,
    /// Rises with every change of the state; a call counts in the life in which it began.
    life: u64,
    state: u8,
    until_ms: u64,
    calls: Vec<(u64, u64, Option<CallOutcome>)>,
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

impl Model {
    fn become_(&mut self, state: u8) {
        self.life += 1;
        self.state = state;
        self.until_ms = self.now_ms + 50;
    }

    fn of_this_life(&self) -> impl DoubleEndedIterator<Item = &(u64, u64, Option<CallOutcome>)> {
        self.calls.iter().filter(|call| call.0 == self.life)
    }

    fn wait(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ms += 1;
            let lost =
                |call: &(u64, u64, Option<CallOutcome>)| call.2.is_none() && self.now_ms - call.1 >= 40;
            if self.state == HALF_OPEN && self.of_this_life().any(lost) {
                self.become_(OPEN);
            }
            if self.state == OPEN && self.now_ms >= self.until_ms {
                self.become_(HALF_OPEN);
            }
        }
    }

    fn admits(&self) -> bool {
        let under_way = self.of_this_life().filter(|call| call.2.is_none()).count();
        self.state == CLOSED || (self.state == HALF_OPEN && under_way < 2)
    }

    fn answer(&mut self, which: usize, outcome: CallOutcome, order: &mut Vec<usize>) {
        self.calls[which].2 = Some(outcome);
        if self.calls[which].0 != self.life || outcome == CallOutcome::Refused {
            return;
        }
        // The order in which calls were answered is the order of the window.
        order.push(which);
        let answered: Vec<bool> = order
            .iter()
            .filter(|which| self.calls[**which].0 == self.life)
            .map(|which| self.calls[*which].2 == Some(CallOutcome::Failed))
            .collect();
        if self.state == CLOSED {
            let window = &answered[answered.len().saturating_sub(6)..];
            let failed = window.iter().filter(|failed| **failed).count();
            if outcome == CallOutcome::Failed && window.len() >= 4 && failed * 2 >= window.len() {
                self.become_(OPEN);
            }
        } else if answered.iter().any(|failed| *failed) {
            self.become_(OPEN);
        } else if answered.len() >= 3 {
            self.become_(CLOSED);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn it_does_what_a_model_of_single_milliseconds_does(steps in steps()) {
        let mut breaker = CircuitBreaker::new(options(), Chance::seeded(1)).unwrap();
        let mut model = Model::default();
        let mut order = Vec::new();
        let mut under_way: Vec<(usize, Call)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(ms) => model.wait(ms),
                Step::Admit => {
                    let admitted = breaker.admit(model.now_ms);
                    prop_assert_eq!(admitted.is_ok(), model.admits());
                    match admitted {
                        Ok(call) => {
                            under_way.push((model.calls.len(), call));
                            model.calls.push((model.life, model.now_ms, None));
                        }
                        Err(refused) => prop_assert!(refused.retry_after_ms >= 1),
                    }
                }
                Step::Answer(which, outcome) if !under_way.is_empty() => {
                    let (which, call) = under_way.remove(which % under_way.len());
                    breaker.record(call, outcome, model.now_ms);
                    model.answer(which, outcome, &mut order);
                }
                Step::Lose(which) if !under_way.is_empty() => {
                    drop(under_way.remove(which % under_way.len()));
                }
                Step::Look => {
                    let state = match breaker.state(model.now_ms) {
                        BreakerState::Closed => CLOSED,
                        BreakerState::Open { until_ms } => {
                            prop_assert_eq!(until_ms, model.until_ms);
                            OPEN
                        }
                        BreakerState::HalfOpen => HALF_OPEN,
                    };
                    prop_assert_eq!(state, model.state);
                }
                Step::Answer(..) | Step::Lose(_) => {}
            }
        }
    }
}
