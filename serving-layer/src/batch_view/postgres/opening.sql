-- All that an answer begins with, as one row, or none before the first run.
-- What is wanted: for each metric its version ($1), and of its days the first ($2) and the one behind the last ($3). Each of
-- its streams ($5) stands beside its place there, from 1 ($4). $6: how the statements that follow are planned.
with wanted as (
    select * from unnest($1::text[], $2::date[], $3::date[]) with ordinality
        as wanted (version, from_day, to_day, place)
),
feeding as (
    select * from unnest($4::bigint[], $5::text[]) as feeding (place, stream)
)
select now.generation, now.run_id, now.cuts,
       live.places, live.days, live.ids, live.runs, live.tables, live.partial, live.hashes,
       missing.places, missing.days,
       lost.topics, lost.partitions, lost.froms, lost.tos, lost.causes,
       set_config('plan_cache_mode', $6::text, true)
from (select generation, run_id, cuts from tidemark.tidemark order by generation desc limit 1) as now,
     -- The versions that readers see.
     (select array_agg(wanted.place) as places, array_agg(live.event_day) as days, array_agg(live.version_id) as ids,
             array_agg(made.run_id) as runs, array_agg(made.table_name) as tables,
             array_agg(made.partial) as partial, array_agg(made.hash) as hashes
      from wanted
           join tidemark.live_version live
                on live.version = wanted.version
                   and live.event_day >= wanted.from_day and live.event_day < wanted.to_day
           join tidemark.view_version made on made.version_id = live.version_id) as live,
     -- The days that the archive has and a metric's batch view has not.
     (select array_agg(place) as places, array_agg(event_day) as days
      from (select distinct wanted.place, archived.event_day
            from wanted
                 join feeding on feeding.place = wanted.place,
                 lateral (select distinct event_day from tidemark.segment
                          where stream = feeding.stream
                            and event_day >= wanted.from_day and event_day < wanted.to_day) as archived
            where not exists (select from tidemark.live_version live
                              where live.version = wanted.version and live.event_day = archived.event_day)
           ) as missing) as missing,
     -- What the log had lost before it was archived.
     (select array_agg(topic) as topics, array_agg(partition) as partitions, array_agg(from_offset) as froms,
             array_agg(to_offset) as tos, array_agg(cause) as causes
      from (select * from tidemark.gap order by topic, partition, from_offset) as lost) as lost
