"""Templates: what is quoted, what is not, and what is refused when."""

from __future__ import annotations

import enum
import shlex
import subprocess
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsamfut.errors import TemplateError
from balsamfut.model import Extra
from balsamfut.templates import check, command, render_command, render_extra


def render(template: str, **parameters: Any) -> str:
    return render_command(template, parameters, "f")


class Metal(str, enum.Enum):  # noqa: UP042  # its str() is not its value
    COPPER = "Cu"


@pytest.mark.parametrize(("template", "parameters", "text"), [
    ("echo {{ x }}", {"x": "a b"}, "echo 'a b'"),
    ("echo {{ x }}", {"x": "; rm -rf $HOME `id`"}, "echo '; rm -rf $HOME `id`'"),
    ("echo {{ x }}", {"x": ""}, "echo ''"),
    ("echo {{ x }} {{ y }}", {"x": 3, "y": -1.5e-10}, "echo 3 -1.5e-10"),
    ("cat {{ x }}", {"x": Path("/a dir/f")}, "cat '/a dir/f'"),
    ("cat {{ x }}", {"x": ["a", "b c", 3]}, "cat a 'b c' 3"),
    ("cat {{ x }}", {"x": ()}, "cat "),
    ("echo {{ x }}", {"x": Metal.COPPER}, "echo Cu"),
    ("echo {{ x | upper }}", {"x": "a b"}, "echo 'A B'"),
    ("echo {{ x ~ '.out' }}", {"x": "a b"}, "echo 'a b.out'"),
    ("echo {{ x | join(',') }}", {"x": ["a", "b c"]}, "echo 'a,b c'"),
    ("echo {{ x | map('upper') }}", {"x": ["a", "b c"]}, "echo A 'B C'"),
    ("echo {{ x | raw }}", {"x": "*.dat; ls"}, "echo *.dat; ls"),
    ("echo {{ x | raw }}", {"x": ["-a", "-b"]}, "echo -a -b"),
    ("echo {{ x | raw | upper }}", {"x": "a b"}, "echo 'A B'"),
    ("echo {% if x %}yes{% else %}no{% endif %}", {"x": "a b"}, "echo yes"),
    ("{% for i in x %}run {{ i }}; {% endfor %}", {"x": ["a", "b c"]}, "run a; run 'b c'; "),
    ("echo {{ 'two words' }}", {}, "echo 'two words'"),
    ("echo $HOME \"${A}\" 'b' {x} $(date)\n", {}, "echo $HOME \"${A}\" 'b' {x} $(date)\n"),
    ("echo {{ x.a }} {{ x['b'] }}", {"x": {"a": 1, "b": "c d"}}, "echo 1 'c d'"),
    ("echo <{{ x }}>", {"x": "<&>"}, "echo <'<&>'>"),
    ("echo {{ x }}", {"x": True}, "echo True"),
])
def test_values_are_quoted_when_they_are_written_and_the_text_is_left_alone(
        template: str, parameters: dict[str, Any], text: str) -> None:
    assert render(template, **parameters) == text


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_shell_splits_what_was_written_into_the_values_again(words: list[str]) -> None:
    assert shlex.split(render("{{ words }}", words=words)) == words


def test_a_real_shell_runs_nothing_that_is_in_a_value() -> None:
    evil = "$(echo pwned) `echo pwned` ; echo pwned & \n 'x \"y"
    line = render("printf %s {{ x }}", x=evil)
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == evil


def test_an_array_is_several_words() -> None:
    numpy = pytest.importorskip("numpy")
    assert render("{{ x }} {{ y }}", x=numpy.arange(3), y=numpy.float64(0.5)) == "0 1 2 0.5"


@pytest.mark.parametrize(("parameters", "sentence"), [
    ({"x": None}, "^f: x is None, which cannot be written there; leave it out with"),
    ({"x": b"ab"}, "^f: x is bytes b'ab', which cannot be written there; write a text"),
    ({"x": {"a": 1}}, "^f: x is dict"),
    ({"x": object()}, "^f: x is object"),
    ({"x": [1, None]}, "^f: a value in the template is None"),
    ({"x": "a\0b"}, "NUL"),
    ({"x": Future()}, "^f: x is a future, which cannot be written there"),
])
def test_a_value_without_a_form_is_refused_by_name(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TemplateError, match=sentence):
        render("echo {{ x }}", **parameters)


@pytest.mark.parametrize(("template", "sentence"), [
    ("echo {{ x.y }}", "f: the template cannot be rendered: .*no attribute 'y'"),
    ("echo {{ x / 2 }}", "f: the template cannot be rendered: TypeError"),
    ("{% include 'other' %}", "f: the template cannot be rendered"),
])
def test_what_goes_wrong_while_rendering_is_a_template_error(template: str, sentence: str) -> None:
    with pytest.raises(TemplateError, match=sentence):
        render(template, x="text")


@pytest.mark.parametrize(("template", "sentence"), [
    ("echo\n{{ x", "^@app.shell f: line 2 of the template is not valid Jinja: "),
    ("{% if x %}", "line 1 of the template is not valid Jinja"),
    ("{{ x | nofilter }}", "No filter named 'nofilter'"),
    ("{{ sede }}", "uses 'sede', which is not a parameter of the function; did you mean seed"),
    ("{% if other is defined %}x{% endif %}", "uses 'other', .*; its parameters are x, seed"),
    ("{{ task.id }}", r"\$BALSAMFUT_TASK_ID"),
])
def test_a_wrong_template_is_refused_before_it_is_used(template: str, sentence: str) -> None:
    with pytest.raises(TemplateError, match=sentence):
        check(template, ["x", "seed"], "@app.shell f")


def test_names_that_a_template_makes_itself_are_no_parameters() -> None:
    check("{% set a = x %}{% for i in range(3) %}{{ i }}{{ loop.index }}{{ a }}{% endfor %}", ["x"], "f")


def test_paths_are_rendered_and_not_quoted() -> None:
    extra = Extra(name="run {{ x }}", workdir="a/{{ x }}", stdout="{{ x }}.out", stderr="plain",
                  inputs=(("/decks/{{ x }}", "in.{{ n }}"),), outputs=("{{ n }}.dat",), tags=(("t", "{{ x }}"),))
    assert render_extra(extra, {"x": "a b", "n": 3}, "f") == Extra(
        name="run a b", workdir="a/a b", stdout="a b.out", stderr="plain", inputs=(("/decks/a b", "in.3"),),
        outputs=("3.dat",), tags=(("t", "{{ x }}"),))


@pytest.mark.parametrize(("value", "sentence"), [
    (Future(), "workdir of f: x is a future, .* not known when the task is submitted"),
    (["a"], "workdir of f: x is list"),
    ("", "workdir of f: '{{ x }}' was rendered to nothing"),
])
def test_a_path_needs_a_text_that_is_known(value: object, sentence: str) -> None:
    with pytest.raises(TemplateError, match=sentence):
        render_extra(Extra(workdir="{{ x }}"), {"x": value}, "f")


def test_a_returned_command_is_a_text_or_words() -> None:
    assert command("echo $HOME", "f") == "echo $HOME"
    assert command(["lmp", "-in", Path("in.lj"), "-var", 3], "f") == ["lmp", "-in", "in.lj", "-var", "3"]


@pytest.mark.parametrize("value", [None, 3, b"ls", [], {"a": 1}])
def test_what_is_no_command_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match="^f returned .*; a shell app returns a command"):
        command(value, "f")


def test_a_word_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(TemplateError, match="f: a word of the returned command is None"):
        command(["lmp", None], "f")
