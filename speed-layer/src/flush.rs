//! Decides, without any I/O, what becomes of a group: at its claim, and after each answer to a write.
//!
//! A group is resumed only where its stored state is exactly the fold of its range and its range reaches back to the
//! tidemark for every metric; anything else is built anew from the tidemark. A refusal is never overridden.

use shared_model::metric::MetricVersion;
use shared_model::tidemark::{Cut, Reach, reach};
use shared_model::view::{HEADER_VERSION, Header};

/// What a claim found in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// No such group.
    Nothing,
    /// A group whose header can't be read, or doesn't belong to its fence.
    Unreadable(String),
    /// A group.
    Group(Box<Header>),
}

/// What to do with a claimed group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// Go on where it ends.
    Resume,
    /// Build it anew from the tidemark's cut.
    Rebuild(Why),
}

/// Why a group is built anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// It isn't there: a first start, or Redis was emptied.
    Missing,
    /// Its stored form isn't readable by this version.
    Unreadable(String),
    /// It ends below the tidemark: the batch view already holds all that it does.
    Behind,
    /// It places the tidemark's boundary elsewhere, or starts above it.
    Differs,
    /// A metric of the catalog isn't folded in it from the tidemark on.
    Metric(MetricVersion),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Missing => write!(f, "it is not in redis"),
            Why::Unreadable(problem) => write!(f, "its stored form is unreadable: {problem}"),
            Why::Behind => write!(f, "it ends below the tidemark"),
            Why::Differs => write!(f, "it has the tidemark's boundary at another offset, or starts above it"),
            Why::Metric(version) => {
                write!(f, "metric version {version} is not folded in it from the tidemark on")
            }
        }
    }
}

/// Decides how a claimed group starts, at a tidemark's cut of its partition.
pub(crate) fn start(found: &Found, cut: &Cut, mut metrics: impl Iterator<Item = MetricVersion>) -> Start {
    let header = match found {
        Found::Nothing => return Start::Rebuild(Why::Missing),
        Found::Unreadable(problem) => return Start::Rebuild(Why::Unreadable(problem.clone())),
        Found::Group(header) => header,
    };
    if header.v != HEADER_VERSION {
        return Start::Rebuild(Why::Unreadable(format!("layout version {}", header.v)));
    }
    match reach(&header.cuts, header.to, cut) {
        Reach::Differs => Start::Rebuild(Why::Differs),
        Reach::Below if header.to < cut.offset => Start::Rebuild(Why::Behind),
        // Otherwise it ends exactly at the boundary, the next record having not come yet.
        Reach::Below | Reach::Covers => {
            let lacks =
                |version: &MetricVersion| header.metrics.get(version).is_none_or(|&from| from > cut.offset);
            metrics.find(lacks).map_or(Start::Resume, |version| Start::Rebuild(Why::Metric(version)))
        }
    }
}

/// So many records are folded again sooner than a group is put back.
const SOON: i64 = 100_000;

/// Whether a copy of a group is put back in place of what a claim found: it can be gone on from, and what was found
/// can't, or ends far before it.
pub(crate) fn puts_back(
    copy: &Header,
    found: &Found,
    cut: &Cut,
    metrics: impl Iterator<Item = MetricVersion> + Clone,
) -> bool {
    let resumes = |found: &Found| start(found, cut, metrics.clone()) == Start::Resume;
    let goes_as_far = |header: &Header| header.to + SOON >= copy.to;
    resumes(&Found::Group(copy.clone().into()))
        && !(resumes(found) && matches!(found, Found::Group(header) if goes_as_far(header)))
}

/// What Redis said to a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is stored, now or by an earlier try.
    Stored,
    /// Another worker has claimed the group since.
    NotOwner,
    /// The stored position isn't the one that this write follows.
    NotFence,
    /// Unknown whether it is stored, or refused for a reason that passes.
    Unknown(String),
    /// Redis is out of memory: refused.
    Full(String),
    /// The function library isn't there (a new or emptied node).
    NoLibrary,
}

impl Answer {
    /// What the text means that the function library gives.
    pub(crate) fn of(text: &str) -> Answer {
        match text {
            "OK" | "DONE" => Answer::Stored,
            "OWNER" => Answer::NotOwner,
            "FENCE" => Answer::NotFence,
            other => Answer::Unknown(format!("unexpected answer {other:?}")),
        }
    }
}

/// What to do after a round of writes to a partition's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// All are stored: read on.
    Continue,
    /// Send the very same bytes of those that aren't stored again, after a while.
    Retry(String),
    /// Delete what has expired meanwhile, then send again those that aren't stored.
    Trim(String),
    /// Load the function library, then as `Retry`.
    LoadLibrary,
    /// Drop all that is held of the partition, claim it anew, and re-read what is not stored.
    Reclaim,
    /// Another worker owns it: drop the partition, and write nothing of it again.
    GiveUp,
}

/// Decides after a round. The worst answer decides: ownership over position, position over availability.
pub(crate) fn next<'a>(answers: impl Iterator<Item = &'a Answer>) -> Next {
    let rank = |next: &Next| match next {
        Next::Continue => 0,
        Next::Retry(_) => 1,
        Next::Trim(_) => 2,
        Next::LoadLibrary => 3,
        Next::Reclaim => 4,
        Next::GiveUp => 5,
    };
    let each = answers.map(|answer| match answer {
        Answer::Stored => Next::Continue,
        Answer::Unknown(reason) => Next::Retry(reason.clone()),
        Answer::Full(reason) => Next::Trim(reason.clone()),
        Answer::NoLibrary => Next::LoadLibrary,
        Answer::NotFence => Next::Reclaim,
        Answer::NotOwner => Next::GiveUp,
    });
    each.max_by_key(rank).unwrap_or(Next::Continue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_model::epoch::TrustedTime;

    fn header(to: i64, cuts: &[(i64, i64)], metrics: &[(u64, i64)]) -> Header {
        Header {
            v: HEADER_VERSION,
            incarnation: 1,
            to,
            clock: 0,
            trusted: TrustedTime::default(),
            watermark: None,
            panes_from: None,
            pane_holes: Vec::new(),
            cuts: cuts.to_vec(),
            metrics: metrics.iter().map(|&(version, from)| (MetricVersion(version), from)).collect(),
            seq: 0,
            gaps: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    #[test]
    fn a_group_is_resumed_only_where_it_fits_the_tidemark() {
        let cut = Cut { epoch: 5, ..Cut::start(40) };
        let check = |found: Found, expected: Start| {
            assert_eq!(start(&found, &cut, [MetricVersion(7)].into_iter()), expected, "{found:?}");
        };
        let group =
            |to, cuts: &[(i64, i64)], metrics: &[(u64, i64)]| Found::Group(header(to, cuts, metrics).into());
        check(Found::Nothing, Start::Rebuild(Why::Missing));
        check(group(90, &[(0, 0), (5, 40)], &[(7, 0)]), Start::Resume);
        check(group(90, &[(5, 40), (8, 50)], &[(7, 40)]), Start::Resume);
        check(group(90, &[(3, 10), (7, 40)], &[(7, 10)]), Start::Resume);
        check(group(90, &[(0, 0), (5, 41)], &[(7, 0)]), Start::Rebuild(Why::Differs));
        check(group(90, &[(6, 60)], &[(7, 60)]), Start::Rebuild(Why::Differs));
        check(group(39, &[(0, 0), (4, 20)], &[(7, 0)]), Start::Rebuild(Why::Behind));
        check(group(40, &[(0, 0), (4, 20)], &[(7, 0)]), Start::Resume);
        check(group(41, &[(0, 0), (4, 20)], &[(7, 0)]), Start::Rebuild(Why::Differs));
        check(group(90, &[(5, 40)], &[]), Start::Rebuild(Why::Metric(MetricVersion(7))));
        check(group(90, &[(5, 40)], &[(7, 41)]), Start::Rebuild(Why::Metric(MetricVersion(7))));
        let mut newer = header(90, &[(5, 40)], &[(7, 40)]);
        newer.v += 1;
        check(Found::Group(newer.into()), Start::Rebuild(Why::Unreadable("layout version 2".into())));
        let torn = Found::Unreadable("torn".into());
        check(torn, Start::Rebuild(Why::Unreadable("torn".into())));
    }

    #[test]
    fn a_copy_is_put_back_only_where_it_brings_a_group_further() {
        let cut = Cut { epoch: 5, ..Cut::start(40) };
        let group = |to, cuts: &[(i64, i64)]| Found::Group(header(to, cuts, &[(7, 0)]).into());
        let copy = |to| header(to, &[(5, 40)], &[(7, 40)]);
        let check = |copy: &Header, found: &Found, expected: bool| {
            let metrics = [MetricVersion(7)].into_iter();
            assert_eq!(puts_back(copy, found, &cut, metrics), expected, "{copy:?} {found:?}");
        };
        check(&copy(90), &Found::Nothing, true);
        check(&copy(90), &Found::Unreadable("torn".into()), true);
        check(&copy(90), &group(80, &[(5, 40)]), false);
        check(&copy(200_090), &group(80, &[(5, 40)]), true);
        check(&copy(90), &group(90, &[(5, 40)]), false);
        check(&copy(90), &group(95, &[(5, 40)]), false);
        // What can't be gone on from is replaced even where it ends later.
        check(&copy(90), &group(95, &[(5, 41)]), true);
        // Nor can a copy from before the tidemark, or of other metrics.
        check(&header(39, &[(0, 0), (4, 20)], &[(7, 0)]), &Found::Nothing, false);
        check(&header(90, &[(5, 41)], &[(7, 41)]), &Found::Nothing, false);
        check(&header(90, &[(5, 40)], &[(8, 40)]), &Found::Nothing, false);
    }

    #[test]
    fn the_worst_answer_of_a_round_decides() {
        use Answer::*;
        let check =
            |answers: &[Answer], expected: Next| assert_eq!(next(answers.iter()), expected, "{answers:?}");
        check(&[], Next::Continue);
        check(&[Stored, Stored], Next::Continue);
        check(&[Stored, Unknown("gone".into())], Next::Retry("gone".into()));
        check(&[Unknown("gone".into()), Full("full".into())], Next::Trim("full".into()));
        check(&[NoLibrary, Unknown("gone".into())], Next::LoadLibrary);
        check(&[NotFence, Unknown("gone".into()), Stored], Next::Reclaim);
        check(&[NotFence, NotOwner, Stored], Next::GiveUp);
    }
}
