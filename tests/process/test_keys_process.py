"""Keys must be the same in every interpreter, whatever its hash seed and wherever its code lies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import balsamfut

SCRIPT = '''
import collections, dataclasses, enum, functools, json, pathlib
from balsamfut.keys import call_key, code_key

class Kind(enum.Enum):
    ONE = "one"
    TWO = "two"

@dataclasses.dataclass
class Conf:
    names: set
    kind: Kind = Kind.ONE

LIMITS = {"low": 1, "high": {"a", "b", "c"}}

def helper(x):
    return x in {"red", "green", "blue", "cyan"} and x in LIMITS

def func(x, y=frozenset({"p", "q", "r"})):
    def nested(z):
        return helper(z) or func(z)
    return [nested(part) for part in x if part not in {"a", "b", "c", "d"}]

values = [
    {"a": 1, "b": [2.0, None]}, {"x", "y", "z", "w"}, frozenset({("a", 1), ("b", 2)}),
    {1: 2, "a": 3, (1, "b"): 4, None: 5},
    Conf({"n1", "n2", "n3"}), Kind.TWO, pathlib.PurePosixPath("/a/b"), collections.OrderedDict(a={"s", "t"}),
    functools.partial(func, {"k", "l"}, y={"m", "n"}), func, Conf, lambda x: x in {"u", "v", "w"}, len,
    float("nan"), "text",
]
print(json.dumps([call_key(b"app", (value,), {"z": 1, "a": value}).hex() for value in values] + [code_key(func).hex()]))
'''


def test_keys_are_the_same_under_every_hash_seed_and_in_every_file(tmp_path):
    seen = set()
    for seed, lines in (("0", 0), ("1", 3), ("77", 40)):
        script = tmp_path / f"dir{seed}" / f"script{seed}.py"
        script.parent.mkdir()
        script.write_text("# a comment\n" * lines + SCRIPT)
        environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(balsamfut.__file__).parents[1])}
        seen.add(subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=30,
                                check=True).stdout)
    assert len(seen) == 1
    assert len(set(eval(seen.pop()))) == 16   # and each differs from the others
