//! Choices out of bytes: what a fuzzer changes is a byte string, and what a target needs are numbers.

/// Reads choices from a byte string; past its end every choice is the first one.
pub(crate) struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Bytes<'a> {
        Bytes { rest: data }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, after)) => {
                self.rest = after;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, one_in: u8) -> bool {
        self.below(one_in) == 1
    }

    pub(crate) fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.iter_mut().for_each(|byte| *byte = self.byte());
        u64::from_le_bytes(bytes)
    }

    /// A number that is small, near `anchor`, or at an edge of its type.
    pub(crate) fn near(&mut self, anchor: u64) -> u64 {
        match self.below(8) {
            0..=3 => anchor.saturating_add(u64::from(self.below(5))).saturating_sub(2),
            4 => u64::from(self.byte()),
            5 => anchor,
            6 => {
                let edges = [0, 1, u32::MAX.into(), (1 << 53) - 1, 1 << 62, u64::MAX - 1, u64::MAX];
                edges.get(usize::from(self.below(7))).copied().unwrap_or(0)
            }
            _ => self.number(),
        }
    }

    /// At most `most` bytes, as many as the next byte says and there are.
    pub(crate) fn slice(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(most).min(self.rest.len());
        let (taken, after) = self.rest.split_at(length);
        self.rest = after;
        taken
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let position = usize::from(self.byte()) % from.len().max(1);
        from.get(position).copied()
    }
}
