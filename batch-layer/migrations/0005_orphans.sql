-- Since when a live version's metric version is not in the catalog any more: its pointer goes after a grace, which is for
-- processes that still work by an older catalog.
alter table tidemark.live_version add column orphaned_at timestamptz;
