"""Checks that Spark merges the sketches here with its own: pip install pyspark; python spark.py (wants Java 17)

For each <values>.<count>.tidemark.sk, Spark's `hll_union` and `hll_union_agg` of ours and its `hll_sketch_agg(.., 12)`
must estimate what they do of Spark's own sketches alone: of the same values, whose registers then are the same, and of
values half of which are new. It has no float sketches. Ours must also count, read alone, as many as there are.
"""

from pathlib import Path

from pyspark.sql import SparkSession

FOLDER = Path(__file__).parent
VALUES = {"text": "concat('user-', id)", "int": "id * 7919 - 1000"}

spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.driver.memory", "1g")
    .config("spark.ui.enabled", "false")
    .config("spark.sql.shuffle.partitions", "1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
print("Spark", spark.version)


def agg(value, start, end):
    """Spark's own sketch of the values with numbers in [start, end)."""
    return f"(select hll_sketch_agg({value}, 12) from range({start}, {end}))"


def estimates(first, second):
    """What `hll_union` in both orders and `hll_union_agg` estimate of two sketches together.

    Each union is merged with itself once more: Spark then estimates from the registers alone. Else, where coupons first
    become registers, it goes by a history of updates, and its own sketches' estimate depends on their order.
    """
    both = f"(select {first} s union all select {second})"
    unions = f"hll_union({first}, {second})", f"hll_union({second}, {first})", f"(select hll_union_agg(s) from {both})"
    columns = ", ".join(f"hll_sketch_estimate(hll_union(u{n}, u{n}))" for n in range(3))
    rows = ", ".join(f"{union} u{n}" for n, union in enumerate(unions))
    return tuple(spark.sql(f"select {columns} from (select {rows})").first())


for name, value in VALUES.items():
    for count in (5, 300, 5000):
        ours = f"unhex('{(FOLDER / f'{name}.{count}.tidemark.sk').read_bytes().hex()}')"
        theirs = agg(value, 0, count)
        alone = spark.sql(f"select hll_sketch_estimate({ours}), hll_sketch_estimate({theirs})").first()
        same = estimates(ours, theirs), estimates(theirs, theirs), estimates(ours, ours)
        other = agg(value, count // 2, count // 2 + count)
        half = estimates(ours, other), estimates(theirs, other)
        for found, expected in ((same, count), (half, count // 2 + count), ((alone[:1],), count)):
            numbers = {number for row in found for number in row}
            assert len(numbers) == 1, (name, count, found)
            assert abs(numbers.pop() - expected) <= 0.05 * expected, (name, count, found)
        print(
            f"{count:5} {name}s: ours alone {alone[0]}, Spark's alone {alone[1]};",
            f"ours with Spark's {same[0][0]}, Spark's with Spark's {same[1][0]};",
            f"with {count // 2} new values {half[0][0]}, {half[1][0]}",
        )
spark.stop()
