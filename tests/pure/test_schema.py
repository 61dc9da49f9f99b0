"""How values become columns, and which file system a database is on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut import schema
from balsamfut.interchange.mounts import NETWORK, filesystem
from balsamfut.model import Blob, Joined, Options, Payload, Resources

blobs = st.builds(Blob, st.text("0123456789abcdef", max_size=64), st.integers(0, 1 << 40))
plain = st.binary(max_size=30) | st.binary(max_size=10).map(lambda tail: schema.MARK + tail)
payloads = st.recursive(plain | blobs, lambda inner: st.builds(Joined, plain, st.lists(inner, max_size=3)),
                        max_leaves=6)


@given(payloads)
def test_a_payload_is_the_same_after_packing_and_unpacking(payload: Payload) -> None:
    assert schema.unpack_payload(schema.pack_payload(payload)) == payload


@given(st.binary(max_size=30))
def test_plain_bytes_are_packed_as_themselves(payload: bytes) -> None:
    assert payload.startswith(schema.MARK) or schema.pack_payload(payload) is payload


@settings(max_examples=50)
@given(st.text())
def test_cleaned_text_has_nothing_that_a_database_refuses(text: str) -> None:
    cleaned = schema.clean(text)
    assert "\0" not in cleaned
    assert cleaned == text or "\0" in text


def test_structs_are_json_objects_that_older_and_newer_versions_can_read() -> None:
    resources = Resources(num_nodes=3, launch_params=(("a", "b"),))
    text = schema.fields_to_json(resources)
    assert schema.fields_from_json(text, Resources) == resources
    fields = msgspec.json.decode(text)
    del fields["mpi"]
    fields["coffee_per_rank"] = 2
    assert schema.fields_from_json(msgspec.json.encode(fields).decode(), Resources) == resources


def test_every_option_is_kept_in_json() -> None:
    options = Options(walltime=1.5, retries=2, priority=-1, environment=(("A", "b"),), shell_preamble="set -e",
                      cleanup_files=("*.tmp",), cache=True)
    assert schema.fields_from_json(schema.fields_to_json(options), Options) == options


@pytest.mark.parametrize(("path", "kind"), [
    ("/home/u/site/balsamfut.db", "nfs4"), ("/lus/flare/projects/x.db", "lustre"), ("/lustre/x.db", "ext4"),
    ("/tmp/x.db", "tmpfs"), ("/my data/x.db", "gpfs"), ("/home", "nfs4"), ("/daos/pool/x", "fuse.daos")])
def test_the_file_system_is_that_of_the_deepest_mount(path: str, kind: str) -> None:
    mounts = """/dev/sda / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.1 0 0
mgs:/flare /lus/flare lustre rw,flock 0 0
mgs:/x /lus lustre rw 0 0
swap /tmp ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
gpfs0 /my\\040data gpfs rw 0 0
dfuse /daos fuse.daos rw 0 0
nonsense
"""
    assert filesystem(Path(path), mounts) == kind
    assert (kind.removeprefix("fuse.") in NETWORK) is (kind not in ("ext4", "tmpfs"))
