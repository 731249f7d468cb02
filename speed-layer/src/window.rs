//! Which panes are still inside some sliding window: a pure function of all partitions' marks.
//!
//! Expiry follows event time alone, so that a replay of 2016 works, and one published place decides for all
//! partitions: the oldest watermark of those that are still reading, or the newest time where all have caught up.

use shared_model::time::Millis;
use shared_model::view::Mark;

/// The start of the oldest pane that may still be asked for; panes that start before it are expired. `None` while no
/// partition has seen an event.
pub(crate) fn oldest_pane<'a>(
    marks: impl Iterator<Item = &'a Mark> + Clone,
    pane: Millis,
    longest: Millis,
) -> Option<Millis> {
    let newest = marks.clone().filter_map(|mark| mark.trusted).max()?;
    let reached = marks.map(|mark| match (mark.caught_up, mark.watermark) {
        (true, _) => newest,
        (false, Some(watermark)) => watermark.min(newest),
        // Reading, but no event so far: nothing is known of what it will bring.
        (false, None) => Millis::MIN,
    });
    let reached = reached.min().filter(|&reached| reached != Millis::MIN)?;
    Some(reached.div_euclid(pane) * pane + pane - longest)
}

/// The end of the newest window that every pane can be published up to, by the marks of the partitions that feed it: the
/// one with the newest time of all where they have caught up; else the last one that those that haven't will bring no more
/// records of, but late ones.
pub(crate) fn publishable<'a>(
    mut feeding: impl Iterator<Item = &'a Mark> + Clone,
    newest: Millis,
    pane: Millis,
) -> Option<Millis> {
    let behind = feeding.clone().filter(|mark| !mark.caught_up);
    match behind.map(|mark| mark.watermark).min() {
        None => feeding.any(|mark| mark.trusted.is_some()).then(|| pane_after(newest, pane)),
        // `None` is the least: nothing is known of what that one will bring.
        Some(watermark) => watermark.map(|watermark| watermark.min(newest).div_euclid(pane) * pane),
    }
}

/// What a publisher of every pane, which has come as far as `published`, asks of those who read on: the oldest pane that
/// is to be kept, and whether to wait, being further ahead of it than is `allowed`.
pub(crate) fn paced(
    oldest: Option<Millis>,
    published: Option<Millis>,
    longest: Millis,
    allowed: Millis,
) -> (Option<Millis>, bool) {
    match (oldest, published) {
        (Some(oldest), Some(published)) => {
            let is_ahead = oldest.saturating_add(longest) > published.saturating_add(allowed);
            (Some(oldest.min(published.saturating_sub(longest))), is_ahead)
        }
        _ => (oldest, false),
    }
}

/// The start of the first pane that begins after `time`.
pub(crate) fn pane_after(time: Millis, pane: Millis) -> Millis {
    time.div_euclid(pane).saturating_add(1).saturating_mul(pane)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(trusted: Option<Millis>, caught_up: bool) -> Mark {
        let watermark = trusted.map(|t| t - 1_000);
        Mark { trusted, watermark, clock: 0, caught_up, generation: 0, looked: None }
    }

    #[test]
    fn the_slowest_reader_holds_panes_and_an_idle_partition_does_not() {
        let check =
            |marks: &[Mark], expected| assert_eq!(oldest_pane(marks.iter(), 10, 300), expected, "{marks:?}");
        check(&[], None);
        check(&[mark(None, true)], None);
        check(&[mark(Some(5_005), true)], Some(5_010 - 300));
        check(&[mark(Some(5_005), false)], Some(4_010 - 300));
        check(&[mark(Some(5_005), true), mark(Some(2_000), true)], Some(5_010 - 300));
        check(&[mark(Some(5_005), true), mark(Some(2_000), false)], Some(1_010 - 300));
        check(&[mark(Some(5_005), true), mark(None, false)], None);
        check(&[mark(Some(5_005), true), mark(None, true)], Some(5_010 - 300));
    }

    #[test]
    fn every_pane_is_published_up_to_the_slowest_reader() {
        let check = |marks: &[Mark], expected| {
            assert_eq!(publishable(marks.iter(), 6_000, 10), expected, "{marks:?}");
        };
        check(&[], None);
        check(&[mark(None, true)], None);
        check(&[mark(Some(5_005), true)], Some(6_010));
        check(&[mark(Some(5_005), false)], Some(4_000));
        check(&[mark(Some(5_005), true), mark(Some(2_009), false)], Some(1_000));
        check(&[mark(Some(5_005), false), mark(Some(2_009), true)], Some(4_000));
        check(&[mark(Some(5_005), true), mark(None, false)], None);
        check(&[mark(Some(5_005), true), mark(None, true)], Some(6_010));
    }

    #[test]
    fn nothing_is_let_go_of_that_is_to_be_published_and_nobody_goes_far_beyond() {
        let check = |oldest, published, expected| {
            assert_eq!(paced(oldest, published, 300, 150), expected, "{oldest:?} {published:?}");
        };
        check(None, Some(1_000), (None, false));
        check(Some(5_000), None, (Some(5_000), false));
        check(Some(690), Some(1_000), (Some(690), false));
        check(Some(850), Some(1_000), (Some(700), false));
        check(Some(851), Some(1_000), (Some(700), true));
        check(Some(0), Some(Millis::MIN), (Some(Millis::MIN), true));
    }

    #[test]
    fn the_next_pane_begins_after_a_time() {
        assert_eq!([9, 10, -1, 0].map(|time| pane_after(time, 10)), [10, 20, 0, 10]);
    }
}
