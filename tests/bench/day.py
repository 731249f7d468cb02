"""Days of records for the batch bench, and DuckDB's way of computing them.

    day.py make FOLDER DATE ROWS SEED SHAPE   writes a day as Parquet (uniform, skewed); prints its peak memory in MB
    day.py reference OUT FILE...              computes a day from the archive's segments; prints JSON

Needs the package duckdb (https://pypi.org/project/duckdb).
"""

import datetime
import json
import os
import resource
import sys
import time

import duckdb

PART = 20_000_000  # So many records are made at once, each part as a file: the memory is one's, however many there are.
GROUPINGS = {
    # name: (key and bucket, aggregate)
    "user_day": ("uuid", 86_400_000, "count(*)"),
    "document": ("document_id", 300_000, "count(*)"),
    "display_day": ("display_id", 86_400_000, "count(*)"),
    "geo_document": ("geo, document_id", 3_600_000, "count(*)"),
    "geo": ("geo", 300_000, "count(*)"),
    "users": (None, 300_000, "count(distinct uuid)"),
    "users_day": (None, 86_400_000, "count(distinct uuid)"),
    "geo_users_day": ("geo", 86_400_000, "count(distinct uuid)"),
}


def make(folder, date, rows, seed, shape):
    """Keys by a power law, times spread over the day; every hundredth record comes once more.

    Of a skewed day the first user, document, display and place have half of the records, each another half."""
    rows = int(rows)
    start = int(datetime.datetime.fromisoformat(date + "T00:00:00+00:00").timestamp()) * 1000
    connection = duckdb.connect()
    connection.execute("set memory_limit = '1GB'")
    connection.execute(f"set temp_directory = '{folder}/temp'")

    def uniform(salt):
        # In [0, 1), from a hash, so that a seed gives the same day everywhere.
        return f"(hash(i * 16 + {salt} + {seed} * 1000003) >> 11) / 9007199254740992.0"

    def draw(salt, n, power):
        rank = f"cast(floor({n} * pow({uniform(salt)}, {power})) as bigint)"
        return f"(case when {uniform(salt + 8)} < 0.5 then 0 else {rank} end)" if shape == "skewed" else rank

    for begin in range(0, rows, PART):
        connection.execute(f"""
            copy (
                select
                    printf('%016x', hash({draw(1, 2_000_000, 1.5)})) as uuid,
                    {draw(2, 100_000, 3)} as document_id,
                    {draw(3, 1_000_000, 2)} as display_id,
                    'C' || {draw(4, 2_000, 3)} % 40 || '>S' || {draw(4, 2_000, 3)} % 700 || '>' || {draw(4, 2_000, 3)} as geo,
                    {start} + cast(i * 86400000.0 / {rows} as bigint) as ts,
                    i as id
                from (select case when n % 101 = 100 then greatest(n - n // 101 - 5000, 0) else n - n // 101 end as i
                      from range({begin}, {min(begin + PART, rows)}) as t(n))
            ) to '{folder}/{begin:012}.parquet' (format parquet, compression zstd, row_group_size 262144)
        """)
    print(peak())


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reference(out, files):
    connection = duckdb.connect()
    connection.execute(f"set temp_directory = '{out}/temp'")
    begun, cpu = time.time(), time.process_time()
    connection.execute(f"create view raw as select * from read_parquet({files})")
    connection.execute("""
        create temp table repeated as
            select _identity_hi, _identity_lo from raw group by all having count(*) > 1
    """)
    columns = "uuid, document_id, display_id, geo, epoch_ms(_event_time) as ts"
    connection.execute(f"""
        create temp table day as
            select {columns} from raw anti join repeated using (_identity_hi, _identity_lo)
            union all
            select {columns} from (
                select distinct on (_identity_hi, _identity_lo) *
                from raw semi join repeated using (_identity_hi, _identity_lo)
                order by _identity_hi, _identity_lo, _topic, _partition, _offset
            )
    """)
    for name, (key, width, aggregate) in GROUPINGS.items():
        key = f"{key}, " if key else ""
        connection.execute(f"""
            copy (select {key} ts // {width} * {width} as bucket, {aggregate} as value from day group by all)
            to '{out}/{name}.parquet' (format parquet, compression zstd)
        """)
    seconds, cpu = time.time() - begun, time.process_time() - cpu
    taken = peak()
    cells = {
        name: connection.execute(f"select count(*), sum(value)::bigint from '{out}/{name}.parquet'").fetchone()
        for name in GROUPINGS
    }
    print(json.dumps({"version": duckdb.__version__, "seconds": seconds, "cpu": cpu, "peak": taken, "cells": cells}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "make":
        make(*arguments)
    else:
        os.makedirs(arguments[0], exist_ok=True)
        reference(arguments[0], arguments[1:])
