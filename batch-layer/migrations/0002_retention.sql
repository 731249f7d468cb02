-- A segment leaves the archive in two steps: marked (removed_at), then its file deleted. A process that is killed
-- between them leaves what the next one finishes.
alter table tidemark.segment add column deleted_at timestamptz;
create index segment_to_delete on tidemark.segment (path) where removed_at is not null and deleted_at is null;
