//! Readers: the serving layer's own answers, each held against the naive fold of exactly what it says that it covers.
//!
//! A complete answer equals that fold, and lacks nothing that was appended before its `as_of`. An incomplete one has
//! nothing that is not there.

use crate::fact::{Counted, EPOCH, GROUPS, HORIZON, Repeats, catalog_name, naive, named};
use crate::log::{Record, START};
use crate::world::{Sabotage, World};
use futures::future::BoxFuture;
use serde_json::json;
use serving_layer::answer::{Answer, Views, answer};
use serving_layer::query::{Limits, Request};
use serving_layer::realtime_view::{Group, RealtimeError, RealtimeView, Want};
use shared_model::aggregate::Finished;
use shared_model::metric::Metric;
use shared_model::offsets::TopicPartition;
use shared_model::time::{self, DAY};
use shared_model::view::{self, Header, Looked, Mark};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest that an answer may take.
pub(crate) const LONGEST: Duration = Duration::from_secs(4);

/// The realtime view, and what one reader saw of it.
struct Seen {
    world: World,
    /// How far each group that was asked for is folded; 0: it isn't there.
    groups: Mutex<BTreeMap<String, i64>>,
    /// Whether others may act in between.
    steps: bool,
}

impl Seen {
    async fn step(&self) {
        if self.steps {
            self.world.step().await;
        }
    }
}

impl RealtimeView for Seen {
    fn group<'a>(
        &'a self,
        key: &'a str,
        _want: Want,
    ) -> BoxFuture<'a, Result<Option<Arc<Group>>, RealtimeError>> {
        Box::pin(async move {
            self.step().await;
            if self.steps && self.world.fault() && self.world.fault() {
                return Err(RealtimeError("no answer".into()));
            }
            let fields = self.world.state().redis.fields(key).cloned();
            let group = fields.and_then(|fields| {
                view::Group::from_fields(fields.into_iter().map(|(field, value)| (field.into_bytes(), value)))
            });
            let group = group.map(|group| forgetful(&self.world, group));
            let to = group
                .as_ref()
                .map_or(0, |group| Header::from_json(&group.header).expect("a header of ours").to);
            self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), to);
            Ok(group.map(|group| Arc::new(group.into())))
        })
    }

    fn marks(&self) -> BoxFuture<'_, Result<BTreeMap<TopicPartition, Mark>, RealtimeError>> {
        Box::pin(async move {
            self.step().await;
            let marks = self.world.state().redis.marks().clone();
            let marks = marks.into_iter().filter_map(|(tp, mark)| Some((TopicPartition::parse(&tp)?, mark)));
            let claims = self.world.is_sabotaged(Sabotage::LooksClaimed);
            let claimed = |(tp, mut mark): (TopicPartition, Mark)| {
                mark.looked = mark
                    .looked
                    .filter(|_| claims)
                    .map(|_| Looked { partitions: 0, clock: i64::MAX })
                    .or(mark.looked);
                (tp, mark)
            };
            Ok(marks.map(claimed).collect())
        })
    }
}

/// A group that doesn't say what it forgot, where that fault is built in.
fn forgetful(world: &World, mut group: view::Group) -> view::Group {
    if world.is_sabotaged(Sabotage::HorizonUnsaid) {
        let mut header = Header::from_json(&group.header).expect("a header of ours");
        header.forgotten.clear();
        group.header = header.to_json().into_bytes();
    }
    group
}

/// Asks for one metric and judges the answer; whether it was complete, or else why not.
pub(crate) async fn ask(world: World, metric: Arc<Metric>, steps: bool) -> Vec<String> {
    let begun = world.clock();
    let seen = Arc::new(Seen { world: world.clone(), groups: Mutex::default(), steps });
    let views = Views {
        catalog: world.catalog().clone(),
        batch: world.batch().clone(),
        realtime: seen.clone(),
        limits: Limits { redis_reads: 2, ..Limits::default() },
    };
    let by: Vec<&str> = metric.by.iter().map(|column| column.name.as_str()).collect();
    let (from, to) = (START.div_euclid(DAY) * DAY - 6 * DAY, START.div_euclid(DAY) * DAY + 6 * DAY);
    let mut request = json!({
        "metrics": [metric.name], "granularity": "grain", "from": time::show(from), "to": time::show(to),
    });
    if !by.is_empty() {
        request["group_by"] = json!(by);
    }
    let parsed =
        Request::parse(request.to_string().as_bytes(), Default::default(), world.catalog(), &views.limits, 0);
    let parsed = parsed.unwrap_or_else(|error| panic!("{request}: {error:?}"));
    let answered = answer(&views, &parsed.queries, parsed.at).await;
    let answered = answered.unwrap_or_else(|error| panic!("{}: {error:?}", metric.name)).remove(0);
    if world.clock() - begun > LONGEST {
        return vec!["it took too long".to_owned()];
    }
    let reasons = answered.coverage.reasons();
    let tidemark = &answered.at.tidemark;
    world.note(format_args!("{} asked at generation {}: {reasons:?}", metric.name, tidemark.generation));
    judge(&world, &metric, &answered, &seen, reasons.is_empty());
    reasons
}

fn judge(world: &World, metric: &Metric, answered: &Answer, seen: &Seen, complete: bool) {
    let tidemark = &answered.at.tidemark;
    let groups = seen.groups.lock().unwrap_or_else(PoisonError::into_inner);
    let cut = |tp: &TopicPartition| tidemark.cuts.get(tp).map_or(0, |cut| cut.offset);
    let reach = |tp: &TopicPartition, group: u32| {
        let key = view::group_key(tp, group, world.catalog().layout.groups);
        groups.get(&key).copied().unwrap_or(0).max(cut(tp))
    };
    let found = finished(metric, answered);
    let name = catalog_name(&metric.name);
    let state = world.state();
    let at = format!("{name} at generation {} {:?}", tidemark.generation, tidemark.cuts);
    // A repeat within the horizon that the answer states counts once, whatever the log has lost.
    let stated = |tp: &TopicPartition| {
        let stream = world.catalog().stream_of_topic(&tp.topic).expect("a stream's topic");
        answered.coverage.horizon(stream)
    };
    let fold = |reach: &dyn Fn(&TopicPartition, u32) -> i64, repeats| {
        naive(&state.broker, name, &cut, reach, repeats)
    };
    let known = Repeats::Within(&|_| HORIZON);
    let (least, most) = match (complete, state.losses) {
        (true, false) => (fold(&reach, known), None),
        (true, true) => (fold(&reach, known), Some(fold(&reach, Repeats::Within(&stated)))),
        (false, false) => (Counted::new(), Some(fold(&|_, _| i64::MAX, known))),
        (false, true) => (Counted::new(), Some(fold(&|_, _| i64::MAX, Repeats::All))),
    };
    let most = most.as_ref().unwrap_or(&least);
    for cell in found.keys().chain(least.keys()).collect::<BTreeSet<_>>() {
        let of = |counted: &Counted| counted.get(cell).copied().unwrap_or(0);
        let (least, value, most) = (of(&least), of(&found), of(most));
        let says = if complete { "complete" } else { "incomplete" };
        assert!(least <= value && value <= most, "{says}, {cell:?} is {value}, not {least} to {most}; {at}");
    }
    if !complete {
        return;
    }
    let holds = |group: &u32| !metric.by.is_empty() || *group == view::group_of(&[], GROUPS);
    let as_of = answered.coverage.as_of().unwrap_or(0);
    assert!(as_of < state.now + 2 * EPOCH + 86_400_000, "as_of lies in the future: {as_of}");
    for (tp, log) in &state.broker.logs {
        if !metric.bindings.iter().any(|binding| *binding.stream == *tp.topic) {
            continue;
        }
        assert!(
            state.losses || stated(tp) == HORIZON,
            "{tp}: a horizon of {} for no reason; {at}",
            stated(tp)
        );
        // Of a partition that the tidemark doesn't know, leaders' clocks tell only as well as they agree.
        let known = tidemark.cuts.contains_key(tp);
        let before =
            |record: &&Record| record.clock < as_of && (known || record.now + state.broker.far_ahead < as_of);
        for record in log.records.iter().filter(before) {
            for group in (0..GROUPS).filter(holds) {
                let (reach, offset) = (reach(tp, group), record.offset);
                assert!(
                    offset < reach,
                    "as_of {as_of}, but {tp} group {group} is read to {reach}, not {offset}; {at}"
                );
            }
        }
    }
}

fn finished(metric: &Metric, answered: &Answer) -> Counted {
    let name = catalog_name(&metric.name);
    let mut found = Counted::new();
    for row in &answered.rows.rows {
        let item = row.ranked.as_ref().map(|(_, item)| item.to_string()).unwrap_or_default();
        let cell = (name, row.bucket, named(row.key.iter(), &item));
        let Finished::Int(value) = row.values[0] else { panic!("{row:?} of {name}") };
        found.insert(cell, value);
    }
    found
}
