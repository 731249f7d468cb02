-- The catalogs that runs worked with, each text once, so that a rollback can bring a run's own back.
create table tidemark.catalog (
    hash text primary key,
    text text not null
);
alter table tidemark.run add column catalog text references tidemark.catalog;
