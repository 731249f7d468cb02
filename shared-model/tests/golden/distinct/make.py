"""Makes and checks the sketches here with Apache DataSketches' C++ library: pip install datasketches; python make.py

Writes <values>.<count>.cpp.sk, then reads <values>.<count>.tidemark.sk (written by tests/golden.rs with
UPDATE_GOLDEN=1) and checks that the C++ library takes both for sketches of the same values.
"""

from pathlib import Path

import datasketches as ds

FOLDER = Path(__file__).parent
VALUES = {"text": lambda n: f"user-{n}", "int": lambda n: n * 7919 - 1000, "float": lambda n: n / 8.0}


def union(*sketches):
    """The estimate of a union, which the library takes from the registers alone."""
    merged = ds.hll_union(12)
    for sketch in sketches:
        merged.update(sketch)
    return merged.get_result(ds.tgt_hll_type.HLL_8).get_estimate()


for name, value in VALUES.items():
    for count in (5, 300, 5000):
        theirs = ds.hll_sketch(12, ds.tgt_hll_type.HLL_8)
        for n in range(count):
            theirs.update(value(n))
        (FOLDER / f"{name}.{count}.cpp.sk").write_bytes(theirs.serialize_compact())
        path = FOLDER / f"{name}.{count}.tidemark.sk"
        if path.exists():
            ours = ds.hll_sketch.deserialize(path.read_bytes())
            # Of two each: a union of one alone keeps its history of updates, and estimates from that.
            estimates = union(ours, ours), union(theirs, theirs), union(ours, theirs), union(theirs, ours)
            assert len(set(estimates)) == 1, (name, count, estimates)
            print(f"{count:5} {name}s: {estimates[0]:.3f}; alone, as read: {ours.get_estimate():.3f}")
