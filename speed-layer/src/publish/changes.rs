//! What a pass changes under plain names: values that are put, names that go, sets of which members change.

use std::ops::Range;

/// Texts, one behind the other in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    /// Where the next text is written; it is there once it is ended.
    #[inline]
    pub(crate) fn next(&mut self) -> &mut String {
        &mut self.all
    }

    /// Ends a text.
    #[inline]
    pub(crate) fn end(&mut self) {
        self.ends.push(self.all.len());
    }

    /// Adds a text.
    pub(crate) fn push(&mut self, text: &str) {
        self.next().push_str(text);
        self.end();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How many bytes these have.
    pub(crate) fn bytes(&self, numbers: Range<usize>) -> usize {
        let end = |count: usize| count.checked_sub(1).map_or(0, |last| self.ends[last]);
        end(numbers.end) - end(numbers.start)
    }

    /// One of them.
    #[inline]
    pub(crate) fn get(&self, number: usize) -> &str {
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all[begin..self.ends[number]]
    }
}

/// A ranked set that changes, as the numbers of its texts: its name, the members that go, and the others, each behind its
/// count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranking {
    /// Whether what stands there, if anything does, goes first.
    pub(crate) anew: bool,
    /// Its name.
    pub(crate) first: usize,
    /// Where the members begin that are put; those that go are behind the name.
    pub(crate) put: usize,
    /// Where they end.
    pub(crate) end: usize,
}

impl Ranking {
    /// How many members go.
    pub(crate) fn gone(&self) -> usize {
        self.put - self.first - 1
    }

    /// How many members change.
    pub(crate) fn len(&self) -> usize {
        self.gone() + (self.end - self.put) / 2
    }
}

/// All that a pass changes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Names and the texts that come to stand under them, in turn.
    pub(crate) puts: Texts,
    /// Names under which nothing stands any more.
    pub(crate) drops: Texts,
    /// Sets.
    pub(crate) rankings: Vec<Ranking>,
    /// Their texts.
    pub(crate) members: Texts,
}

impl Changes {
    /// How many names change.
    pub(crate) fn len(&self) -> usize {
        self.puts.len() / 2 + self.drops.len() + self.rankings.len()
    }
}
