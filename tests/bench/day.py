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
NUMBERS = {
    # key: a number of it, by which hardly any two are alike; in SQL that DuckDB and Postgres understand in the same way
    None: "0",
    "uuid": "translate(substr(uuid, 1, 8), 'abcdef', '012345')::bigint",
    "document_id": "document_id",
    "display_id": "display_id",
    "geo": "split_part(geo, '>', 3)::bigint",
    "geo, document_id": "split_part(geo, '>', 3)::bigint * 100003 + document_id",
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


def weight(name):
    """What a cell's value is multiplied by, for a sum that tells in which cells the values are.

    `slot` is how many times five minutes lie before its bucket. Key and slot are factors: what two keys have in two
    buckets can't be exchanged unnoticed either."""
    key, _, _ = GROUPINGS[name]
    return f"(({NUMBERS[key]}) * 7919 % 1000003 + 1) * (slot % 1009 + 1)"


def weighed(connection, out, name):
    """How many cells a metric has, the sum of their values, that of their weighed values, and what they were weighed by."""
    cells = f"(select *, bucket // 300000 as slot from '{out}/{name}.parquet')"
    by = weight(name)
    sums = f"select count(*), sum(value)::bigint, sum(value * {by})::bigint from {cells}"
    return *connection.execute(sums).fetchone(), by


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
    cells = {name: weighed(connection, out, name) for name in GROUPINGS}
    print(json.dumps({"version": duckdb.__version__, "seconds": seconds, "cpu": cpu, "peak": taken, "cells": cells}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "make":
        make(*arguments)
    else:
        os.makedirs(arguments[0], exist_ok=True)
        reference(arguments[0], arguments[1:])
