-- The keys, the log of what was asked with them and the saved boards, in a schema of their own; nothing changes where it is
-- there already.
-- `infra/postgres/roles.sql` makes the schema for its role, which then needs no right to make one.
-- What is there already is no news.
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('tidemark access schema'));

do $$
begin
    if to_regnamespace('access') is null then
        create schema access;
    end if;
end
$$;

create table if not exists access.key (
    key_id          text primary key check (key_id ~ '^[0-9a-f]{16}$'),
    name            text not null,
    -- SHA-256 of the token's secret, which is stored nowhere.
    secret_hash     bytea not null check (length(secret_hash) = 32),
    grants          jsonb not null,
    rate_per_second double precision check (rate_per_second between 0.001 and 1000000),
    created_at      timestamptz not null,
    expires_at      timestamptz,
    revoked_at      timestamptz
);
comment on table access.key is 'API keys: made and revoked by `serving-layer keys`, or by SQL.';

create table if not exists access.log (
    asked_at  timestamptz not null,
    -- As in the header `x-query-id` and in the serving layer''s log.
    query_id  text not null,
    key_id    text not null,
    key_name  text not null,
    method    text not null,
    route     text not null,
    -- The body, or the path with its parameters, or of what was put both; at most 8 KiB.
    asked     text not null,
    -- 499: the client left before the answer.
    status    smallint not null,
    took_ms   bigint not null
);
create index if not exists log_asked_at on access.log using brin (asked_at);
comment on table access.log is 'Who asked what, one row a request; older ones are deleted.';

create table if not exists access.board (
    -- The key that it belongs to; empty: nobody's, put where no keys were needed.
    key_id     text not null,
    name       text collate "C" not null check (char_length(name) between 1 and 100),
    shared     boolean not null,
    -- As it was put, byte for byte; jsonb would write it anew.
    board      json not null check (json_typeof(board) = 'object'),
    -- One more at each change.
    version    bigint not null,
    updated_at timestamptz not null,
    primary key (key_id, name)
);
create unique index if not exists board_shared_name on access.board (name) where shared;
comment on table access.board is 'Saved boards of the web page, by the key that they belong to.';
