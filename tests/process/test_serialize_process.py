"""Code, classes and globals between a script and another interpreter that unpickles, calls and pickles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import balsamfut

ROOT = str(Path(balsamfut.__file__).parents[1])

WORKER = """
import sys, struct
from balsamfut import serialize

def read():
    size = sys.stdin.buffer.read(4)
    if not size:
        sys.exit()
    return sys.stdin.buffer.read(struct.unpack("<i", size)[0])

while True:
    code, args = serialize.loads_code(read()), serialize.loads_args(read())
    try:
        answer = b"r" + serialize.dumps_result(code.func(*args[0], **args[1]))[0]
    except Exception as exc:
        answer = b"e" + serialize.dumps_exception(exc, host="", worker="w")
    sys.stdout.buffer.write(struct.pack("<i", len(answer)) + answer)
    sys.stdout.buffer.flush()
"""

PREAMBLE = """
import struct, subprocess, sys
from balsamfut import serialize

worker = subprocess.Popen([sys.executable, "worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

def call(func, *args):
    for data in serialize.dumps_code(serialize.AppCode(func)), serialize.dumps_args(args, {})[0]:
        worker.stdin.write(struct.pack("<i", len(data)) + data)
    worker.stdin.flush()
    answer = worker.stdout.read(struct.unpack("<i", worker.stdout.read(4))[0])
    if answer[:1] == b"e":
        raise serialize.loads_exception(answer[1:], None)
    return serialize.loads(answer[1:], None)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script that has `call(func, *args)`, which happens in one other process; what it prints."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    (tmp_path / "worker.py").write_text(WORKER)

    def run(script: str) -> str:
        (tmp_path / "script.py").write_text(PREAMBLE + script + "\nworker.stdin.close()\nworker.wait()\n")
        done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30,
                              check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_instances_of_the_scripts_classes_come_back_as_the_same_class_unchanged(run):
    assert run("""
import enum
class Point:
    made = 0
    def __init__(self, x):
        self.x = x
        Point.made += 1
    def where(self):
        return SCALE * self.x
class Colour(enum.Enum):
    RED = 1
SCALE = 2
def double(point):
    return Point(2 * point.x), Colour.RED
method = Point.where
got, colour = call(double, Point(5))
Point.made = 7
again, _ = call(double, got)
SCALE = 3
print(type(got) is Point, again.x, Point.made, Point.where is method, again.where(), colour is Colour.RED)
""") == "True 20 7 True 60 True"


def test_exceptions_of_the_scripts_classes_are_caught_as_such(run):
    assert run("""
class Mine(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.b = b
def fails():
    raise Mine(1, 2)
try:
    call(fails)
except Mine as exc:
    print(exc, exc.b, type(exc.__cause__).__name__, "in fails" in str(exc.__cause__))
""") == "1 and 2 2 RemoteTraceback True"


def test_functions_of_one_script_share_their_globals_in_a_worker(run):
    assert run("""
model = None
registry = {}
level = 1
def initialise(value):
    global model
    model = value
    registry["made"] = True
def use():
    return model, registry, level
call(initialise, "loaded")
print(call(use))
level = 2
print(call(lambda: (model, registry, level)))
""") == "('loaded', {'made': True}, 1)\n('loaded', {'made': True}, 2)"


def test_a_function_that_comes_home_has_the_globals_of_its_script(run):
    assert run("""
count = 1
def read():
    return count
def give():
    global count
    count = 99
    return read
back = call(give)
print(count)
count = 5
print(back(), back.__globals__ is globals(), type(__builtins__).__name__)
""") == "1\n5 True module"


def test_code_of_a_file_that_was_loaded_by_hand_travels_by_value(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "loaded_by_hand.py").write_text(
        "FACTOR = 3\nclass Pair:\n    def __init__(self, a):\n        self.a = a\n"
        "def triple(pair):\n    return Pair(FACTOR * pair.a)\n")
    assert run("""
import functools, importlib.util
spec = importlib.util.spec_from_file_location("loaded_by_hand", "elsewhere/loaded_by_hand.py")
module = importlib.util.module_from_spec(spec)
sys.modules["loaded_by_hand"] = module
spec.loader.exec_module(module)
got = call(module.triple, module.Pair(2))
print(got.a, type(got) is module.Pair, call(functools.partial(module.triple, module.Pair(3))).a)
""") == "6 True 9"


def test_code_of_an_importable_module_travels_by_name(run, tmp_path):
    (tmp_path / "importable_one.py").write_text("import os\nPID = os.getpid()\ndef pid():\n    return PID\n")
    assert run("""
import importable_one, os
print(call(importable_one.pid) == os.getpid(), call(importable_one.pid) == worker.pid)
""") == "False True"


def test_plain_payloads_need_neither_cloudpickle_nor_tblib():
    subprocess.run([sys.executable, "-c", """
import sys
from balsamfut import keys, serialize
data, _ = serialize.dumps_args((1, [2]), {"a": "b"})
assert serialize.loads_args(data) == ((1, [2]), {"a": "b"})
serialize.error_payload(ValueError())
keys.call_key(b"", (1, [2]), {"a": "b"})
assert not {"cloudpickle", "tblib"} & set(sys.modules)
"""], check=True, timeout=30, cwd=ROOT)
