"""Apps: what decoration makes, what it refuses, and what an Executor is handed when an app is called."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import textwrap
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import balsamfut.executor
from balsamfut import app, serialize
from balsamfut.apps import App
from balsamfut.calls import AppLike, AppParts, CallPlan, defined, plain_parts
from balsamfut.errors import InvalidOption, NoExecutor, TemplateError
from balsamfut.model import TILE, AppKind, Extra, Hook, Options, Resources
from balsamfut.options import combine, normalise


class Recorder:
    """An Executor that only writes down what it is to submit."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls.append((fn, args, kwargs))
        return Future()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(balsamfut.executor, "innermost", lambda: recorder)
    return recorder


def extra_of(plan: CallPlan, *, futures: bool = False) -> Extra | None:
    return plan.extra(combine(plan.app.options, plan.options), futures=futures)


@app
def energy(conf: dict[str, float], scale: float = 2.0) -> float:
    """The energy of a configuration.

    In electronvolt.
    """
    return scale * conf["e"]


@app.shell("echo Hello, {{ say_hello_to }}! $ZE_AFFINITY_MASK", gpus_per_rank=1)
def echo_hello(say_hello_to: str) -> None: ...


# ---- decoration


def test_a_decorated_function_stays_callable_as_a_plain_one_and_keeps_its_looks() -> None:
    assert energy.func({"e": 3.0}) == 6.0
    assert (energy.__name__, energy.name, energy.__module__) == ("energy", "energy", __name__)
    assert energy.__doc__ == energy.func.__doc__
    assert inspect.signature(energy) == inspect.signature(energy.func)
    assert repr(energy) == f"<app {__name__}.energy>"


def test_every_way_to_write_the_decorator_makes_an_app_of_its_kind() -> None:
    def func(x: int = 0) -> str:
        return f"echo {x}"

    kinds = {
        app(func): AppKind.PYTHON,
        app(retries=1)(func): AppKind.PYTHON,
        app.shell(func): AppKind.COMMAND,
        app.shell()(func): AppKind.COMMAND,
        app.shell(retries=1)(func): AppKind.COMMAND,
        app.shell("echo {{ x }}")(func): AppKind.TEMPLATE,
        app.shell("echo {{ x }}", retries=1)(func): AppKind.TEMPLATE,
    }
    for made, kind in kinds.items():
        assert isinstance(made, App)
        assert isinstance(made, AppLike)
        assert made.parts.kind is kind
    assert app.shell("echo {{ x }}", retries=1)(func).parts.options.options == Options(retries=1)


def test_what_is_recorded_of_an_app() -> None:
    parts = energy.parts
    assert (parts.name, parts.module, parts.doc) == ("energy", __name__, "The energy of a configuration.")
    assert app(name="single point")(energy.func).name == "single point"
    assert parts in defined
    assert parts.code is parts.code
    assert echo_hello.parts.code.template == "echo Hello, {{ say_hello_to }}! $ZE_AFFINITY_MASK"


def test_a_call_of_a_view_shares_the_parts_of_its_app() -> None:
    view = energy.options(retries=1)
    assert view.parts is energy.parts
    assert view.func is energy.func


@pytest.mark.parametrize(("make", "error", "sentence"), [
    (lambda: app(num_node=2), InvalidOption, r"^@app: there is no option 'num_node'; did you mean num_nodes"),
    (lambda: app.shell(num_nodes=0), InvalidOption, r"^@app.shell: num_nodes takes a whole number, 1 or more, not 0"),
    (lambda: energy.options(retry=1), InvalidOption, r"^energy.options: .* no option 'retry'; did you mean retries"),
    (lambda: app("echo"), InvalidOption, r"there is @app.shell\('echo'\)"),
    (lambda: app(3), InvalidOption, "decorates a function, not 3"),
    (lambda: app(int), InvalidOption, "decorates a function, not <class 'int'>"),
    (lambda: app(energy), InvalidOption, "energy is an app already"),
    (lambda: app(staticmethod(len)), InvalidOption, "goes under @staticmethod"),
    (lambda: app.shell("  "), TemplateError, "the template is empty"),
    (lambda: app.shell("echo {{ a }}")(lambda b: None), TemplateError, "uses 'a', which is not a parameter"),
    (lambda: app.shell("echo {{ a")(lambda a: None), TemplateError, "line 1 of the template is not valid Jinja"),
    (lambda: app(cache_ignore=["c"])(lambda a, b: None), InvalidOption, "cache_ignore names 'c'.*parameters are a, b"),
    (lambda: app(workdir="{{ c }}")(lambda a: None), TemplateError, "@app <lambda>: workdir: .* uses 'c'"),
    (lambda: energy.options(outputs=["a", "{{ c }}"]), TemplateError, "energy.options: outputs: .* uses 'c'"),
])
def test_what_is_wrong_is_said_at_decoration(make: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()


# ---- hooks


def test_hooks_are_kept_by_their_names_and_stay_plain_functions() -> None:
    made = app.shell(lambda: "true")

    @made.preprocess
    def before(task: Any) -> None: ...

    @made.postprocess
    def after(task: Any) -> int:
        return 5

    assert after(None) == 5
    assert made.parts.hooks == {"preprocess": before, "postprocess": after}
    assert made.parts.hook_flags == Hook.PREPROCESS | Hook.POSTPROCESS
    assert made.parts.code.hooks == made.parts.hooks


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "on_error", "on_timeout"])
def test_a_hook_must_take_the_task(name: str) -> None:
    made = app(lambda: None)
    with pytest.raises(InvalidOption, match=f"@<lambda>.{name}: .* must take one argument, the task"):
        getattr(made, name)(lambda: None)
    with pytest.raises(InvalidOption, match="must take one argument"):
        getattr(made, name)(lambda task, other: None)
    with pytest.raises(InvalidOption, match="decorates a function with one parameter, the task, not 3"):
        getattr(made, name)(3)


def test_a_second_hook_and_one_that_comes_too_late_are_refused() -> None:
    made = app(lambda: None)
    made.on_error(lambda task: None)
    with pytest.raises(InvalidOption, match="already has this hook"):
        made.on_error(lambda task: None)
    assert made.parts.code
    with pytest.raises(InvalidOption, match="is recorded already"):
        made.on_timeout(lambda task: None)


# ---- calls


def test_a_call_goes_to_the_innermost_executor(recorder: Recorder) -> None:
    assert isinstance(energy({"e": 1.0}, scale=3.0), Future)
    assert recorder.calls == [(energy, ({"e": 1.0},), {"scale": 3.0})]


def test_a_call_without_an_executor_says_so() -> None:
    with pytest.raises(NoExecutor):
        energy({"e": 1.0})


def test_the_words_of_python_are_parameters_like_any_other() -> None:
    made = app(lambda **kwargs: kwargs)
    assert made.bind((), {"self": 1, "fn": 2, "options": 3}).kwargs == {"self": 1, "fn": 2, "options": 3}


def test_a_template_is_rendered_for_a_call_without_futures_and_left_to_the_node_otherwise() -> None:
    plan = echo_hello.bind(("a b",), {})
    assert extra_of(plan) == Extra(command="echo Hello, 'a b'! $ZE_AFFINITY_MASK")
    assert extra_of(plan, futures=True) is None
    assert combine(plan.app.options, plan.options).resources == Resources(gpu_shares=TILE)


def test_a_template_uses_the_defaults_of_the_signature_and_refuses_what_the_function_would() -> None:
    made = app.shell("run {{ n }} {{ rest }} {{ more.x }}")(lambda n=3, *rest, **more: None)
    assert extra_of(made.bind((), {"x": 1})) == Extra(command="run 3  1")
    assert extra_of(made.bind((4, "a", "b"), {"x": 1})) == Extra(command="run 4 a b 1")
    with pytest.raises(TypeError, match=r"^echo_hello\(\): missing a required argument: 'say_hello_to'"):
        echo_hello.bind((), {})


def test_paths_are_rendered_with_the_arguments_of_the_call() -> None:
    made = app(workdir="runs/{{ metal }}", outputs=["{{ metal }}.{{ n }}"])(lambda metal, n=1: None)
    assert extra_of(made.bind(("Cu",), {})) == Extra(workdir="runs/Cu", outputs=("Cu.1",))
    assert extra_of(made.options(stdout="{{ n }}.txt").bind(("Cu", 2), {}), futures=True) == Extra(
        workdir="runs/Cu", outputs=("Cu.2",), stdout="2.txt")
    with pytest.raises(TemplateError, match="metal is a future"):
        extra_of(made.bind((Future(),), {}), futures=True)


def test_a_call_that_asks_for_nothing_says_nothing() -> None:
    assert extra_of(energy.bind(({},), {})) is None


def test_views_add_up_and_leave_the_app_alone() -> None:
    view = energy.options(retries=1, tags={"a": 1}).options(retries=2, tags={"b": 2})
    plan = view.bind(({},), {})
    assert plan.options.options.retries == 2
    assert plan.options.extra.tags == (("a", "1"), ("b", "2"))
    assert energy.bind(({},), {}).options.options.retries == 0


def test_a_name_for_one_call_is_not_the_name_of_the_app() -> None:
    plan = energy.options(name="run {{ scale }}").bind(({},), {})
    assert extra_of(plan) == Extra(name="run 2.0")
    assert plan.app.name == "energy"


def test_defaults_that_hold_futures_become_arguments() -> None:
    future: Future[int] = Future()
    made = app(lambda a, b=1, inputs=(future,): None)
    plan = made.bind((5,), {})
    assert inspect.signature(made.func).bind(*plan.args, **plan.kwargs).arguments["inputs"] == (future,)
    plan = made.bind((5, 6, ()), {})
    assert (plan.args, plan.kwargs) == ((5, 6, ()), {})
    plan = made.bind((), {})
    assert (plan.args, plan.kwargs) == ((), {})   # the task itself says what is missing


# ---- keys


def test_what_a_call_is_known_by() -> None:
    plain = energy.bind(({"e": 1},), {"scale": 1.0})
    key = energy.parts.code_key()
    assert plain.key_material(energy.parts.options) == (key, ({"e": 1},), {"scale": 1.0})
    ignoring = combine(energy.parts.options, normalise({"cache_ignore": ["scale"]}))
    assert plain.key_material(ignoring) == (key, (), {"conf": {"e": 1}})
    assert energy.bind(({"e": 1}, 7.0), {}).key_material(ignoring) == (key, (), {"conf": {"e": 1}})
    assert plain.key_material(normalise({"key": "run-7"})) == (key, ("run-7",), {})
    assert plain.key_material(normalise({"key": lambda conf, scale: (conf["e"], scale)})) == (key, ((1, 1.0),), {})


def test_the_error_of_a_key_function_is_the_users_own() -> None:
    with pytest.raises(ZeroDivisionError):
        energy.bind(({},), {}).key_material(normalise({"key": lambda conf: 1 // 0}))


@pytest.mark.parametrize("options", [{"mpi": "pool"}, {"gather": True}])
def test_what_only_functions_have_is_refused_for_commands(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption, match="is for Python functions; hello is a command"):
        @app.shell("echo", **options)
        def hello() -> None: ...


def test_a_call_that_gathers_has_a_key_of_its_own() -> None:
    @app
    def hello() -> None: ...

    plan = hello.bind((), {})
    assert plan.key_material(normalise({"gather": True}))[0] != plan.key_material(normalise({}))[0]


def test_an_apps_key_changes_with_its_template_and_hooks_and_not_with_a_version() -> None:
    def make(template: str) -> App[..., Any]:
        return app.shell(template)(lambda x: None)

    assert make("a {{ x }}").parts.code_key() == make("a {{ x }}").parts.code_key()
    assert make("a {{ x }}").parts.code_key() != make("b {{ x }}").parts.code_key()
    assert make("a {{ x }}").parts.code_key("1") == make("b {{ x }}").parts.code_key("1")
    assert make("a {{ x }}").parts.code_key("1") != make("a {{ x }}").parts.code_key("2")
    hooked = make("a {{ x }}")
    hooked.postprocess(lambda task: 1)
    assert hooked.parts.code_key() != make("a {{ x }}").parts.code_key()


# ---- methods, odd callables


class Simulation:
    def __init__(self, size: int) -> None:
        self.size = size

    @app(retries=1)
    def run(self, steps: int) -> int:
        return self.size * steps


def test_a_method_is_an_app_of_its_instance_and_arguments(recorder: Recorder) -> None:
    simulation = Simulation(3)
    simulation.run(4)
    (fn, args, kwargs), = recorder.calls
    assert (fn, args, kwargs) == (Simulation.run, (simulation, 4), {})
    assert Simulation.run.func(simulation, 4) == 12


def test_callables_of_all_kinds_can_be_apps() -> None:
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    assert app(functools.partial(max, 3)).name == "max"
    assert app(Adder()).name == "Adder"
    assert app(functools.lru_cache(len)).name == "len"
    assert app(lambda: None).name == "<lambda>"
    assert plain_parts(functools.partial(max, 3)).name == "max"
    assert plain_parts(Adder()).kind is AppKind.PYTHON
    with pytest.raises(TypeError, match="3 cannot be called, so it cannot be submitted"):
        plain_parts(3)  # type: ignore[arg-type]


def test_a_function_that_tells_no_signature_takes_anything() -> None:
    class Odd:
        __signature__ = "as some compiled functions have it"

        def __call__(self) -> None: ...

    parts = AppParts("odd", AppKind.PYTHON, Odd())
    assert parts.parameters((1, 2), {"c": 3}) == {"args": (1, 2), "kwargs": {"c": 3}}


# ---- travelling


def test_an_app_of_a_script_travels_by_value_with_its_options_and_hooks() -> None:
    factor = 3

    @app.shell("echo {{ x }}", retries=2, tags={"a": 1})
    def local(x: int) -> int:
        return factor * x

    local.postprocess(lambda task: factor)
    there = cloudpickle.loads(cloudpickle.dumps(local))
    assert there.func(2) == 6
    assert (there.name, there.parts.kind, there.parts.template) == ("local", AppKind.TEMPLATE, "echo {{ x }}")
    assert there.parts.options.options == Options(retries=2)
    assert there.parts.hooks["postprocess"](None) == 3
    view = cloudpickle.loads(cloudpickle.dumps(local.options(priority=7)))
    assert view.bind((1,), {}).options.options.priority == 7
    assert view.parts.options.options.retries == 2


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An importable module with apps, whose globals cannot be pickled."""
    (tmp_path / "balsamfut_test_library.py").write_text(textwrap.dedent("""
        import threading
        from balsamfut import app
        lock = threading.Lock()

        @app
        def guarded(x):
            with lock:
                return x

        @guarded.postprocess
        def more(task):
            return lock.locked()

        class Group:
            @app
            def method(self):
                return lock
    """))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("balsamfut_test_library")
    del sys.modules["balsamfut_test_library"]


def test_an_app_of_an_importable_module_travels_by_name(library: Any) -> None:
    assert cloudpickle.loads(cloudpickle.dumps(library.guarded)) is library.guarded
    assert cloudpickle.loads(cloudpickle.dumps(library.Group.method)) is library.Group.method
    view = cloudpickle.loads(cloudpickle.dumps(library.guarded.options(retries=1)))
    assert view.parts is library.guarded.parts


def test_the_function_of_such_an_app_is_looked_up_where_it_runs(library: Any) -> None:
    code = serialize.loads_code(serialize.dumps_code(library.guarded.parts.code))
    assert code.func is library.guarded.func
    assert code.hooks == {"postprocess": library.more}
    assert code.parameters((5,), {}) == {"x": 5}


def test_an_app_that_a_module_no_longer_has_by_its_name_travels_by_value(library: Any) -> None:
    app_of_old = library.guarded
    library.guarded = None
    assert app_of_old.parts.home is None


def test_an_app_used_inside_another_submits_from_there(recorder: Recorder) -> None:
    @app
    def inner(x: int) -> int:
        return x

    @app
    def outer(x: int) -> Any:
        return inner(x + 1)

    code = serialize.loads_code(serialize.dumps_code(outer.parts.code))
    assert isinstance(code.func(1), Future)
    (fn, args, _), = recorder.calls
    assert (fn.name, args) == ("inner", (2,))
