"""A PBS that is a directory: qsub, qstat, qdel and qselect that print what the real ones print, and run jobs for real.

FAKE_PBS_DIR names the directory.  There is no server: each job has a runner, a detached process that waits in the
queue, runs the script as a session of its own, ends it at its walltime, and writes what has become of it into
`jobs/N.json`, which the commands read.  Texts, exit codes and attributes are those of OpenPBS 23.06.06.

What goes wrong is said by files in the directory (`calls` is written: a line for each command):

    down          the server cannot be reached (its text is the reason, "Connection refused" if empty)
    hang          commands do not return while it is there; it may name those that hang: "qsub qstat"
    hang-after    the same, but they have done their work before
    garbage       what `qstat -F json` prints instead of its answer; empty: the first half of it
    slow          seconds that each command takes
    forget        numbers of jobs that are unknown from now on, or *
    no-history    jobs are forgotten when they are over
    wait          seconds that jobs wait in the queue
    hold          jobs submitted while it is there are held, with its text for a comment
    never         jobs submitted while it is there never run, with its text for a comment
    refuse        qsub refuses: the exit code, a blank, the text
    refuse-qdel   so does qdel
    lose-answer   qsub submits, and then ends with this code and text all the same, as wrappers do
    mom-lost      the first nodes of jobs do not answer: only qdel -W force ends them
    lose          jobs submitted while it is there end with this Exit_status as soon as they have begun
    kill_delay    seconds from SIGTERM to SIGKILL (10)
    late          seconds by which walltimes are enforced too late
    hosts         the machine's hosts, which jobs share out; without it each job gets hosts x1 to xN of its own
    keep          names of variables that jobs get from qsub's environment, beside those that begin with BALSAMFUT_TEST_
    queues.json   {queue: {nodes: [least, most], walltime: [least, most] (s), max_queued, max_run (per user), enabled,
                  started, routing, bands: [{name, nodes, walltime}]}}; without it there is every queue and no limit
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("FAKE_PBS_DIR", ""))
SERVER = os.environ.get("FAKE_PBS_SERVER", "aurora-pbs-0001.hostmgmt.cm.aurora.lab")
DOMAIN = "hostmgmt.cm.aurora.lab"
Job = dict[str, Any]
USAGE = """usage: qsub [-a date_time] [-A account_string] [-c interval]
	[-C directive_prefix] [-e path] [-f ] [-h ] [-I [-X]] [-j oe|eo] [-J X-Y[:Z]]
	[-k keep] [-l resource_list] [-m mail_options] [-M user_list]
	[-N jobname] [-o path] [-p priority] [-P project] [-q queue] [-r y|n]
	[-R o|e|oe] [-S path] [-u user_list] [-W otherattributes=value...]
	[-v variable_list] [-V ] [-z] [script | -- command [arg1 ...]]
       qsub --version"""


class Failed(Exception):
    """The command ends with this code and this text on stderr."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


# -------------------------------------------------------------------- the directory

def told(name: str) -> str | None:
    """The text of a file that says what goes wrong; None: it is not there."""
    try:
        return (HOME / name).read_text().strip()
    except FileNotFoundError:
        return None


def seconds(name: str, default: float = 0.0) -> float:
    return float(told(name) or default)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def path_of(number: int) -> Path:
    return HOME / "jobs" / f"{number}.json"


def save(job: Job) -> None:
    path = path_of(job["number"])
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(job))
    part.replace(path)


def load(number: int) -> Job | None:
    try:
        return json.loads(path_of(number).read_text())
    except FileNotFoundError:
        return None


def jobs() -> list[Job]:
    numbers = sorted(int(path.stem) for path in (HOME / "jobs").glob("*.json"))
    return [job for number in numbers if (job := load(number)) and not forgotten(job)]


def forgotten(job: Job) -> bool:
    names = (told("forget") or "").split()
    return "*" in names or str(job["number"]) in names or (job["state"] == "F" and told("no-history") is not None)


def change(number: int, **fields: Any) -> Job:
    with locked():
        job = load(number)
        assert job is not None
        job.update(fields, mtime=time.time())
        save(job)
    return job


def find(name: str) -> Job | None:
    """The job that a user calls so."""
    number, _, server = name.partition(".")
    if not re.fullmatch(r"\d+", number) or (server and server != SERVER):
        raise Failed(1, f"illegally formed job identifier: {name}")
    job = load(int(number))
    return None if job is None or forgotten(job) else job


def queue_of(name: str) -> dict[str, Any]:
    text = told("queues.json")
    known = json.loads(text) if text is not None else {name: {}}
    if any(band["name"] == name for queue in known.values() for band in queue.get("bands", [])):
        raise Failed(174, "Access to queue is denied")
    if name not in known:
        raise Failed(170, "Unknown queue")
    return known[name]


# -------------------------------------------------------------------- qsub

def clock(text: str) -> int:
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
        raise Failed(166, "Illegal attribute or resource value Resource_List.walltime")
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return total


def options(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options by letter, and what follows them."""
    found: dict[str, list[str]] = {}
    index = 0
    while index < len(words) and words[index].startswith("-") and words[index] != "--":
        letter, value = words[index][1], words[index][2:]
        if letter not in "aAcCefhIjJklmMNopPqrRSuvVWXz":
            raise Failed(2, f"qsub: invalid option -- '{letter}'\n{USAGE}")
        if letter not in "fhIVXz" and not value:
            index += 1
            if index >= len(words):
                raise Failed(2, f"qsub: option requires an argument -- '{letter}'\n{USAGE}")
            value = words[index]
        found.setdefault(letter, []).append(value)
        index += 1
    return found, words[index:]


def directives(script: str) -> dict[str, list[str]]:
    """What the script asks for before its first command."""
    found: dict[str, list[str]] = {}
    for line in script.splitlines():
        if line.startswith("#PBS"):
            for letter, values in options(shlex.split(line[4:], comments=True))[0].items():
                found.setdefault(letter, []).extend(values)
        elif line.strip() and not line.startswith("#"):
            break
    return found


def resources(lists: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in ",".join(lists).split(","):
        if part:
            name, _, value = part.partition("=")
            if name not in ("select", "place", "walltime", "filesystems", "ncpus", "nodes", "mem", "software"):
                raise Failed(187, f"Unknown resource Resource_List.{name}")
            found[name] = value
    return found


def chunks(select: str) -> tuple[int, int]:
    """Nodes, and how often each is named in the nodefile."""
    nodes, procs = 0, 1
    for chunk in select.split("+"):
        count, *rest = chunk.split(":")
        if not count.isdigit() or int(count) < 1:
            raise Failed(166, "Illegal attribute or resource value Resource_List.select")
        nodes += int(count)
        for word in rest:
            if word.startswith("mpiprocs="):
                procs = int(word.partition("=")[2])
    return nodes, procs


def outside(value: float, limits: list[float] | None) -> bool:
    return limits is not None and not limits[0] <= value <= limits[1]


def qsub(words: list[str]) -> None:
    given, rest = options(words)
    if rest and rest[0] == "--":
        script, name, command = "", "STDIN", rest[1:]
    elif rest:
        if not Path(rest[0]).exists():
            raise Failed(1, "script file:: No such file or directory")
        script, name, command = Path(rest[0]).read_text(), Path(rest[0]).name, []
    else:
        script, name, command = sys.stdin.read(), "STDIN", []
    asked = directives(script)
    asked.update({letter: values for letter, values in given.items() if letter != "l"})
    wants = {**resources(asked.get("l", [])), **resources(given.get("l", []))}
    name = asked.get("N", [name])[-1]
    if re.search(r"[\s/\[]", name):
        raise Failed(2, f"qsub: illegal -N value\n{USAGE}")
    if (refusal := told("refuse")) is not None:
        code, _, text = refusal.partition(" ")
        raise Failed(int(code), text)
    nodes, procs = chunks(wants.get("select", "1"))
    walltime = clock(wants["walltime"]) if wants.get("walltime") else 0
    queue = asked.get("q", ["workq"])[-1]
    job: Job = {"name": name, "queue": queue, "asked_queue": queue, "nodes": nodes, "procs": procs, "wants": wants,
                "walltime": walltime, "account": asked.get("A", [""])[-1], "keep": asked.get("k", ["n"])[-1],
                "join": asked.get("j", ["n"])[-1], "out": asked.get("o", [""])[-1], "err": asked.get("e", [""])[-1],
                "rerunable": asked.get("r", ["y"])[-1] == "y", "workdir": os.getcwd(), "command": command,
                "variables": dict(pair.split("=", 1) for pair in ",".join(asked.get("v", [])).split(",") if pair),
                "arguments": shlex.join(words), "user": pwd.getpwuid(os.getuid()).pw_name}
    with locked():
        number, dropped = enter(job)
    if not dropped:
        (HOME / "scripts" / str(number)).write_text(script)
        (HOME / "scripts" / str(number)).chmod(0o700)
        start_runner(number)
    hang("hang-after", "qsub")
    if (lost := told("lose-answer")) is not None:
        code, _, text = lost.partition(" ")
        raise Failed(int(code), text)
    print(f"{number}.{SERVER}")


def enter(job: Job) -> tuple[int, bool]:
    """Take the job, or refuse it.  True: it was taken and is gone at once."""
    queue = queue_of(job["queue"])
    if not queue.get("enabled", True):
        raise Failed(173, "Queue is not enabled")
    fits = not outside(job["nodes"], queue.get("nodes")) and not outside(job["walltime"], queue.get("walltime"))
    if not fits and not queue.get("routing"):
        raise Failed(188, "Job violates queue and/or server resource limits")
    mine = [each for each in jobs() if each["state"] != "F" and each["asked_queue"] == job["queue"]]
    if "max_queued" in queue and len(mine) >= queue["max_queued"]:
        raise Failed(38, "would exceed queue generic's per-user limit")
    if queue.get("routing"):
        bands = [band for band in queue.get("bands", []) if not outside(job["nodes"], band.get("nodes"))
                 and not outside(job["walltime"], band.get("walltime"))]
        fits = fits and bool(bands)
    last = HOME / "last"
    number = int(last.read_text()) + 1 if last.exists() else 1000
    last.write_text(str(number))
    if not fits:
        return number, True
    now = time.time()
    hold, never = told("hold"), told("never")
    if queue.get("routing"):
        job["queue"] = bands[0].get("name", job["queue"])
    job.update(number=number, id=f"{number}.{SERVER}", state="Q" if hold is None else "H", substate=10, ctime=now,
               mtime=now, comment=hold or never or "", waits=seconds("wait"), runs=hold is None and never is None,
               holds="n" if hold is None else "u")
    save(job)
    return number, False


def start_runner(number: int) -> None:
    with open(HOME / "runner.log", "a") as log:
        child = subprocess.Popen([sys.executable, "-SEB", __file__, str(number)], stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=log, start_new_session=True, cwd="/")
    child.returncode = 0   # it goes on without us
    change(number, runner=child.pid)


# -------------------------------------------------------------------- the runner

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)


def members(session: int) -> list[int]:
    """The processes of a session; those that have ended and were not reaped are none."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == session and stat[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def signal_all(session: int, number: int) -> None:
    for pid in members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Runner:
    def __init__(self, number: int) -> None:
        self.number = number

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        job = self.wait_in_queue()
        if job is not None:
            self.execute(job)

    def wait_in_queue(self) -> Job | None:
        """The job when it has its hosts; None: it was deleted."""
        while True:
            with locked():
                job = load(self.number)
                if job is None or job["state"] == "F":
                    return None
                if (why := self.must_wait(job)) is None:
                    return self.begin(job)
                if why and job["comment"] != why:
                    job["comment"] = why
                    save(job)
            signal.sigtimedwait(SIGNALS, 0.05)

    def must_wait(self, job: Job) -> str | None:
        """Why it cannot run yet; "": for no reason that PBS tells; None: it can."""
        queue = queue_of(job["asked_queue"])
        running = [each for each in jobs() if each["state"] in "RE"]
        if not job["runs"] or time.time() < job["ctime"] + job["waits"]:
            return ""
        if not queue.get("started", True):
            return "Not Running: Queue not started."
        mine = [each for each in running if each["asked_queue"] == job["asked_queue"]]
        if len(mine) >= queue.get("max_run", len(mine) + 1):
            return f"Not Running: User has reached queue {job['queue']} running job limit."
        taken = {host for each in running for host in each["hosts"]}
        names = (told("hosts") or "").split()
        free = [name for name in names if name not in taken]
        if names and job["nodes"] > len(names):
            return "Can Never Run: Not enough total nodes available"
        if names and job["nodes"] > len(free):
            return "Not Running: Not enough free nodes available"
        job["hosts"] = free[:job["nodes"]] or [f"x{self.number}c0s{i}b0n0.{DOMAIN}" for i in range(job["nodes"])]
        return None

    def begin(self, job: Job) -> Job:
        chunk = "+".join(f"({host.split('.')[0]}:ncpus=1)" for host in job["hosts"])
        job.update(state="R", substate=41, stime=time.time(), exec_host="+".join(h.split(".")[0] + "/0" for h in
                   job["hosts"]), exec_vnode=chunk, run_count=1)
        job["comment"] = time.strftime("Job run at %a %b %d at %H:%M on ") + chunk
        save(job)
        return job

    def execute(self, job: Job) -> None:
        out, err = self.outputs(job)
        if (status := told("lose")) is not None:
            self.end(job, int(status), "and failed", 93, [])
            return
        feed, script = os.pipe()
        os.write(script, f"{HOME}/scripts/{self.number}\n".encode())
        os.close(script)
        # As PBS does: a login shell, which reads the script's name.
        argv = job["command"] or ["-bash", "--noprofile"]
        with open(out, "ab") as stdout, open(os.devnull if job["join"] == "oe" else err, "ab") as stderr:
            child = subprocess.Popen(
                argv, executable=argv[0] if job["command"] else "/bin/bash", stdin=feed, env=self.environment(job),
                stdout=stdout, stderr=subprocess.STDOUT if job["join"] == "oe" else stderr, cwd=HOME / "home",
                start_new_session=True, umask=0o077,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()))  # noqa: PLW1509
        os.close(feed)
        change(self.number, session=child.pid, substate=42)
        how = self.watch(job, child)
        code = child.wait()
        status = 256 - code if code < 0 else code
        if how == "walltime":
            self.end(job, -29, "and exceeded resource walltime", 93, [out, err])
        elif how == "deleted":
            self.end(job, status, f"and terminated by {job['user']}@aurora-uan-0001.{DOMAIN}", 91, [out, err])
        else:
            self.end(job, status, "and failed" if status else "and finished", 93 if status else 92, [out, err])

    def outputs(self, job: Job) -> tuple[str, str]:
        """Where it writes: to their place at once with -k doe, else beside the server until it is over."""
        finals = []
        for given, letter in ((job["out"], "o"), (job["err"], "e")):
            final = given.rpartition(":")[2] or f"{job['name']}.{letter}{self.number}"
            finals.append(os.path.join(job["workdir"], final))
        self.finals = finals
        if "d" in job["keep"]:
            return finals[0], finals[1]
        return str(HOME / "spool" / f"{self.number}.OU"), str(HOME / "spool" / f"{self.number}.ER")

    def environment(self, job: Job) -> dict[str, str]:
        nodefile = HOME / "aux" / job["id"]
        nodefile.write_text("".join(f"{host}\n" * job["procs"] for host in job["hosts"]))
        tmp = HOME / "tmp" / job["id"]
        tmp.mkdir(parents=True, exist_ok=True)
        kept = (told("keep") or "").split()
        env = {name: value for name, value in os.environ.items() if name in kept or name.startswith("BALSAMFUT_TEST_")}
        home, user = str(HOME / "home"), job["user"]   # of its own: profiles of this machine are nobody's business
        env.update(
            ENVIRONMENT="BATCH", HOME=home, LOGNAME=user, USER=user, SHELL="/bin/bash", NCPUS="1", OMP_NUM_THREADS="1",
            PATH=f"/usr/local/bin:/usr/bin:/bin:{Path(__file__).parent}", FAKE_PBS_DIR=str(HOME), TMPDIR=str(tmp),
            PBS_ENVIRONMENT="PBS_BATCH", PBS_JOBDIR=home, PBS_JOBID=job["id"], PBS_JOBNAME=job["name"],
            PBS_NODEFILE=str(nodefile), PBS_NODENUM="0", PBS_TASKNUM="1", PBS_QUEUE=job["queue"],
            PBS_O_HOME=home, PBS_O_HOST=f"aurora-uan-0001.{DOMAIN}", PBS_O_LOGNAME=user,
            PBS_O_QUEUE=job["asked_queue"], PBS_O_SYSTEM="Linux", PBS_O_WORKDIR=job["workdir"])
        if job["account"]:
            env["PBS_ACCOUNT"] = job["account"]
        return {**env, **job["variables"]}

    def watch(self, job: Job, child: subprocess.Popen[bytes]) -> str:
        """Until nothing of it is left; why it was ended, "" if it ended by itself."""
        limit = job["walltime"] + seconds("late") if job["walltime"] else None
        how, kill_at, force = "", None, False
        while True:
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            if ended and (not how or not members(child.pid)):
                signal_all(child.pid, signal.SIGKILL)
                return how
            now = time.time()
            if not how and limit is not None and now - job["stime"] >= limit:
                how, kill_at = "walltime", now + seconds("kill_delay", 10.0)
                with open(self.complaints(job), "a") as file:
                    file.write(f"=>> PBS: job killed: walltime {now - job['stime']:.0f} exceeded limit "
                               f"{job['walltime']}\n")
                signal_all(child.pid, signal.SIGTERM)
            if force or (kill_at is not None and now >= kill_at):
                signal_all(child.pid, signal.SIGKILL)
            come = signal.sigtimedwait(SIGNALS, 0.05 if how or limit is not None else 5.0)
            if come is not None and come.si_signo == signal.SIGTERM and not how:
                how, kill_at = "deleted", time.time() + seconds("kill_delay", 10.0)
                signal_all(child.pid, signal.SIGTERM)
            elif come is not None and come.si_signo == signal.SIGUSR1:
                how, force = how or "deleted", True

    def complaints(self, job: Job) -> str:
        out, err = self.outputs(job)
        return out if job["join"] == "oe" else err

    def end(self, job: Job, status: int, words: str, substate: int, files: list[str]) -> None:
        change(self.number, state="E", substate=51)
        for file, final in zip(files, self.finals, strict=False):
            if "d" not in job["keep"] and os.path.exists(file):
                with contextlib.suppress(OSError):
                    os.replace(file, final)
        change(self.number, state="F", substate=substate, exit_status=status, obittime=time.time(),
               comment=f"{job['comment']} {words}")


# -------------------------------------------------------------------- qstat

def date(when: float) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(when))


def hms(whole: int) -> str:
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def attributes(job: Job) -> dict[str, Any]:
    """In PBS's order; what has not happened yet is not there."""
    host = f"aurora-uan-0001.{DOMAIN}"
    wants = {"nodect": job["nodes"], "place": "free", "select": "1", **job["wants"]}
    if job["walltime"]:
        wants["walltime"] = hms(job["walltime"])
    if wants["select"].isdigit():
        wants["select"] = int(wants["select"])   # PBS writes as a number what looks like one
    shown = {
        "Job_Name": job["name"], "Job_Owner": f"{job['user']}@{host}", "job_state": job["state"], "queue": job["queue"],
        "server": SERVER, "Account_Name": job["account"] or None, "Checkpoint": "u", "ctime": date(job["ctime"]),
        "Error_Path": f"{host}:{job['err']}", "exec_host": job.get("exec_host"), "exec_vnode": job.get("exec_vnode"),
        "Hold_Types": job["holds"], "Join_Path": job["join"], "Keep_Files": job["keep"], "Mail_Points": "a",
        "mtime": date(job["mtime"]), "Output_Path": f"{host}:{job['out']}", "Priority": 0, "qtime": date(job["ctime"]),
        "Rerunable": str(job["rerunable"]), "Resource_List": wants,
        "stime": date(job["stime"]) if "stime" in job else None,
        "obittime": date(job["obittime"]) if "obittime" in job else None, "session_id": job.get("session"),
        "substate": job["substate"],
        "Variable_List": {**job["variables"], "PBS_O_WORKDIR": job["workdir"], "PBS_O_QUEUE": job["asked_queue"]},
        "comment": job["comment"] or None, "etime": date(job["ctime"]), "run_count": job.get("run_count"),
        "Exit_status": job.get("exit_status"), "Submit_arguments": job["arguments"],
        "project": "_pbs_project_default", "Submit_Host": host}
    return {name: value for name, value in shown.items() if value is not None}


def as_text(job: Job, wide: bool) -> str:
    lines = [f"Job Id: {job['id']}"]
    for name, value in attributes(job).items():
        if name == "Resource_List":
            lines += [f"    Resource_List.{key} = {each}" for key, each in value.items()]
            continue
        if name == "Variable_List":
            value = ",".join(f"{key}={each}" for key, each in value.items())
        line = f"    {name} = {value}"
        while not wide and len(line) > 78:
            lines.append(line[:78])
            line = "\t" + line[78:]
        lines.append(line)
    return "\n".join(lines) + "\n"


def as_json(found: list[Job]) -> str:
    whole: dict[str, Any] = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER}
    if found:
        whole["Jobs"] = {job["id"]: attributes(job) for job in found}
    text = json.dumps(whole, indent="\t", separators=(",", ":\t"))
    garbage = told("garbage")
    return text if garbage is None else garbage or text[:len(text) // 2]


def as_table(found: list[Job]) -> str:
    def cut(text: str, width: int) -> str:
        return text if len(text) <= width else text[:width - 1] + "*"

    lines = ["Job id            Name             User              Time Use S Queue",
             "----------------  ---------------- ----------------  -------- - -----"]
    for job in found:
        used = "00:00:00" if "stime" in job else "0"
        lines.append(f"{cut(job['id'], 16):16}  {cut(job['name'], 16):16} {cut(job['user'], 16):16}  {used:>8} "
                     f"{job['state']} {job['queue']:16}")
    return "\n".join(lines)


def queues(words: list[str]) -> int:
    """qstat -Q -f -F json, for all queues or those that are named."""
    names = [word for word in words if not word.startswith("-") and word != "json"]
    known = json.loads(told("queues.json") or '{"workq": {}}')
    listed: dict[str, Any] = {}
    for name, queue in known.items():
        listed[name] = described(name, queue)
        for band in queue.get("bands", []):
            listed[band["name"]] = described(band["name"], band, routed=True)
    code = 0
    for name in names:
        if name not in listed:
            print(f"qstat: Unknown queue {name}", file=sys.stderr)
            code = 170
    whole = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER}
    chosen = {name: queue for name, queue in listed.items() if not names or name in names}
    if chosen:
        whole["Queue"] = chosen
    print(json.dumps(whole, indent="\t", separators=(",", ":\t")))
    return code


def described(name: str, queue: dict[str, Any], routed: bool = False) -> dict[str, Any]:
    """A queue's attributes, in PBS's order."""
    mine = [job for job in jobs() if job["queue"] == name and job["state"] != "F"]
    count = {"Queued": "Q", "Held": "H", "Running": "R", "Exiting": "E"}
    states = " ".join(f"{word}:{sum(job['state'] == count.get(word) for job in mine)}"
                      for word in ("Transit", "Queued", "Held", "Waiting", "Running", "Exiting", "Begun"))
    shown: dict[str, Any] = {"queue_type": "Route" if queue.get("routing") else "Execution", "total_jobs": len(mine),
                             "state_count": f"{states} "}
    if routed:
        shown["from_route_only"] = "True"
    for index, key in ((1, "resources_max"), (0, "resources_min")):
        limits = {}
        if "nodes" in queue:
            limits["nodect"] = queue["nodes"][index]
        if "walltime" in queue and queue["walltime"][index]:
            limits["walltime"] = hms(queue["walltime"][index])
        if limits and not queue.get("routing"):
            shown[key] = limits
    if queue.get("routing"):
        shown["route_destinations"] = ",".join(band["name"] for band in queue.get("bands", []))
    shown["enabled"], shown["started"] = str(queue.get("enabled", True)), str(queue.get("started", True))
    for key in ("max_queued", "max_run"):
        if key in queue:
            shown[key] = f"[u:PBS_GENERIC={queue[key]}]"
    return shown


def qstat(words: list[str]) -> int:
    if "-Q" in words:
        return queues(words)
    flags = {word for word in words if word.startswith("-")}
    names = [word for word in words if not word.startswith("-") and word != "json"]
    full, history = "-f" in flags, "-x" in flags
    if unknown := flags - {"-f", "-F", "-x", "-w"} or ({"-F"} if "-F" in flags and not full else set()):
        raise Failed(2, f"conflicting options.\nusage: {' '.join(sorted(unknown))}")
    found, code = [], 0
    for name in names:
        try:
            job = find(name)
        except Failed as failed:
            print(f"qstat: {failed}", file=sys.stderr)
            code = failed.code
            continue
        if history and told("no-history") is not None:
            print(f"qstat: PBS is not configured to maintain job history {name}", file=sys.stderr)
        elif job is None:
            code = 153
            print(f"qstat: Unknown Job Id {name if '.' in name else f'{name}.{SERVER}'}", file=sys.stderr)
        elif job["state"] == "F" and not history:
            code = 35
            print(f"qstat: {job['id']} Job has finished, use -x or -H to obtain historical job information",
                  file=sys.stderr)
        else:
            found.append(job)
    if not names:
        found = [job for job in jobs() if history or job["state"] != "F"]
    if full and "-F" in flags:
        print(as_json(found))
    elif full:
        print("\n".join(as_text(job, "-w" in flags) for job in found))
    elif found:
        print(as_table(found))
    return code


# -------------------------------------------------------------------- qdel, qselect

def qdel(words: list[str]) -> int:
    force = words[:2] == ["-W", "force"]
    names = words[2:] if force else words
    if not names:
        raise Failed(2, "usage:\n\tqdel [-W force|suppress_email=X] [-x] job_identifier...\n\tqdel --version")
    if len(names) > 1:
        raise Failed(1, "one id, please: a list with an unknown id in it brings the real server down")
    if (refusal := told("refuse-qdel")) is not None:
        code, _, text = refusal.partition(" ")
        raise Failed(int(code), f"{text} {names[0]}")
    with locked():
        job = find(names[0])
        if job is None:
            raise Failed(153, f"Unknown Job Id {names[0].partition('.')[0]}.{SERVER}")
        if job["state"] == "F":
            raise Failed(35, f"Job has finished {job['id']}")
        if job["state"] == "E":
            raise Failed(168, f"Request invalid for state of job {job['id']}")
        if job["state"] == "R" and told("mom-lost") is not None and not force:
            raise Failed(222, f"Server could not connect to MOM {job['id']}")
        if job["state"] in "QH":
            job.update(state="F", substate=91, comment="", mtime=time.time())
            save(job)
        runner = job.get("runner")
    if runner is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(runner, signal.SIGUSR1 if force else signal.SIGTERM)
    return 0


def qselect(words: list[str]) -> int:
    history = "-x" in words
    if history and told("no-history") is not None:
        raise Failed(36, "PBS is not configured to maintain job history")
    name = words[words.index("-N") + 1] if "-N" in words else None
    for job in jobs():
        if (history or job["state"] != "F") and name in (None, job["name"]):
            print(job["id"])
    return 0


# -------------------------------------------------------------------- all commands

def hang(file: str, command: str) -> None:
    while (names := told(file)) is not None and (not names or command in names.split()):
        time.sleep(0.02)


def main(command: str) -> None:
    """Be this command."""
    for name in ("jobs", "scripts", "spool", "aux", "tmp", "home"):
        (HOME / name).mkdir(parents=True, exist_ok=True)
    words = sys.argv[1:]
    with open(HOME / "calls", "a") as calls:
        calls.write(f"{shlex.join([command, *words])}\n")
    time.sleep(seconds("slow"))
    hang("hang", command)
    if (reason := told("down")) is not None:
        if command == "qstat" and "-F" in words:
            print(as_json([]))
        asked = sum(word[0].isdigit() for word in words) if command == "qstat" else 1   # qstat says it of each job
        for _ in range(asked or 1):
            print(f"{reason or 'Connection refused'}\n{command}: cannot connect to server {SERVER} (errno=15010)",
                  file=sys.stderr)
        sys.exit(255 if command == "qstat" else 162)
    act = {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qselect": qselect}[command]
    try:
        code = act(words)
    except Failed as failed:
        usage = str(failed).startswith((f"{command}:", "usage"))
        print(str(failed) if usage else f"{command}: {failed}", file=sys.stderr)
        code = failed.code
    if command != "qsub":
        hang("hang-after", command)
    sys.exit(code or 0)


if __name__ == "__main__":
    Runner(int(sys.argv[1])).run()
