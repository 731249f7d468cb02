-- Small files of one event day are rewritten as one. tidemark.segment goes on saying what lies below the tidemark, a row for
-- each file that a manifest names; `compacted` says in which file its rows are now, where that is another, and deleted_at when
-- its own was deleted, which says nothing of its rows then.
create table tidemark.compaction (
    path       text primary key,
    stream     text   not null,
    event_day  date   not null,
    -- Its place in the chain that the archive has of this stream and day.
    number     bigint not null,
    rows       bigint not null,
    bytes      bigint not null,
    checksum   text   not null,
    -- The files that it was made of: kept for a while for readers that still have their names.
    replaced   text[] not null,
    -- Whether segments that are kept lie in it; later it is itself replaced, or its day leaves the archive.
    current    boolean not null default true,
    adopted_at timestamptz not null,
    -- When what it replaced was deleted, and when it was deleted itself.
    cleared_at timestamptz,
    deleted_at timestamptz,
    unique (stream, event_day, number)
);
create index compaction_current on tidemark.compaction (stream, event_day) where current;
create index compaction_to_clear on tidemark.compaction (adopted_at) where cleared_at is null;
create index compaction_kept on tidemark.compaction (stream, event_day) where deleted_at is null;

alter table tidemark.segment add column compacted text references tidemark.compaction;
create index segment_compacted on tidemark.segment (compacted) where compacted is not null;
create index segment_as_sealed on tidemark.segment (stream, event_day) include (generation)
    where compacted is null and removed_at is null;
