from __future__ import annotations

import pytest

from balsamfut.messages import Fault
from balsamfut.pilot import verdict
from balsamfut.pilot.verdict import Cause

CASCADE = "\n".join(f"x1: rank {rank} died from signal 15" for rank in range(1, 200))


@pytest.mark.parametrize(("flavour", "code", "text", "cause", "said"), [
    ("", 0, "", Cause.NONE, ""),
    ("", 3, "no such luck", Cause.TASK, "exit code 3"),
    ("", -11, "", Cause.SIGNAL, "ended by signal 11 (SIGSEGV)"),
    ("", 137, "", Cause.SIGNAL, "exit code 137 (a process was ended by signal 9 (SIGKILL))"),
    ("", 1, "ping failed on x1: No reply", Cause.TASK, "exit code 1"),
    # PALS
    ("pals", 3, "noise\nx1: rank 4 exited with code 3\nx1: rank 0 died from signal 15", Cause.TASK,
     "x1: rank 4 exited with code 3"),
    ("pals", 139, "x1: rank 0 died from signal 15\nx2: rank 9 died from signal 11 and dumped core", Cause.SIGNAL,
     "x2: rank 9 died from signal 11 and dumped core"),
    ("pals", 1, "ping failed on x1: No reply from x2 after 87s\nx1: rank 0 died from signal 15", Cause.LAUNCHER,
     "ping failed on x1: No reply from x2 after 87s"),
    ("pals", 127, "launch failed on x1: Couldn't forward RPC launch(1) to child x2: Resource temporarily unavailable",
     Cause.LAUNCHER, None),
    ("pals", 1, "start failed on x1: No VNIs available in internal allocator", Cause.VNI, None),
    ("pals", 1, "ping RPC timeout from x1 after 120s", Cause.LAUNCHER, None),
    ("pals", 137, "x1: shepherd died from signal 9\nx2: rank 3 died from signal 15", Cause.NODE,
     "x1: shepherd died from signal 9"),
    ("pals", 139, "x1: shepherd died from signal 11", Cause.LAUNCHER, None),
    ("pals", 127, "", Cause.TASK, "exit code 127"),
    ("pals", 1, "launch failed on x1: unrecognized option '--bind-to'", Cause.REQUEST, None),
    ("pals", 1, "launch failed on x1: Failed to parse implicit GPU selection", Cause.REQUEST, None),
    ("pals", 1, "start failed on x1: Couldn't start the application", Cause.LAUNCHER, None),
    ("pals", 1, "launch failed on x1: Invalid argument", Cause.LAUNCHER, None),
    ("pals", 1, "start failed on x1: Unknown error 521", Cause.LAUNCHER, None),
    ("pals", 143, "x1: rank 0 died from signal 15", Cause.SIGNAL,
     "exit code 143 (a process was ended by signal 15 (SIGTERM))"),
    # Hydra: its code of a signal is the bare number, and the text is on stdout
    ("hydra", 11, ("=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n"
                   "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)"),
     Cause.SIGNAL, "Segmentation fault (signal 11)"),
    ("hydra", 11, "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)", Cause.SIGNAL,
     "Segmentation fault (signal 11)"),
    ("hydra", 7, "[proxy:0@vm] HYDU_create_process (launch.c:66): bind process failed", Cause.LAUNCHER, None),
    ("hydra", 255, "[mpiexec@vm] match_arg (args.c:166): unrecognized argument bogus", Cause.REQUEST, None),
    ("hydra", 255, "ssh: Could not resolve hostname x1: Name or service not known", Cause.LAUNCHER, None),
    ("ssh", 255, "ssh: connect to host x1 port 22: Connection refused", Cause.TASK, "exit code 255"),
    ("hydra", 7, "", Cause.TASK, "exit code 7"),
    # Open MPI
    ("openmpi", 3, ("prterun detected that one or more processes exited with non-zero status,\n"
                    "   Process name: [prterun-vm-26412@1,1]\n   Exit code:    3\n"), Cause.TASK, "exit code 3"),
    ("openmpi", 139, ("prterun noticed that process rank 1 with PID 26424 on node vm exited on\n"
                      "signal 11 (Segmentation fault)."),
     Cause.SIGNAL, "exit code 139 (a process was ended by signal 11 (SIGSEGV))"),
    ("hydra", 255, '[proxy:0@vm] get_hw_obj_list (hwloc.c:378): unrecognized directive "bogus"', Cause.REQUEST, None),
    ("hydra", 255, "[mpiexec@vm] HYDU_sock_get_iface_ip (sock.c:447): unable to find interface", Cause.REQUEST, None),
    ("openmpi", 213, "An unrecognized option was included on the mpiexec command line:", Cause.REQUEST, None),
    ("openmpi", 213, "", Cause.REQUEST, None),
    ("openmpi", 213, "The PMIx server's listener thread failed to start. We cannot\ncontinue.", Cause.LAUNCHER, None),
    ("openmpi", 1, "There are not enough slots available in the system to satisfy the 2", Cause.LAUNCHER, None),
    ("openmpi", 1, "A daemon failed to report back after being spawned. This could", Cause.LAUNCHER, None),
    ("openmpi", 1, "PRTE has lost communication with a remote daemon.", Cause.NODE, None),
    ("openmpi", 1, "", Cause.TASK, "exit code 1"),
    # srun
    ("srun", 3, "srun: error: n1: task 0: Exited with exit code 3", Cause.TASK, None),
    ("srun", 139, "srun: error: n1: tasks 0-3: Segmentation fault (core dumped)", Cause.SIGNAL, None),
    ("srun", 1, "srun: error: Unable to create step for job 7: Requested nodes are busy", Cause.LAUNCHER, None),
    ("srun", 1, "srun: Job 7 step creation temporarily disabled, retrying (Requested nodes are busy)", Cause.LAUNCHER,
     None),
    ("srun", 1, "srun: error: Node failure on n2", Cause.NODE, None),
    ("srun", 253, "", Cause.MEMORY, None),
    ("srun", 15, ("slurmstepd-n1: error: mpi/pmi2: value not properly terminated in client request\n"
                  "srun: error: n1: task 0: Exited with exit code 15"), Cause.LAUNCHER, None),
    ("srun", 1, "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0", Cause.MEMORY, None),
    # ours
    ("hydra", 97, "balsamfut-wrapper: cores 8-9 are not all on n1", Cause.LAUNCHER, None),
    ("hydra", 2, "/dir/wrapper.sh: 3: MPI_LOCALRANKID: balsamfut-wrapper: the MPI launcher did not set it",
     Cause.LAUNCHER, None),
    ("hydra", 97, "balsamfut-wrapper: no place for local rank 12 of node 0", Cause.LAUNCHER, None),
])
def test_an_exit_is_the_tasks_or_the_launchers_or_the_nodes(flavour: str, code: int, text: str, cause: Cause,
                                                            said: str | None) -> None:
    judged = verdict.judge(flavour, code, text)
    assert judged.cause == cause
    if said is None:
        assert judged.line
    else:
        assert judged.line == said


@pytest.mark.parametrize(("flavour", "text", "host"), [
    ("pals", f"{CASCADE}\nx7: shepherd died from signal 9", "x7"),
    ("pals", "ping failed on x1: No reply from x7 after 87s", "x7"),
    ("pals", "ping RPC timeout from x7.hsn.cm after 120s", "x7.hsn.cm"),
    ("openmpi", ("PRTE has lost communication with a remote daemon.\n\n  HNP daemon   : [prterun-a-1@0,0] on node a\n"
                 "  Remote daemon: [prterun-a-1@0,1] on node x7\n"), "x7"),
    ("hydra", "ssh: connect to host x7 port 22: No route to host", "x7"),
    ("srun", "srun: error: Node failure on x7", "x7"),
])
def test_the_node_that_was_lost_is_blamed_and_not_the_one_that_tells(flavour: str, text: str, host: str) -> None:
    assert verdict.judge(flavour, 1, text).host == host


@pytest.mark.parametrize(("flavour", "text"), [
    ("pals", "x1: rank 3 exited with code 1\nx7: shepherd died from signal 9"),     # a consequence
    ("pals", "x1: rank 3 died from signal 11\nping RPC timeout from x7 after 120s"),
    ("pals", "x1: shepherd died from signal 11"),
    ("pals", "launch failed on x1: Couldn't forward RPC launch(1) to child x2: Resource temporarily unavailable"),
    ("pals", "ping failed on x1: Couldn't forward RPC ping(1) to child x2: Resource temporarily unavailable"),
    ("pals", "ping failed on x1: Application 1234 not found"),
    ("pals", "start failed on x1: No VNIs available in internal allocator"),
    ("openmpi", "PRTE has lost communication with a remote daemon."),
    ("hydra", "ssh: Could not resolve hostname x1: Name or service not known"),
    ("srun", "srun: error: Node failure on x[7-9]"),
    ("", "x7: shepherd died from signal 9"),
])
def test_nobody_is_blamed_for_what_may_be_anybodys(flavour: str, text: str) -> None:
    assert verdict.judge(flavour, 1, text).host == ""


def test_what_the_launcher_refuses_or_cannot_do_now_is_not_the_tasks_failure() -> None:
    assert verdict.judge("hydra", 255, "[mpiexec@vm] match_arg: unrecognized argument bogus").fault is Fault.LAUNCHER
    assert verdict.judge("pals", 1, "start failed on x1: No VNIs available").fault is Fault.LAUNCHER
    assert verdict.judge("pals", 137, "x1: shepherd died from signal 9").fault is Fault.NODE
    assert verdict.judge("pals", 0, "ping failed on x1: No reply from x2 after 87s").fault is Fault.NONE


@pytest.mark.parametrize(("flavour", "text", "over"), [
    ("openmpi", "[vm:1] PMIX ERROR: PMIX_ERR_UNREACH in file /ptl_base_connection_hdlr.c at line 103", True),
    ("openmpi", "prterun noticed that process rank 1 with PID 2 on node vm exited on", True),
    ("openmpi", "the program says that prterun noticed that process rank 1", False),
    ("pals", "x1: rank 0 exited with code 1", True),
    ("hydra", "x1: rank 0 exited with code 1", False),
])
def test_a_launcher_that_has_told_of_its_end_is_known_though_it_hangs(flavour: str, text: str, over: bool) -> None:
    assert verdict.failed(flavour, f"a line\n{text}\nanother\n") is over
