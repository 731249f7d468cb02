-- The batch view's ledger. One schema for what the layers keep for themselves, one for the views' rows, one for raw
-- facts, one for what people and BI tools read.
create schema if not exists tidemark;
create schema if not exists views;
create schema if not exists facts;
create schema if not exists metrics;

-- What all layers must agree on beside the catalog; fixed when the first tidemark is written.
create table tidemark.layout (
    only_row boolean primary key default true check (only_row),
    epoch_ms bigint not null,
    groups   int    not null,
    pane_ms  bigint not null
);

-- Every command that may flip, with what came of it.
create table tidemark.run (
    run_id            bigserial primary key,
    kind              text not null check (kind in ('init', 'run', 'backfill', 'retry', 'rollback')),
    status            text not null check (status in ('running', 'done', 'failed', 'nothing')),
    started_at        timestamptz not null,
    finished_at       timestamptz,
    parameters        jsonb not null default '{}',
    generation_before bigint,
    generation_after  bigint,
    days              int    not null default 0,
    rows              bigint not null default 0,
    imports           jsonb  not null default '[]',
    error             text
);

-- The tidemark, a row a generation. A flip inserts the next generation: where two try, the primary key lets one win.
create table tidemark.tidemark (
    generation bigint primary key,
    flipped_at timestamptz not null,
    run_id     bigint references tidemark.run,
    cuts       jsonb not null
);

-- The ledger: every Parquet segment whose rows lie below the tidemark, and since which generation.
create table tidemark.segment (
    path        text primary key,
    stream      text   not null,
    topic       text   not null,
    partition   int    not null,
    from_offset bigint not null,
    to_offset   bigint not null,
    event_day   date   not null,
    rows        bigint not null,
    bytes       bigint not null,
    checksum    text   not null,
    import_id   text,
    generation  bigint not null,
    removed_at  timestamptz
);
create index segment_by_day on tidemark.segment (stream, event_day);
create index segment_by_import on tidemark.segment (import_id) where import_id is not null;

-- What the log had lost before it was archived.
create table tidemark.gap (
    topic       text   not null,
    partition   int    not null,
    from_offset bigint not null,
    to_offset   bigint not null,
    cause       text   not null,
    generation  bigint not null,
    primary key (topic, partition, from_offset)
);

-- Every computed version of a metric's day. table_name is null where the day has no rows.
create table tidemark.view_version (
    version_id   bigserial primary key,
    metric       text   not null,
    version      text   not null,
    event_day    date   not null,
    attempt      int    not null,
    table_name   text,
    rows         bigint not null,
    hash         text   not null,
    inputs       text   not null,
    run_id       bigint not null references tidemark.run,
    partial      boolean not null default false,
    created_at   timestamptz not null,
    retired_at   timestamptz,
    retired_xid  xid8,
    dropped_at   timestamptz
);
create index view_version_by_day on tidemark.view_version (version, event_day);

-- The pointers: which version of a metric's day readers see. Only a flip changes them.
create table tidemark.live_version (
    metric     text   not null,
    version    text   not null,
    event_day  date   not null,
    version_id bigint not null references tidemark.view_version,
    primary key (version, event_day)
);
create index live_version_by_id on tidemark.live_version (version_id);

comment on schema metrics is 'One view a metric: the live batch rows, named and typed as in the catalog.';
comment on table tidemark.tidemark is 'Below these cuts the batch view holds everything; the realtime view holds the rest.';
