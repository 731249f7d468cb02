-- A role for each layer with just what it needs, and one that only reads, for people and BI tools. Run it once in the
-- database of TIDEMARK_POSTGRES as its superuser, before the first batch run; running it again changes nothing:
--   psql -d tidemark -f infra/postgres/roles.sql
--   psql -d tidemark -c '\password tidemark_batch'     -- and so on: no role has a password yet
do $$
declare
    name text;
begin
    foreach name in array array['tidemark_batch', 'tidemark_speed', 'tidemark_serving', 'tidemark_access', 'tidemark_reader'] loop
        if not exists (select from pg_roles where rolname = name) then
            execute format('create role %I login', name);
        end if;
        execute format('grant connect on database %I to %I', current_database(), name);
    end loop;
    execute format('revoke connect, temporary on database %I from public', current_database());
    -- The batch layer migrates its schemas.
    execute format('grant create on database %I to tidemark_batch', current_database());
end
$$;

-- Where the record of migrations is.
revoke create on schema public from public;
grant usage, create on schema public to tidemark_batch;

create schema if not exists tidemark authorization tidemark_batch;
create schema if not exists views authorization tidemark_batch;
create schema if not exists facts authorization tidemark_batch;
create schema if not exists metrics authorization tidemark_batch;
-- API keys, the log of who asked what and saved boards: the serving layer's other role, which sees nothing else.
create schema if not exists access authorization tidemark_access;

-- To see the snapshots of other roles' readers before a version that they may use is dropped.
grant pg_read_all_stats to tidemark_batch;

-- The speed layer reads the ledger, the serving layer also the versions' rows and the facts, a reader just what is made for
-- reading.
grant usage on schema tidemark to tidemark_speed, tidemark_serving;
grant usage on schema views to tidemark_serving;
grant usage on schema facts to tidemark_serving;
grant usage on schema metrics, facts to tidemark_reader;
grant select on all tables in schema tidemark to tidemark_speed, tidemark_serving;
grant select on all tables in schema views to tidemark_serving;
grant select on all tables in schema facts to tidemark_serving;
grant select on all tables in schema metrics, facts to tidemark_reader;
alter default privileges for role tidemark_batch in schema tidemark
    grant select on tables to tidemark_speed, tidemark_serving;
alter default privileges for role tidemark_batch in schema views grant select on tables to tidemark_serving;
alter default privileges for role tidemark_batch in schema metrics grant select on tables to tidemark_reader;
alter default privileges for role tidemark_batch in schema facts
    grant select on tables to tidemark_serving, tidemark_reader;

alter role tidemark_speed set default_transaction_read_only = on;
alter role tidemark_serving set default_transaction_read_only = on;
alter role tidemark_reader set default_transaction_read_only = on;
