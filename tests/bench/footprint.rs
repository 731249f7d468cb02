//! What the realtime view holds in Redis: how many cells, and of which slices of the log.

use shared_model::aggregate::Aggregate;
use shared_model::time::Millis;
use shared_model::view::{self, CellId, Group, Slice};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tidemark_tests::redis_client::connect;
use tidemark_tests::stack::Stack;

/// How many cells there are: of each group those that have a name of their own, however many segments they are in.
pub(crate) async fn live_cells(stack: &Stack) -> anyhow::Result<usize> {
    let known: BTreeMap<_, &Aggregate> =
        stack.catalog.metrics.iter().map(|metric| (metric.version, &metric.aggregate)).collect();
    let (mut connection, mut live) = (connect(&stack.redis.url()).await, 0);
    for key in groups(stack).await? {
        let fields: HashMap<Vec<u8>, Vec<u8>> =
            redis::cmd("HGETALL").arg(&key).query_async(&mut connection).await?;
        let mut cells = HashSet::new();
        for (slice, bytes) in Group::from_fields(fields).unwrap_or_default().segments {
            let take = |version, key: &[u8], bucket, _| {
                cells.insert((slice, CellId { version, key: key.into(), bucket }));
                Ok(())
            };
            view::unpack(&bytes, |version| known.get(&version).copied(), take)?;
        }
        live += cells.len();
    }
    Ok(live)
}

/// The starts of all panes, and all epochs, of which there are segments.
pub(crate) async fn slices(stack: &Stack) -> anyhow::Result<(BTreeSet<Millis>, BTreeSet<i64>)> {
    let (mut panes, mut epochs) = (BTreeSet::new(), BTreeSet::new());
    let mut connection = connect(&stack.redis.url()).await;
    for key in groups(stack).await? {
        let fields: Vec<String> = redis::cmd("HKEYS").arg(&key).query_async(&mut connection).await?;
        for (slice, _) in fields.iter().filter_map(|field| view::parse_segment_field(field)) {
            match slice {
                Slice::Pane(start) => panes.insert(start),
                Slice::Epoch(epoch) => epochs.insert(epoch),
            };
        }
    }
    Ok((panes, epochs))
}

/// The keys of all groups.
async fn groups(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let headers = stack.probe.headers().await?;
    Ok(headers.keys().map(|(tp, group)| view::group_key(tp, *group, stack.probe.groups)).collect())
}
