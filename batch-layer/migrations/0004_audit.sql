-- What the audit of each move of the tidemark found: merge(batch at T0, realtime [T0, T1)) against batch at T1.
create table tidemark.audit (
    run_id      bigint primary key references tidemark.run,
    audited_at  timestamptz not null,
    -- Whether all, some or none of what moved was compared.
    status      text    not null check (status in ('whole', 'partly', 'none')),
    -- Whether something must be looked at: an unexplained difference.
    alarm       boolean not null,
    cells       bigint  not null,
    missing     bigint  not null,
    extra       bigint  not null,
    different   bigint  not null,
    -- Deliveries that the realtime view counted and the batch view removed as repeats.
    healed      bigint  not null,
    -- The greatest unexplained error of a metric, relative to what the records between brought.
    error       double precision not null,
    threshold   double precision,
    repeats     jsonb   not null,
    metrics     jsonb   not null,
    not_audited jsonb   not null,
    cuts        jsonb   not null
);
comment on table tidemark.audit is 'One row a run that moved the tidemark, or was refused: what a reader would have had, against the batch view.';

-- A run that its audit didn't let publish.
alter table tidemark.run drop constraint run_status_check;
alter table tidemark.run add constraint run_status_check
    check (status in ('running', 'done', 'failed', 'nothing', 'refused'));
