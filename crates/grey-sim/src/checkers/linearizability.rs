//! Whether a history is as if every operation had happened at one moment between its question and its answer.
//!
//! The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memory of where it was ("Testing for
//! linearizability", 2017). An operation without an answer may happen at any time after its question, or never. The search has a bound of
//! steps, so that it answers, and always the same: beyond it nothing is known.

use std::collections::BTreeSet;

/// What operations do to what they act on.
pub trait Model {
    /// What it is like.
    type State: Clone + Ord;

    /// What it is like afterwards, where the operation could have had its answer.
    fn step(&self, before: &Self::State) -> Option<Self::State>;
}

/// An operation between its question and its answer, by the order in which those happened.
#[derive(Debug, Clone)]
pub struct Call<O> {
    /// When it was asked.
    pub asked: u64,
    /// When it was answered; absent where that is unknown.
    pub answered: Option<u64>,
    /// What it was, with its answer.
    pub operation: O,
}

/// What the search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    NotLinearizable,
    /// None was found within the bound.
    Unknown,
}

/// Looks for an order of the calls, from `initial` on, in at most so many steps.
pub fn check<O: Model>(initial: &O::State, calls: &[Call<O>], most_steps: u32) -> Verdict {
    let words = calls.len().div_ceil(64);
    let has =
        |done: &[u64], call: usize| done.get(call / 64).is_some_and(|word| word >> (call % 64) & 1 == 1);
    let mut seen = BTreeSet::new();
    let mut open = vec![(vec![0u64; words], initial.clone())];
    let mut steps = 0;
    while let Some((done, state)) = open.pop() {
        let left = || calls.iter().enumerate().filter(|(call, _)| !has(&done, *call));
        // Whatever was asked after another one had been answered comes after it.
        let Some(first_answer) = left().filter_map(|(_, call)| call.answered).min() else {
            return Verdict::Linearizable;
        };
        let mut next: Vec<(u64, usize)> = left()
            .filter(|(_, call)| call.asked < first_answer)
            .map(|(place, call)| (call.answered.unwrap_or(u64::MAX), place))
            .collect();
        // The one that was answered first is tried first, which is the last one on the stack.
        next.sort_unstable_by(|one, other| other.cmp(one));
        for (_, place) in next {
            steps += 1;
            if steps > most_steps {
                return Verdict::Unknown;
            }
            let Some(after) = calls.get(place).and_then(|call| call.operation.step(&state)) else { continue };
            let mut done = done.clone();
            done.get_mut(place / 64).into_iter().for_each(|word| *word |= 1 << (place % 64));
            if seen.insert((done.clone(), after.clone())) {
                open.push((done, after));
            }
        }
    }
    Verdict::NotLinearizable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register.
    #[derive(Debug, Clone)]
    enum Register {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;

        fn step(&self, before: &u8) -> Option<u8> {
            match self {
                Register::Write(value) => Some(*value),
                Register::Read(value) => (value == before).then_some(*before),
            }
        }
    }

    use Register::{Read, Write};

    fn verdict(calls: &[(u64, u64, Register)]) -> Verdict {
        let calls: Vec<Call<Register>> = calls
            .iter()
            .map(|(asked, answered, operation)| Call {
                asked: *asked,
                answered: (*answered > 0).then_some(*answered),
                operation: operation.clone(),
            })
            .collect();
        check(&0, &calls, 10_000)
    }

    #[test]
    fn a_read_sees_the_write_that_was_answered_before_it() {
        assert_eq!(verdict(&[(1, 2, Write(5)), (3, 4, Read(5))]), Verdict::Linearizable);
        assert_eq!(verdict(&[(1, 2, Write(5)), (3, 4, Read(0))]), Verdict::NotLinearizable);
    }

    #[test]
    fn what_happens_at_once_may_have_happened_in_any_order_but_in_one() {
        let write = (1, 10, Write(5));
        assert_eq!(verdict(&[write.clone(), (2, 3, Read(0)), (4, 5, Read(5))]), Verdict::Linearizable);
        assert_eq!(verdict(&[write, (2, 3, Read(5)), (4, 5, Read(0))]), Verdict::NotLinearizable);
    }

    #[test]
    fn what_was_never_answered_may_happen_at_any_time_later_or_never() {
        let lost = (1, 0, Write(5));
        for seen in [vec![(8, 9, Read(5))], vec![(8, 9, Read(0))], vec![(2, 3, Read(0)), (8, 9, Read(5))]] {
            let calls: Vec<_> = std::iter::once(lost.clone()).chain(seen).collect();
            assert_eq!(verdict(&calls), Verdict::Linearizable);
        }
        assert_eq!(verdict(&[lost.clone(), (2, 3, Read(5)), (4, 5, Read(0))]), Verdict::NotLinearizable);
        // Not before it was asked, though.
        assert_eq!(verdict(&[(1, 2, Read(5)), (3, 0, Write(5))]), Verdict::NotLinearizable);
    }

    #[test]
    fn a_search_that_takes_too_long_says_that_nothing_is_known() {
        let writes = (0..20).map(|number| Call { asked: 1, answered: Some(100), operation: Write(number) });
        let read = Call { asked: 200, answered: Some(201), operation: Read(99) };
        let calls: Vec<Call<Register>> = writes.chain([read]).collect();
        assert_eq!(check(&0, &calls, 1_000), Verdict::Unknown);
    }
}
