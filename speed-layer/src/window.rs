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
    fn the_next_pane_begins_after_a_time() {
        assert_eq!([9, 10, -1, 0].map(|time| pane_after(time, 10)), [10, 20, 0, 10]);
    }
}
