"""Real children: how they start, how their end is seen, and that a kill leaves nothing of them."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import psutil
import pytest

from balsamfut.errors import BadStdStream
from balsamfut.pilot import process
from balsamfut.pilot.process import MARK, Exit, Processes, StartError, become_subreaper, sweep

ENV = {name: value for name, value in os.environ.items() if name != MARK}


@pytest.fixture
def helper() -> Iterator[subprocess.Popen[str]]:
    """A shell that was there before: what it starts is no descendant of a Processes."""
    with subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV, bufsize=1,
                          start_new_session=True) as shell:
        yield shell
        os.killpg(shell.pid, signal.SIGKILL)


@pytest.fixture
def procs(helper: subprocess.Popen[str]) -> Iterator[Processes]:
    leak = os.dup(1)
    os.set_inheritable(leak, True)  # as from who started us
    made = Processes()
    yield made
    os.close(leak)
    assert made.end() == []
    reaped(made, lambda: not made._by_fd)
    made.tidy()
    made.close()
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # other tests in this process want no orphans
    become_subreaper.cache_clear()


def reaped(procs: Processes, enough: Callable[[], bool] = lambda: False, count: int = 0) -> list[Exit]:
    """Reap as a loop does, until it is enough, or so many have ended."""
    exits: list[Exit] = []
    poll = select.poll()
    for fd in procs.fds():
        poll.register(fd, select.POLLIN)
    while not enough() and (not count or len(exits) < count):
        assert poll.poll(20_000), f"nothing ended any more after {exits}"
        exits += procs.reap()
    return exits


def run(procs: Processes, *argv: str, key: Hashable = "k", cwd: str | Path = "/", env: dict[str, str] | None = None,
        **more: object) -> Exit:
    procs.spawn(key, argv, env=ENV if env is None else env, cwd=cwd, mark=f"t:{key}:1", **more)  # type: ignore[arg-type]
    [end] = reaped(procs, count=1)
    return end


def bash(procs: Processes, text: str, out: Path, *, key: Hashable = "k", **more: object) -> int:
    """Start a script, and wait until it has said `ready`."""
    out.write_text("")
    child = procs.spawn(key, ["bash", "-c", text], env=ENV, cwd="/", mark=f"t:{key}:1", stdout=str(out),
                        **more)  # type: ignore[arg-type]
    eventually(lambda: "ready" in out.read_text(), f"{text!r} said ready")
    return child.pid


def eventually(true: Callable[[], object], what: str) -> None:
    poll = select.poll()
    for _ in range(2000):
        if true():
            return
        poll.poll(10)
    raise AssertionError(f"it never came about that {what}")


def pids_in(out: Path) -> list[int]:
    return [int(word) for word in out.read_text().split() if word.isdigit()]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- starting


def test_exit_codes_and_signals_are_told_as_subprocess_tells_them(procs: Processes) -> None:
    assert run(procs, "bash", "-c", "exit 15") .returncode == 15
    assert procs.remains("k") == []
    end = run(procs, "bash", "-c", "kill -9 $$")
    assert (end.key, end.returncode) == ("k", -9)


def test_an_exit_tells_cpu_seconds_and_peak_bytes(procs: Processes) -> None:
    size = 200 << 20
    end = run(procs, sys.executable, "-c", f"x = b'x' * {size}\nfor i in range(10**6): pass")
    assert size < end.max_rss < 3 * size
    assert 0.01 < end.cpu < 60


def test_a_child_has_its_own_session_directory_environment_and_mark_and_an_empty_stdin(
        procs: Processes, tmp_path: Path) -> None:
    show = 'cat; echo "$PWD $A $HOME"; echo $$ $(ps -o sid= -p $$); tr "\\0" "\\n" < /proc/$$/environ'
    run(procs, "bash", "-c", show, cwd=tmp_path, env={"A": "b", "PATH": ENV["PATH"]}, stdout="out")
    first, second, *environ = (tmp_path / "out").read_text().splitlines()
    assert first == f"{tmp_path} b "
    pid, sid = second.split()
    assert pid == sid
    assert sorted(environ)[:2] == ["A=b", f"{MARK}=t:k:1"] and len(environ) == 3
    assert os.getcwd() != str(tmp_path)


def test_signals_that_we_ignore_or_block_are_as_new_in_children(procs: Processes, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        run(procs, "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status", stdout=str(tmp_path / "out"))
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    ordinary = (1 << 31) - 1  # those that come after are the C library's own
    assert [int(line.split()[1], 16) & ordinary for line in (tmp_path / "out").read_text().splitlines()] == [0, 0]


def test_streams_append_truncate_join_and_lie_under_the_childs_directory(procs: Processes, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old\n")
    (tmp_path / "w").write_text("old\n")
    both = ("bash", "-c", "echo out; echo err >&2")
    for mode in "aw":
        run(procs, *both, cwd=tmp_path, stdout=mode, stdout_mode=mode)
        assert procs.remains("k") == []
    assert (tmp_path / "a").read_text() == "old\nout\nerr\n"
    assert (tmp_path / "w").read_text() == "out\nerr\n"
    run(procs, *both, key=1, cwd=tmp_path, stdout="same", stderr="same", stdout_mode="w", stderr_mode="w")
    assert (tmp_path / "same").read_text() == "out\nerr\n"
    run(procs, *both, key=2, cwd=tmp_path, stdout="o", stderr="e")
    assert ((tmp_path / "o").read_text(), (tmp_path / "e").read_text()) == ("out\n", "err\n")
    run(procs, "cat", key=3, cwd=tmp_path, stdin="o", stdout="copy")
    assert (tmp_path / "copy").read_text() == "out\n"


def test_a_child_inherits_just_the_descriptors_that_it_was_given(procs: Processes, tmp_path: Path) -> None:
    read, write = os.pipe()
    script = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))); os.write(4, b'x' + os.read(3, 9))"
    there, here = os.pipe()
    os.write(here, b"y")
    run(procs, sys.executable, "-c", script, stdout=str(tmp_path / "out"), fds={3: there, 4: write})
    assert (tmp_path / "out").read_text() == "[0, 1, 2, 3, 4, 5]\n"  # 5: that of the listing
    assert os.read(read, 9) == b"xy"
    for fd in (read, write, there, here):
        os.close(fd)


def test_descriptors_that_cross_each_other_arrive_where_they_should(procs: Processes, tmp_path: Path) -> None:
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("one", "two")]
    a, b = files
    run(procs, "bash", "-c", f"echo A >&{a}; echo B >&{b}; echo out", stdout=a, stderr=b, fds={a: b, b: a})
    for fd in files:
        os.close(fd)
    assert (tmp_path / "two").read_text() == "A\n"
    assert sorted((tmp_path / "one").read_text().split()) == ["B", "out"]


def test_cores_bind_the_child_and_not_us(procs: Processes, tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    core = max(ours)
    child = procs.spawn("k", ["grep", "Cpus_allowed_list", "/proc/self/status"], env=ENV, cwd="/", mark="t:k:1",
                        stdout=str(tmp_path / "out"), cores=[core])
    reaped(procs, count=1)
    assert child.bound and (tmp_path / "out").read_text().split()[1] == str(core)
    assert os.sched_getaffinity(0) == ours


def test_a_child_that_wants_a_core_that_this_machine_lacks_is_not_bound(procs: Processes, tmp_path: Path) -> None:
    child = procs.spawn("k", [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"], env=ENV, cwd="/",
                        mark="t:k:1", stdout=str(tmp_path / "out"), cores=[0, 100_000])
    reaped(procs, count=1)
    assert not child.bound and int((tmp_path / "out").read_text()) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("argv", "number", "returncode", "words"), [
    (["no-such-command"], errno.ENOENT, 127, "not found in PATH"),
    (["./no-such-file"], errno.ENOENT, 127, "no such file"),
    (["./plain"], errno.EACCES, 126, "Permission denied"),
    (["plain"], errno.EACCES, 126, "Permission denied"),
    (["./lost-interpreter"], errno.ENOENT, 127, "interpreter"),
    (["./empty"], errno.ENOEXEC, 126, "Exec format error"),
    (["true", "a\0b"], errno.EINVAL, 126, "null"),
    (["true", "x" * (1 << 20)], errno.E2BIG, 126, "too long"),
])
def test_what_cannot_be_run_raises_with_the_code_that_a_shell_would_give(
        procs: Processes, tmp_path: Path, argv: list[str], number: int, returncode: int, words: str) -> None:
    (tmp_path / "plain").write_text("echo")
    for name, text in (("lost-interpreter", "#!/no/such/shell\n"), ("empty", "echo\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    home = os.getcwd()
    with pytest.raises(StartError) as caught:
        procs.spawn("k", argv, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=tmp_path, mark="t:k:1", stdout="o",
                    cores=[0])
    assert (caught.value.errno, caught.value.returncode) == (number, returncode)
    assert words in str(caught.value) and argv[0] in str(caught.value)
    assert os.getcwd() == home and len(os.sched_getaffinity(0)) == os.cpu_count()
    assert run(procs, "true").returncode == 0  # the key is free, and nothing is in the way


def test_a_directory_that_is_not_there_is_no_fault_of_the_command(procs: Processes) -> None:
    with pytest.raises(StartError, match="/no/such/dir") as caught:
        run(procs, "true", cwd="/no/such/dir")
    assert caught.value.errno == errno.ENOENT and caught.value.returncode is None


def test_a_stream_that_cannot_be_opened_is_named(procs: Processes) -> None:
    with pytest.raises(BadStdStream, match="'/no/dir/out' for stdout: No such file"):
        run(procs, "true", stdout="/no/dir/out")


def test_a_command_that_has_moved_is_found_again(procs: Processes, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").symlink_to("/bin/true" if folder == "a" else "/bin/false")
    env = {"PATH": f"{tmp_path}/a:{tmp_path}/b"}
    assert run(procs, "tool", key=1, env=env).returncode == 0
    (tmp_path / "a" / "tool").unlink()
    assert run(procs, "tool", key=2, env=env).returncode == 1


def test_a_key_is_taken_until_its_attempt_is_over_and_nothing_remains(procs: Processes) -> None:
    run(procs, "true")
    with pytest.raises(ValueError, match="'k'"):
        run(procs, "true")
    assert procs.remains("k") == []
    assert run(procs, "true").returncode == 0


def test_a_process_limit_is_no_fault_of_the_command(procs: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", full)
    with pytest.raises(StartError, match="temporarily unavailable") as caught:
        run(procs, "/bin/true")
    assert caught.value.returncode is None


# ---- ending

TREE = """
sleep 1000 & echo $!
setsid sleep 1000 & echo $!
setsid bash -c 'sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait' & echo $!
(trap '' TERM; echo $BASHPID; while :; do sleep 1000; done) &
(setsid env -i /bin/sleep 1000 & echo $!)
"""


def test_kill_leaves_nothing_of_a_tree_with_sessions_daemons_and_deaf_ones(procs: Processes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = bash(procs, TREE + "echo $$; sleep 0.3; echo ready; wait", out)
    pids = pids_in(out)
    assert len(pids) == 8 and root in pids and all(map(alive, pids))
    assert procs.kill("k") == []
    assert not any(map(alive, pids))
    [end] = reaped(procs, count=1)
    assert end.returncode == -9 and procs.remains("k") == []


def test_what_an_attempt_leaves_behind_is_seen_at_its_end_and_can_be_killed(procs: Processes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bash(procs, TREE + "sleep 0.3; echo ready; exit 5", out)
    [end] = reaped(procs, count=1)
    left = procs.remains("k")
    assert end.returncode == 5 and left and set(left) <= set(pids_in(out))
    assert set(left) < set(procs.remains("k", thorough=True))  # all of them, not just the adopted
    assert procs.kill("k") == [] and procs.remains("k") == []
    assert not any(map(alive, pids_in(out)))


def test_a_daemon_that_left_everything_behind_stays_until_all_whose_it_may_be_are_over(
        procs: Processes, tmp_path: Path) -> None:
    bash(procs, "echo ready; exec sleep 1000", tmp_path / "a", key="a")
    bash(procs, "(setsid env -i /bin/sleep 1000 & echo $!); echo ready", tmp_path / "b", key="b")
    [daemon] = pids_in(tmp_path / "b")
    eventually(lambda: psutil.Process(daemon).environ() == {} and os.getsid(daemon) == daemon, "it is free")
    reaped(procs, count=1)
    assert procs.remains("b") == [] and alive(daemon)  # it may be a's
    assert procs.kill("a") == []                       # now it can be nobody's else
    assert not alive(daemon)


def test_a_process_that_got_the_pid_of_an_attempt_that_is_over_is_not_taken_for_it(
        procs: Processes, tmp_path: Path) -> None:
    root = bash(procs, "(setsid sleep 1000 & echo $!); echo ready", tmp_path / "out")
    [left] = pids_in(tmp_path / "out")
    reaped(procs, count=1)
    assert procs.remains("k") == [left]
    other = process.guardian.row(os.getpid())
    assert other
    other.session = root
    rows = process.guardian.table() | {root: other, 10**6: other}
    assert procs._members(rows, [procs._attempts["k"]]) == {left}


def test_a_gentle_signal_reaches_the_whole_tree_and_only_it(procs: Processes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trap = "trap 'echo got >> {}; exit 0' USR1; echo ready; while :; do sleep 0.02; done"
    got = tmp_path / "got"
    other = bash(procs, "echo ready; exec sleep 1000", tmp_path / "other", key="other")
    bash(procs, f"trap 'echo got >> {got}; wait; exit 4' USR1\n"
         f"setsid bash -c \"{trap.format(got).replace('ready', 'ready-child')}\" &\n"
         f"while ! grep -q ready-child {out}; do sleep 0.02; done; echo ready; while :; do sleep 0.02; done", out)
    procs.signal("k", signal.SIGUSR1)
    [end] = reaped(procs, count=1)
    assert end.returncode == 4 and got.read_text() == "got\ngot\n" and alive(other)
    procs.signal("k", signal.SIGUSR1)       # it is over: no error
    procs.signal("never", signal.SIGUSR1)


def test_a_bomb_of_forks_is_put_out(procs: Processes, tmp_path: Path) -> None:
    code = ("import os, sys, time\n"
            "for depth in range(6):\n"
            "    if os.fork() == 0 and depth % 2: os.setsid()\n"
            "    if depth == 2: print('ready', flush=True)\n"
            "    time.sleep(0.02)\n"
            "time.sleep(1000)\n")
    out = tmp_path / "out"
    bash(procs, f"exec {sys.executable} -c \"$CODE\"" .replace('"$CODE"', "\"" + code.replace('"', '\\"') + "\""), out)
    assert procs.kill("k") == []
    reaped(procs, count=1)
    assert procs.remains("k", thorough=True) == []
    assert not [p for p in psutil.process_iter(["cmdline"]) if code in (p.info["cmdline"] or []) and alive(p.pid)]


def test_processes_that_a_daemon_started_for_an_attempt_are_found_by_its_mark(
        procs: Processes, helper: subprocess.Popen[str], tmp_path: Path) -> None:
    assert helper.stdin and helper.stdout
    bash(procs, "echo ready; exec sleep 1000", tmp_path / "out")
    for mark in ("t:k:1", "t:k:11", "t:k:1", "tt:k:1"):
        helper.stdin.write(f"{MARK}={mark} setsid sleep 1000 & echo $!\n")
    mine, longer, mine2, other = (int(helper.stdout.readline()) for _ in range(4))
    eventually(lambda: all(MARK in psutil.Process(pid).environ() for pid in (mine, mine2)), "they have their marks")
    os.kill(next(iter(procs._running)), signal.SIGTERM)
    reaped(procs, count=1)
    assert procs.remains("k", thorough=True) == sorted([mine, mine2])
    assert procs.kill("k") == [] and procs.remains("k", thorough=True) == []
    assert not alive(mine) and not alive(mine2) and alive(longer) and alive(other)
    for pid in (longer, other):
        os.kill(pid, signal.SIGKILL)


def test_an_mpi_program_is_killed_with_its_launcher_and_all_ranks(procs: Processes, tmp_path: Path) -> None:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    script = "echo $$ >> ranks; trap '' TERM; while :; do sleep 0.1; done"
    for key, first in (("whole", False), ("launcher first", True)):
        folder = tmp_path / key
        folder.mkdir()
        child = procs.spawn(key, [str(mpiexec), "-n", "3", "bash", "-c", script], env=ENV, cwd=folder,
                            mark=f"t:{key}:1", stdout="out")
        ranks = folder / "ranks"
        eventually(lambda ranks=ranks: ranks.exists() and len(pids_in(ranks)) == 3, "three ranks run")
        if first:
            os.kill(child.pid, signal.SIGKILL)
            reaped(procs, count=1)
        assert procs.kill(key) == []
        assert not any(map(alive, pids_in(ranks)))
        if not first:
            reaped(procs, count=1)
        assert procs.remains(key, thorough=True) == []


def test_several_attempts_are_killed_in_one_go_and_others_live(procs: Processes, tmp_path: Path) -> None:
    pids = [bash(procs, "echo ready; exec sleep 1000", tmp_path / str(key), key=key) for key in range(4)]
    assert procs.kill(0, 2, "never") == []
    assert [alive(pid) for pid in pids] == [False, True, False, True]
    assert {end.key for end in reaped(procs, count=2)} == {0, 2}


def test_orphans_that_end_while_an_attempt_runs_are_tidied_away(procs: Processes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bash(procs, "for i in 1 2 3; do (setsid sleep 0.01 & echo $!); done; echo ready; exec sleep 1000", out)
    orphans = pids_in(out)
    eventually(lambda: not any(map(alive, orphans)), "they have ended")
    procs.tidy()
    assert not any(map(psutil.pid_exists, orphans))


def test_end_kills_all_that_we_started_and_nothing_that_was_there_before(
        procs: Processes, helper: subprocess.Popen[str], tmp_path: Path) -> None:
    for key in range(2):
        bash(procs, TREE + "sleep 0.2; echo ready; wait", tmp_path / str(key), key=key)
    assert procs.end() == []
    assert not any(map(alive, pids_in(tmp_path / "0") + pids_in(tmp_path / "1")))
    assert helper.poll() is None


def test_hundreds_of_children_at_a_time_are_all_seen(procs: Processes) -> None:
    count = 900  # more than one page of /proc/.../children
    for key in range(count):
        procs.spawn(key, ["/bin/sleep", "1000"], env=ENV, cwd="/", mark=f"t:{key}:1")
    assert len(procs._children() - procs._before) == count
    assert procs.end() == []
    assert len(reaped(procs, count=count)) == count
    assert [procs.remains(key) for key in range(count)] == [[]] * count


# ---- looking


def test_memory_is_that_of_the_whole_tree_and_exact_counts_shared_pages_once(procs: Processes, tmp_path: Path) -> None:
    size = 100 << 20
    code = (f"import os, time; x = b'x' * {size}; pid = os.fork(); print('ready' * bool(pid), flush=True); "
            "time.sleep(1000)")
    bash(procs, f"{sys.executable} -c \"{code}\" & wait", tmp_path / "out")
    assert 2 * size < procs.memory_of("k") < 3 * size
    assert size < procs.memory_of("k", exact=True) < 1.5 * size
    assert procs.memory(["k", "never"])["never"] == 0


# ---- by token


def test_sweep_kills_what_carries_the_token_with_its_descendants_and_nothing_else(
        procs: Processes, helper: subprocess.Popen[str]) -> None:
    assert helper.stdin and helper.stdout
    helper.stdin.write(f"{MARK}=tok:1:1 setsid bash -c 'echo $$; env -i /bin/sleep 1000 & echo $!; wait' &\n")
    swept = [int(helper.stdout.readline()) for _ in range(2)]
    helper.stdin.write(f"{MARK}=tokyo:1:1 setsid sleep 1000 & echo $!\n")
    other = int(helper.stdout.readline())
    assert sweep("tok") == []
    assert not any(map(alive, swept)) and alive(other) and helper.poll() is None
    os.kill(other, signal.SIGKILL)


def test_what_cannot_be_killed_is_told_after_some_patience(procs: Processes, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    pid = bash(procs, "echo ready; exec sleep 1000", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(process.guardian, "_send", lambda target: None)  # as for a process in an uninterruptible call
        assert procs.kill("k", patience=0.02) == [pid]
    assert procs.kill("k") == []
