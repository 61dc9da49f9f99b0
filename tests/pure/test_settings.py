"""Settings: where a value comes from, and how each kind of mistake is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from balsamfut import settings
from balsamfut.errors import SettingsError
from balsamfut.settings import Database, Elastic, Interchange, Pilot, Settings, Wire, load, render

EVERYTHING: dict[str, Any] = {
    "walltime": "20m", "retries": 2, "tags": {"a key": 'a "value"'}, "environment": {"X": "1"}, "memory": "4GB",
    "cleanup_files": ["*.tmp", "core"], "gpus_per_rank": 0.5, "mpi": True}


def write(site: Path, text: str) -> Path:
    path = site / "settings.toml"
    path.write_text(text)
    return path


def refusal(site: Path, text: str = "", **environ: str) -> str:
    write(site, text)
    with pytest.raises(SettingsError) as caught:
        load(site, environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- where values come from


def test_a_site_without_a_file_has_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == Settings()
    assert {source for _, _, source in load(tmp_path, {}).explain()} == {"default"}


def test_a_variable_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, '[pilot]\nnodes = 4\nplatform = "aurora"\n[defaults]\nretries = 1\nwalltime = "5m"\n')
    found = load(tmp_path, {"BALSAMFUT_PILOT_NODES": "8", "BALSAMFUT_DEFAULTS_RETRIES": "3", "HOME": "/"})
    rows = {key: (value, source) for key, value, source in found.explain()}
    assert rows["pilot.nodes"] == (8, "BALSAMFUT_PILOT_NODES")
    assert rows["pilot.platform"] == ("aurora", str(path))
    assert rows["pilot.max_workers"] == (0, "default")
    assert rows["defaults.retries"] == (3, "BALSAMFUT_DEFAULTS_RETRIES")
    assert rows["defaults.walltime"] == ("5m", str(path))
    assert found.pilot == Pilot(platform="aurora", nodes=8)


def test_the_environment_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "2.5")
    assert load(tmp_path).interchange.linger == 2.5


def test_defaults_are_read_as_options_of_apps_are(tmp_path: Path) -> None:
    write(tmp_path, '[defaults]\nwalltime = "20m"\ntags = {run = "7"}\n')
    given = load(tmp_path, {"BALSAMFUT_DEFAULTS_MEMORY": "4GB"}).options()
    assert (given.options.walltime, given.resources.memory) == (1200.0, 4_000_000_000)
    assert given.extra.tags == (("run", "7"),)


def test_variables_that_name_no_section_are_not_settings(tmp_path: Path) -> None:
    environ = {"BALSAMFUT_TASK_ID": "3", "BALSAMFUT_MARK": "x:1:1", "BALSAMFUT_WORKDIR": "/w", "BALSAMFUT_CRASH": "a:1"}
    assert load(tmp_path, environ) == Settings()


def test_the_database_lies_in_the_site_unless_it_is_a_url(tmp_path: Path) -> None:
    assert load(tmp_path, {}).database_url(tmp_path) == str(tmp_path / "balsamfut.db")
    url = "postgresql://u:secret@h/x"
    found = load(tmp_path, {"BALSAMFUT_DATABASE_URL": url})
    assert found.database_url(tmp_path) == url
    assert "secret" not in str(found.explain()) and "postgresql://u:***@h/x" in str(found.explain())


def test_a_site_survives_the_loss_of_the_machine_and_an_embedded_one_that_of_a_process() -> None:
    assert (Settings().synchronous(embedded=False), Settings().synchronous(embedded=True)) == ("FULL", "NORMAL")
    chosen = Settings(database=Database(synchronous="FULL"))
    assert chosen.synchronous(embedded=True) == "FULL"


# ---- refusals


@pytest.mark.parametrize(("text", "says"), [
    ("[pilots]\nnodes = 1", "there is no section [pilots]; did you mean pilot?"),
    ("[coffee]", "there is no section [coffee]; there are database, wire, interchange, pilot, elastic, defaults"),
    ("nodes = 1", "there is no key nodes outside of the sections; there are database"),
    ("pilot = 3", "right would be [pilot] and its keys below it"),
    ("[pilot]\nnode = 1", "[pilot] there is no setting node; did you mean nodes?"),
    ('[pilot]\nnodes = "2"', "[pilot] nodes takes a whole number of at least 1"),
    ("[pilot]\nnodes = 0", "not 0"),
    ("[pilot]\nnodes = true", "not True"),
    ("[pilot]\nplatform = 1", "[pilot] platform takes a text"),
    ("[pilot]\nplatform = 'auroa'", "[pilot] platform: there is no platform 'auroa'; did you mean aurora?"),
    ("[elastic]\nextra = 'filesystems'", "[elastic] extra takes key=value, separated by blanks, not 'filesystems'"),
    ("[elastic]\nextra = 'a=b =c'", "not '=c'"),
    ("[database]\nurl = 'mysql://x/y'", "[database] url: mysql databases are not supported; right would be a path"),
    ("[wire]\ninline_limit = -1", "at least 0 and at most 67108864"),
    ("[interchange]\nlinger = -0.5", "[interchange] linger takes a number of at least 0"),
    ('[interchange]\nlog_level = "loud"', '"debug", "error", "info", "warning"'),
    ("[elastic]\nenabled = 1", "[elastic] enabled takes true or false"),
    ('[elastic]\nqueues = ["prod"]', "[elastic] queues takes a text (the queues that may be used"),
    ("[elastic]\nmax_blocks = 0", "[elastic] max_blocks takes a whole number of at least 1"),
    ('[database]\nsynchronous = "OFF"', '"FULL", "NORMAL", "auto"'),
    ("[defaults]\nwaltime = 3", "[defaults] there is no option 'waltime'; did you mean walltime"),
    ('[defaults]\nwalltime = "soon"', "[defaults] walltime takes a duration"),
])
def test_what_is_not_understood_is_refused_with_the_file_the_key_and_what_would_be_right(
        tmp_path: Path, text: str, says: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path}/settings.toml: ") and says in message


@pytest.mark.parametrize(("text", "says"), [
    ("[pilot]\nnodes = = 2", ", line 2, column 9: invalid value"),
    ("[pilot\n", ", line 1, column 7: expected ']'"),
    ("[pilot]\nnodes = ", ", at its end: invalid value"),
    ("[pilot]\nnodes = 1\nnodes = 2\n", ", line 3, column 10: cannot overwrite a value"),
])
def test_broken_toml_is_refused_with_its_line_and_the_reason(tmp_path: Path, text: str, says: str) -> None:
    assert refusal(tmp_path, text).startswith(f"{tmp_path}/settings.toml{says}")


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_bytes(b"[pilot]\nplatform = \"\xff\"")
    with pytest.raises(SettingsError, match="settings.toml, line 2: this is not UTF-8 text"):
        load(tmp_path, {})


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").mkdir()
    with pytest.raises(SettingsError, match="settings.toml cannot be read: Is a directory"):
        load(tmp_path, {})


@pytest.mark.parametrize(("variable", "value", "says"), [
    ("BALSAMFUT_PILOT_NODES", "many", "the variable BALSAMFUT_PILOT_NODES: nodes takes a whole number"),
    ("BALSAMFUT_PILOT_NODE", "1", "the variable BALSAMFUT_PILOT_NODE: there is no setting node; did you mean nodes?"),
    ("BALSAMFUT_DATABSE_URL", "x", "did you mean BALSAMFUT_DATABASE_URL?"),
    ("BALSAMFUT_DEFAULTS_RETRIES", "x", "BALSAMFUT_DEFAULTS_RETRIES: [defaults] retries"),
])
def test_variables_are_refused_by_their_names(tmp_path: Path, variable: str, value: str, says: str) -> None:
    assert says in refusal(tmp_path, **{variable: value})


def test_defaults_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    assert "give one" in refusal(tmp_path, "[defaults]\nwalltime = 60\nwall_time_min = 1")


# ---- writing


def test_the_file_that_is_written_for_a_new_site_says_everything_and_sets_nothing(tmp_path: Path) -> None:
    text = render()
    write(tmp_path, text)
    assert load(tmp_path, {}) == Settings()
    for section, kind in settings.SECTIONS.items():
        assert f"\n[{section}]\n" in text
        for name in kind.__struct_fields__:
            assert f"\n# {name} = " in text


def test_the_values_shown_as_comments_are_the_defaults(tmp_path: Path) -> None:
    lines = [line.removeprefix("# ") if " = " in line and '"20m"' not in line and "retries" not in line else line
             for line in render().splitlines()]
    write(tmp_path, "\n".join(lines))
    found = load(tmp_path, {})
    assert msgspec.structs.replace(found, sources={}) == Settings()
    assert len(found.sources) == sum(len(kind.__struct_fields__) for kind in settings.SECTIONS.values())


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
amounts = st.floats(0, 1e9)
files = words.filter(lambda text: "://" not in text)


@hypothesis_settings(max_examples=25)
@given(st.builds(Settings, database=st.builds(Database, url=files, synchronous=st.sampled_from(["FULL", "auto"])),
                 wire=st.builds(Wire, inline_limit=st.integers(0, 1 << 26)),
                 interchange=st.builds(Interchange, linger=amounts, interface=words, lease=st.floats(1, 1e9),
                                       log_level=st.sampled_from(["debug", "error"])),
                 pilot=st.builds(Pilot, platform=st.sampled_from(["aurora", "frontier"]), nodes=st.integers(1, 1 << 40),
                                 max_workers=st.integers(0, 99), hosts=words, mpiexec=words, preamble=words,
                                 provider=st.sampled_from(["", "slurm"]), end_margin=amounts, pretend=st.booleans()),
                 elastic=st.builds(Elastic, enabled=st.booleans(), project=words, extra=st.sampled_from(["", "a=b c="]),
                                   queues=words, min_blocks=st.integers(0, 5), max_blocks=st.integers(5, 9),
                                   min_nodes=st.integers(1, 3), max_nodes=st.just(0), total_nodes=st.integers(3, 9),
                                   max_hours=amounts, node_hours=amounts, idle=amounts, backoff=st.floats(1, 1e9)),
                 defaults=st.sampled_from([{}, EVERYTHING])))
def test_settings_are_the_same_after_writing_and_loading(
        tmp_path_factory: pytest.TempPathFactory, chosen: Settings) -> None:
    site = tmp_path_factory.getbasetemp()
    (site / "settings.toml").write_text(render(chosen), encoding="utf-8", newline="")
    assert msgspec.structs.replace(load(site, {}), sources={}) == chosen


def test_reading_settings_loads_nothing_heavy() -> None:
    code = "import sys, balsamfut.settings; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert not {"sqlalchemy", "zmq", "jinja2", "click", "rich", "cloudpickle"} & set(done.stdout.split())


@pytest.mark.parametrize(("text", "says"), [
    ("[elastic]\nmin_nodes = 5\nmax_nodes = 3\n", r"min_nodes = 5 \(.*settings.toml\) is more than max_nodes = 3"),
    ("[elastic]\nmin_blocks = 30\n", r"min_blocks = 30 \(.*settings.toml\) is more than max_blocks = 20 \(default\)"),
    ("[elastic]\nmin_nodes = 9\ntotal_nodes = 8\n", "min_nodes = 9 .* is more than total_nodes = 8"),
    ("[pilot]\nprovider = 'pbz'\n", 'provider takes one of "", "local", "pbs", "slurm"'),
    ("[interchange]\nlease = 0\n", "lease takes a number of at least 1"),
])
def test_values_that_contradict_each_other_or_cannot_be_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(SettingsError, match=says):
        load(tmp_path, {})


def test_no_limit_contradicts_nothing(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[elastic]\nmin_nodes = 5\n")
    assert load(tmp_path, {}).elastic.max_nodes == 0


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_numbers_that_are_not_finite_are_refused_from_files_and_variables(tmp_path: Path, number: str) -> None:
    (tmp_path / "settings.toml").write_text(f"[elastic]\nidle = {number}\n")
    with pytest.raises(SettingsError, match=r"toml: \[elastic\] idle takes a number .*, not -?(inf|nan)"):
        load(tmp_path, {})
    with pytest.raises(SettingsError, match="INTERCHANGE_LEASE: lease takes a number .*, not '-?(inf|nan)'"):
        load(tmp_path / "none", {"BALSAMFUT_INTERCHANGE_LEASE": number})
