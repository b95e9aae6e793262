//! Patterns of output files.
//!
//! `*` stands for any run of bytes but `/`, `?` for one byte but `/`, `[a-z]` for one byte of a set and `[!a-z]` for one
//! outside it, `**` for any run of bytes with `/`, and a part that is `**` alone for any number of directories, none
//! included. Every other byte stands for itself, as does a `[` that nothing closes.
//!
//! Matching follows all possibilities at once (Thompson, "Regular expression search algorithm", 1968), so its cost is
//! at most the product of both lengths; the caller counts it against a budget.

/// A pattern, ready to match.
pub(crate) struct Pattern {
    text: String,
    steps: Vec<Step>,
}

enum Step {
    Byte(u8),
    AnyByte,
    Set {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
    /// Any run without `/`.
    Run,
    /// Any run.
    DeepRun,
    /// Any number of directories: here one may begin or the next step follow.
    Directories,
    /// Within the name of a directory that [`Step::Directories`] began; it is the step right after it.
    DirectoryName,
}

/// The cost of matching ran out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfBudget;

impl Pattern {
    /// Reads a pattern; every text is one.
    pub(crate) fn new(text: &str) -> Pattern {
        let mut steps = Vec::new();
        let mut rest = text.as_bytes();
        let mut at_part_start = true;
        while let Some((first, after)) = rest.split_first() {
            let part_start = std::mem::replace(&mut at_part_start, *first == b'/');
            rest = after;
            match first {
                b'*' => {
                    let deep = after.first() == Some(&b'*');
                    while let Some(shorter) = rest.strip_prefix(b"*") {
                        rest = shorter;
                    }
                    match rest.strip_prefix(b"/") {
                        Some(shorter) if deep && part_start => {
                            rest = shorter;
                            at_part_start = true;
                            steps.extend([Step::Directories, Step::DirectoryName]);
                        }
                        _ => steps.push(if deep { Step::DeepRun } else { Step::Run }),
                    }
                }
                b'?' => steps.push(Step::AnyByte),
                b'[' => match set(after) {
                    Some((step, shorter)) => {
                        steps.push(step);
                        rest = shorter;
                    }
                    None => steps.push(Step::Byte(b'[')),
                },
                byte => steps.push(Step::Byte(*byte)),
            }
        }
        Pattern { text: text.to_owned(), steps }
    }

    /// The pattern as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `path` matches. Every step looked at takes one from `budget`.
    pub(crate) fn matches(&self, path: &[u8], budget: &mut u64) -> Result<bool, OutOfBudget> {
        let mut current = States::new(self.steps.len());
        let mut following = States::new(self.steps.len());
        self.enter(&mut current, 0);
        for byte in path {
            following.clear();
            for state in &current.list {
                *budget = budget.checked_sub(1).ok_or(OutOfBudget)?;
                if let Some(next) = self.steps.get(*state).and_then(|step| step.over(*byte, *state)) {
                    self.enter(&mut following, next);
                }
            }
            std::mem::swap(&mut current, &mut following);
        }
        Ok(current.list.contains(&self.steps.len()))
    }

    /// Adds a state and those that can be reached from it without a byte.
    fn enter(&self, states: &mut States, first: usize) {
        let mut next = Some(first);
        while let Some(state) = next.filter(|state| states.insert(*state)) {
            next = match self.steps.get(state) {
                Some(Step::Run | Step::DeepRun) => state.checked_add(1),
                Some(Step::Directories) => state.checked_add(2),
                _ => None,
            };
        }
    }
}

impl Step {
    /// The state after this step, at `state`, has taken a byte; `None` when it does not take it.
    fn over(&self, byte: u8, state: usize) -> Option<usize> {
        let next = state.saturating_add(1);
        match self {
            Step::Byte(wanted) => (*wanted == byte).then_some(next),
            Step::AnyByte => (byte != b'/').then_some(next),
            Step::Set { negated, ranges } => {
                let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte));
                (byte != b'/' && within != *negated).then_some(next)
            }
            Step::Run => (byte != b'/').then_some(state),
            Step::DeepRun => Some(state),
            Step::Directories => (byte != b'/').then_some(next),
            Step::DirectoryName => Some(if byte == b'/' { state.saturating_sub(1) } else { state }),
        }
    }
}

/// Reads a set behind its `[`: the step and what follows the `]`.
fn set(text: &[u8]) -> Option<(Step, &[u8])> {
    let (negated, mut rest) = match text.split_first() {
        Some((b'!' | b'^', after)) => (true, after),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        let (low, after) = rest.split_first()?;
        if *low == b']' && !ranges.is_empty() {
            return Some((Step::Set { negated, ranges }, after));
        }
        match after {
            [b'-', high, shorter @ ..] if *high != b']' => {
                ranges.push((*low, *high));
                rest = shorter;
            }
            _ => {
                ranges.push((*low, *low));
                rest = after;
            }
        }
    }
}

/// A set of states that is cleared in the time of its size.
struct States {
    list: Vec<usize>,
    present: Vec<bool>,
}

impl States {
    fn new(steps: usize) -> States {
        States { list: Vec::new(), present: vec![false; steps.saturating_add(1)] }
    }

    fn insert(&mut self, state: usize) -> bool {
        match self.present.get_mut(state) {
            Some(present) if !*present => {
                *present = true;
                self.list.push(state);
                true
            }
            _ => false,
        }
    }

    fn clear(&mut self) {
        for state in self.list.drain(..) {
            if let Some(present) = self.present.get_mut(state) {
                *present = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern).matches(path.as_bytes(), &mut 1_000_000).unwrap()
    }

    #[test]
    fn each_wildcard_takes_what_it_promises() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("a.txt", &["a.txt"], &["b.txt", "a.tx", "a.txtt", "d/a.txt", ""]),
            ("*.gz", &["a.gz", ".gz", "a.b.gz"], &["d/a.gz", "a.gzz"]),
            ("*", &["a", ".hidden"], &["a/b"]),
            ("d/*", &["d/a"], &["d", "d/a/b", "e/a"]),
            ("**", &["a", "a/b", "a/b/c"], &[]),
            ("d/**", &["d/a", "d/a/b"], &["d", "e/d/a"]),
            ("**/a", &["a", "d/a", "d/e/a"], &["da", "d/ba", "a/d"]),
            ("d/**/a", &["d/a", "d/e/a", "d/e/f/a"], &["da", "d/ea", "a"]),
            ("a**z", &["az", "a/b/z"], &["a/b"]),
            ("a?c", &["abc", "a.c"], &["ac", "a/c", "abbc"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x"]),
            ("[!a-c]x", &["dx"], &["ax", "/x"]),
            ("[]a]", &["]", "a"], &["b"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("[", &["["], &["a"]),
            ("", &[""], &["a"]),
            ("*a*b*c", &["abc", "xaxbxc"], &["acb"]),
        ];
        for (pattern, taken, refused) in cases {
            taken.iter().for_each(|path| assert!(matches(pattern, path), "`{pattern}` refused `{path}`"));
            refused.iter().for_each(|path| assert!(!matches(pattern, path), "`{pattern}` took `{path}`"));
        }
    }

    #[test]
    fn bytes_that_are_no_text_match_wildcards() {
        assert_eq!(Pattern::new("*.bin").matches(b"\xff\xfe.bin", &mut 100), Ok(true));
    }

    #[test]
    fn a_costly_pattern_ends_with_its_budget() {
        let pattern = Pattern::new(&"*a".repeat(500));
        assert_eq!(pattern.matches(&[b'a'; 4_000], &mut 10_000), Err(OutOfBudget));
    }

    proptest! {
        #[test]
        fn a_text_without_wildcards_matches_itself_only(text in "[a-c/.]{0,8}", other in "[a-c/.]{0,8}") {
            prop_assert!(matches(&text, &text));
            prop_assert_eq!(matches(&text, &other), text == other);
        }

        #[test]
        fn matching_agrees_with_trying_every_way(pattern in "[ab*?/]{0,7}", path in "[ab]{1,2}(/[ab]{1,2}){0,2}") {
            prop_assert_eq!(matches(&pattern, &path), tried(pattern.as_bytes(), path.as_bytes(), true));
        }
    }

    /// The definition, tried out by recursion.
    fn tried(pattern: &[u8], path: &[u8], part_start: bool) -> bool {
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', rest @ ..] => {
                let stars = rest.iter().take_while(|byte| **byte == b'*').count();
                match &rest[stars..] {
                    [b'/', after @ ..] if part_start => (0..=path.len())
                        .any(|end| (end == 0 || path[end - 1] == b'/') && tried(after, &path[end..], true)),
                    after => (0..=path.len()).any(|end| tried(after, &path[end..], false)),
                }
            }
            [b'*', rest @ ..] => (0..=path.len())
                .take_while(|end| *end == 0 || path[end - 1] != b'/')
                .any(|end| tried(rest, &path[end..], false)),
            [first, rest @ ..] => path.split_first().is_some_and(|(byte, after)| {
                let taken = if *first == b'?' { *byte != b'/' } else { first == byte };
                taken && tried(rest, after, *first == b'/')
            }),
        }
    }
}
