-- Whether a segment's rows are kept as facts: from the flip that appended them until retention drops their day.
alter table tidemark.segment add column facts boolean not null default false;
