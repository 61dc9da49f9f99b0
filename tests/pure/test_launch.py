from __future__ import annotations

import pytest

from balsamfut import platforms
from balsamfut.errors import InvalidOption
from balsamfut.model import TILE, Resources
from balsamfut.pilot import dialects, launch
from balsamfut.pilot.launch import Plan
from balsamfut.placement import Packer
from balsamfut.platforms import Launcher

AURORA = platforms.load("aurora")
NAMES = [f"x{i}" for i in range(100)]
FLAVOURS = ("pals", "hydra", "openmpi", "srun")


def planned(resources: Resources, **more: object) -> Plan:
    platform = more.pop("platform", AURORA)
    pack = Packer(platform.node, NAMES)   # type: ignore[attr-defined]
    for taken in more.pop("before", ()):   # type: ignore[attr-defined]
        pack.place(taken)
    placement = pack.place(resources)
    assert placement is not None
    settings: dict = {"command": ["prog", "-x"], "environ": {}, "directory": "/dir", **more}
    return launch.plan(resources, placement, platform, NAMES, **settings)   # type: ignore[arg-type]


def wrapper(plan: Plan) -> list[str]:
    return plan.files[launch.WRAPPER].decode().splitlines()


# ---- serial


def test_a_command_that_is_a_string_is_run_by_bash_and_a_list_by_itself() -> None:
    assert planned(Resources(), command="echo $HOME | wc").argv == ["/bin/bash", "-c", "echo $HOME | wc"]
    assert planned(Resources(), command=["echo", "$HOME"]).argv == ["echo", "$HOME"]


def test_a_serial_task_gets_its_mask_with_the_hierarchy_and_its_cores() -> None:
    plan = planned(Resources(gpu_shares=TILE, threads_per_rank=8), environ={"A": "b"})
    assert plan.env == {
        "TMPDIR": "/tmp", "A": "b", "OMP_NUM_THREADS": "8", "BALSAMFUT_NODES": "x0", "BALSAMFUT_CORES": "1-8",
        "ZE_AFFINITY_MASK": "0.0", "ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}
    assert plan.cores == tuple(range(1, 9))
    assert plan.files == {}


def test_two_tiles_are_both_in_the_mask_and_no_tiles_leave_the_mask_alone() -> None:
    assert planned(Resources(gpu_shares=2 * TILE)).env["ZE_AFFINITY_MASK"] == "0.0,0.1"
    assert not [name for name in planned(Resources()).env if name.startswith("ZE_")]


def test_the_hierarchy_that_the_environment_asks_for_decides_how_masks_are_written() -> None:
    flat = planned(Resources(gpu_shares=TILE), before=[Resources(gpu_shares=2 * TILE)],
                   environ={"ZE_FLAT_DEVICE_HIERARCHY": "FLAT"})
    assert (flat.env["ZE_AFFINITY_MASK"], flat.env["ZE_FLAT_DEVICE_HIERARCHY"]) == ("2", "FLAT")
    other = planned(Resources(gpu_shares=TILE), environ={"ZE_FLAT_DEVICE_HIERARCHY": "COMBINED"})
    assert (other.env["ZE_AFFINITY_MASK"], other.env["ZE_FLAT_DEVICE_HIERARCHY"]) == ("0.0", "COMPOSITE")


def test_gpus_of_other_vendors_have_their_own_variables() -> None:
    env = planned(Resources(gpu_shares=TILE), platform=platforms.load("polaris")).env
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")
    assert planned(Resources(gpu_shares=TILE), platform=platforms.load("frontier")).env["ROCR_VISIBLE_DEVICES"] == "0"


def test_variables_that_the_user_set_stay() -> None:
    env = planned(Resources(threads_per_rank=4), environ={"OMP_NUM_THREADS": "1", "TMPDIR": "/scratch"}).env
    assert (env["OMP_NUM_THREADS"], env["TMPDIR"]) == ("1", "/scratch")


def test_siblings_are_bound_too_when_several_threads_share_a_core() -> None:
    plan = planned(Resources(gpu_shares=TILE, threads_per_rank=4, threads_per_core=2))
    assert plan.cores == (1, 2, 105, 106)
    assert plan.env["BALSAMFUT_CORES"] == "1-2,105-106"


def test_nothing_is_bound_where_cores_are_pretended_or_others_work_too() -> None:
    pretended = planned(Resources(gpu_shares=TILE), pretend=True)
    assert pretended.cores is None
    assert pretended.env["BALSAMFUT_CORES"] == "1"
    assert planned(Resources(), platform=platforms.workstation(1)).cores is None


def test_a_preamble_runs_in_the_same_shell_and_cannot_change_the_mask() -> None:
    plan = planned(Resources(gpu_shares=TILE), command="echo hi", preamble="module load frameworks")
    assert plan.argv == [
        "/bin/bash", "-c",
        ("module load frameworks\n"
         "export ZE_ENABLE_PCI_ID_DEVICE_ORDER=1 ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE BALSAMFUT_CORES=1"
         ' ZE_AFFINITY_MASK=0.0\necho hi')]
    plan = planned(Resources(gpu_shares=TILE), command=["prog", "-x"], preamble="module load frameworks")
    assert plan.argv[2].endswith('ZE_AFFINITY_MASK=0.0\nexec "$@"') and plan.argv[3:] == ["balsamfut", "prog", "-x"]


# ---- MPI

ONE = Resources(ranks_per_node=2, threads_per_rank=2, gpu_shares=TILE)
TWO = Resources(num_nodes=2, ranks_per_node=2, threads_per_rank=2, gpu_shares=TILE)
TAIL = ["/bin/sh", "/dir/wrapper.sh", "prog", "-x"]
X = [word for name in ("TMPDIR", "OMP_NUM_THREADS", "BALSAMFUT_NODES", "ZE_ENABLE_PCI_ID_DEVICE_ORDER",
                       "ZE_FLAT_DEVICE_HIERARCHY",
                       "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") for word in ("-x", name)]
GOLDEN = {
    ("pals", 1): ["mpiexec", "-n", "2", "--ppn", "2", "--hosts", "x0", "--cpu-bind", "none", "--envall"],
    ("pals", 2): ["mpiexec", "-n", "4", "--ppn", "2", "--hosts", "x0,x1", "--cpu-bind", "none", "--envall"],
    ("hydra", 1): ["mpiexec", "-n", "2", "-ppn", "2", "-hosts", "x0", "-bind-to", "none"],
    ("hydra", 2): ["mpiexec", "-n", "4", "-ppn", "2", "-hosts", "x0,x1", "-bind-to", "none"],
    ("openmpi", 1): ["mpiexec", "-n", "2", "--host", "x0:2", "--map-by", "ppr:2:node:OVERSUBSCRIBE",
                     "--bind-to", "none", *X],
    ("openmpi", 2): ["mpiexec", "-n", "4", "--host", "x0:2,x1:2", "--map-by", "ppr:2:node:OVERSUBSCRIBE",
                     "--bind-to", "none", *X],
    ("srun", 1): ["srun", "-N", "1", "-n", "2", "--ntasks-per-node=2", "-w", "x0", "--cpu-bind=none", "--overlap",
                  "--export=ALL", "--distribution=block", "--kill-on-bad-exit=1"],
    ("srun", 2): ["srun", "-N", "2", "-n", "4", "--ntasks-per-node=2", "-w", "x0,x1", "--cpu-bind=none", "--overlap",
                  "--export=ALL", "--distribution=block", "--kill-on-bad-exit=1"],
}
LOCAL = {"pals": "PALS_LOCAL_RANKID", "hydra": "MPI_LOCALRANKID", "openmpi": "OMPI_COMM_WORLD_LOCAL_RANK",
         "srun": "SLURM_LOCALID"}
END = dict.fromkeys(FLAVOURS, ['exec "$@"']) | {"hydra": [
    "trap : HUP INT TERM USR1 USR2", '"$@"', "code=$?",
    """[ $code -eq 0 ] || bash -c 'echo "cmd=abort exitcode=$0" >&$PMI_FD' $code 2>/dev/null""", "exit $code"]}
RANK = {"pals": "PALS_RANKID", "hydra": "PMI_RANK", "openmpi": "OMPI_COMM_WORLD_RANK", "srun": "SLURM_PROCID"}


@pytest.mark.parametrize(("flavour", "nodes"), GOLDEN)
def test_the_launcher_gets_explicit_hosts_and_binds_nothing(flavour: str, nodes: int) -> None:
    plan = planned(ONE if nodes == 1 else TWO, launcher=Launcher(flavour))
    assert plan.argv == GOLDEN[flavour, nodes] + TAIL
    assert plan.cores is None
    assert "ZE_AFFINITY_MASK" not in plan.env     # the wrapper's business, rank by rank
    assert plan.env["ZE_FLAT_DEVICE_HIERARCHY"] == "COMPOSITE"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_wrapper_gives_each_local_rank_its_tile_and_cores(flavour: str) -> None:
    assert wrapper(planned(TWO, launcher=Launcher(flavour))) == [   # both nodes alike: no word about nodes
        "#!/bin/sh",
        "# Started for each rank: shows it its tiles and binds it to its cores.",
        f"local=${{{LOCAL[flavour]}:?balsamfut-wrapper: the MPI launcher did not set it}}",
        "case $local in",
        "0) BALSAMFUT_CORES=1-2 ZE_AFFINITY_MASK=0.0 ;;",
        "1) BALSAMFUT_CORES=9-10 ZE_AFFINITY_MASK=0.1 ;;",
        '*) echo "balsamfut-wrapper: no place for local rank $local of node ${node:-0}" >&2; exit 97 ;;',
        "esac",
        "ZE_ENABLE_PCI_ID_DEVICE_ORDER=1",
        "ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE",
        "export ZE_ENABLE_PCI_ID_DEVICE_ORDER ZE_FLAT_DEVICE_HIERARCHY BALSAMFUT_CORES ZE_AFFINITY_MASK",
        'if ! taskset -cp "$BALSAMFUT_CORES" $$ >/dev/null 2>&1; then',
        '    echo "balsamfut-wrapper: cores $BALSAMFUT_CORES are not all on $(uname -n)" | tee -a "$0.said" >&2',
        "    exit 97",
        "fi",
        *END[flavour],
    ]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_wrapper_tells_nodes_apart_where_ranks_have_different_places(flavour: str) -> None:
    lines = wrapper(planned(TWO, launcher=Launcher(flavour), before=[Resources(gpu_shares=TILE)]))
    if flavour == "srun":   # which may put the nodes in another order
        assert lines[3:7] == ["case ${SLURMD_NODENAME:?balsamfut-wrapper: the MPI launcher did not set it} in",
                              "x0) node=0 ;;", "x1) node=1 ;;", "esac"]
    else:
        assert lines[3:5] == [f"rank=${{{RANK[flavour]}:?balsamfut-wrapper: the MPI launcher did not set it}}",
                              "node=$((rank / 2))"]
    assert "0.0) BALSAMFUT_CORES=9-10 ZE_AFFINITY_MASK=0.1 ;;" in lines
    assert "1.0) BALSAMFUT_CORES=1-2 ZE_AFFINITY_MASK=0.0 ;;" in lines


def test_pretended_nodes_are_this_host_and_ranks_find_theirs_by_their_number() -> None:
    plan = planned(TWO, launcher=Launcher("hydra"), pretend=True)
    assert plan.argv[:11] == ["mpiexec", "-n", "4", "-ppn", "4", "-hosts", "localhost", "-bind-to", "none",
                              "-launcher", "fork"]
    lines = wrapper(plan)
    assert "local=$((rank % 2)) node=$((rank / 2))" in lines
    assert not any("taskset" in line for line in lines)


def test_a_machine_of_one_node_never_depends_on_its_host_name() -> None:
    plan = planned(Resources(mpi=True), platform=platforms.workstation(1), launcher=Launcher("hydra"))
    assert plan.argv[5:9] == ["-hosts", "localhost", "-bind-to", "none"]


@pytest.mark.parametrize(("flavour", "flag", "line"), [
    ("pals", "--hostfile", "x0"), ("hydra", "-f", "x0:1"), ("openmpi", "--hostfile", "x0 slots=1"),
    ("srun", "-w", "x0")])
def test_many_hosts_are_given_in_a_file(flavour: str, flag: str, line: str) -> None:
    plan = planned(Resources(num_nodes=65), launcher=Launcher(flavour))
    assert plan.argv[plan.argv.index(flag) + 1] == "/dir/hosts"
    assert plan.files["hosts"].decode().splitlines()[0] == line
    assert len(plan.files["hosts"].splitlines()) == 65


def test_a_command_line_of_an_mpi_task_is_run_by_every_rank_and_its_preamble_once() -> None:
    plan = planned(ONE, command="lmp -in x > out", preamble="module load lammps")
    assert plan.argv[:4] == ["/bin/bash", "-c", 'module load lammps\nexec "$@"', "balsamfut"]
    assert plan.argv[4:] == [*GOLDEN["pals", 1], "/bin/sh", "/dir/wrapper.sh", "/bin/bash", "-c", "lmp -in x > out"]


def test_one_rank_goes_through_the_launcher_only_if_asked() -> None:
    assert planned(Resources()).argv == ["prog", "-x"]
    assert planned(Resources(mpi=True)).argv[:3] == ["mpiexec", "-n", "1"]


def test_a_flavour_that_is_not_known_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidOption, match="MPI launcher 'jsrun'; there are pals, hydra"):
        planned(ONE, launcher=Launcher("jsrun"))


# ---- agents

AGENTS = {
    "pals": "mpiexec -n 2 --ppn 1 --hosts x1,x2 --cpu-bind none --envall --no-abort-on-failure",
    "hydra": "mpiexec -n 2 -ppn 1 -hosts x1,x2 -bind-to none -disable-auto-cleanup",
    "openmpi": ("mpiexec -n 2 --host x1:1,x2:1 --map-by ppr:1:node:OVERSUBSCRIBE --bind-to none "
                "--rtos continuous,error-nonzero=0"),
    "srun": ("srun -N 2 -n 2 --ntasks-per-node=1 -w x1,x2 --cpu-bind=none --overlap --export=ALL --mpi=none "
             "--kill-on-bad-exit=0 --wait=0 --no-kill"),
}


@pytest.mark.parametrize("flavour", AGENTS)
def test_agents_are_one_process_on_each_host_by_one_command(flavour: str) -> None:
    assert dialects.agents(Launcher(flavour), ["x1", "x2"], "/run") == ([AGENTS[flavour].split()], {})
    [words], files = dialects.agents(Launcher(flavour, exe="/opt/l"), NAMES, "/run")
    assert words[0] == "/opt/l" and "/run/hosts" in words
    assert [line.split(":")[0].split()[0] for line in files["hosts"].decode().splitlines()] == NAMES


def test_agents_by_ssh_are_one_command_for_each_host() -> None:
    commands, files = dialects.agents(Launcher("ssh"), ["x1", "x2"], "/run")
    assert commands == [["/bin/sh", "/run/ssh.sh", "ssh", host] for host in ("x1", "x2")]
    assert list(files) == ["ssh.sh"]


def test_no_agents_by_a_launcher_that_is_not_known() -> None:
    with pytest.raises(InvalidOption, match="'jsrun'; there are pals, hydra, openmpi, srun and ssh"):
        dialects.agents(Launcher("jsrun"), ["x1"], "/run")


def test_how_hydra_reaches_other_hosts_stays_in_the_environment() -> None:
    ways = {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": "/opt/enter"}
    assert launch.scrub({**ways, "HYDRA_HOST_FILE": "/x", "HYDRA_PROXY_PORT": "1"}) == ways


# ---- launch_params


def with_params(flavour: str, *params: tuple[str, str], **more: object) -> Plan:
    resources = Resources(ranks_per_node=2, threads_per_rank=2, launch_params=params)
    return planned(resources, launcher=Launcher(flavour), **more)


@pytest.mark.parametrize(("flavour", "params", "words"), [
    ("pals", [("no_vni", "yes"), ("mem_bind", "list:2:3")], "--no-vni --mem-bind list:2:3"),
    ("pals", [("no_vni", "0"), ("label", "true"), ("line_buffer", "1")], "--label --line-buffer"),
    ("pals", [("pmi", "pmix"), ("rlimits", "CORE,CPU")], "--pmi pmix --rlimits CORE,CPU"),
    ("pals", [("transfer", "no"), ("exclusive", "yes")], "--no-transfer --exclusive"),
    ("pals", [("abort_on_failure", "no"), ("umask", "027")], "--no-abort-on-failure --umask 027"),
    ("hydra", [("label", "1"), ("mem_bind", "numa:0")], "-l -membind numa:0"),
    ("hydra", [("abort_on_failure", "no"), ("iface", "hsn0")], "-disable-auto-cleanup -iface hsn0"),
    ("hydra", [("no_vni", "1"), ("abort_on_failure", "yes")], ""),
    ("openmpi", [("label", "1"), ("line_buffer", "1")], "--output tag --stream-buffering 1"),
    ("srun", [("mpi", "pmix"), ("no_vni", "1")], "--mpi=pmix --network=no_vni"),
    ("srun", [("abort_on_failure", "no")], "--kill-on-bad-exit=0"),    # after ours: the last one counts
])
def test_launch_params_become_the_launchers_words(flavour: str, params: list[tuple[str, str]], words: str) -> None:
    plain, asked = with_params(flavour).argv, with_params(flavour, *params).argv
    at = plain.index("/bin/sh")
    assert asked == plain[:at] + words.split() + plain[at:]


@pytest.mark.parametrize(("flavour", "words"), [
    ("pals", "--cpu-bind core"), ("hydra", "-bind-to core"), ("openmpi", "--bind-to core"),
    ("srun", "--cpu-bind=cores")])
def test_cpu_bind_by_the_launcher_turns_ours_off(flavour: str, words: str) -> None:
    plan = with_params(flavour, ("cpu_bind", "core"))
    assert words in " ".join(plan.argv)
    assert not any("taskset" in line for line in wrapper(plan))
    assert words not in " ".join(with_params(flavour, ("cpu_bind", "core"), pretend=True).argv)


def test_cpu_bind_depth_is_what_we_do_none_is_nothing_and_a_list_is_taken_by_local_rank() -> None:
    assert wrapper(with_params("pals", ("cpu_bind", "depth"))) == wrapper(with_params("pals"))
    assert wrapper(with_params("pals", ("cpu_bind", "none")))[-1] == 'exec "$@"'
    listed = with_params("pals", ("cpu_bind", "list:2-8:10-16"))
    assert "0) BALSAMFUT_CORES=2-8 ;;" in wrapper(listed)
    assert "1) BALSAMFUT_CORES=10-16 ;;" in wrapper(listed)
    assert any("taskset" in line for line in wrapper(listed))
    assert "none" in listed.argv


def test_cpu_bind_by_masks_is_taken_by_local_rank() -> None:
    masked = wrapper(with_params("pals", ("cpu_bind", "mask:1fe:0x1fe00")))
    assert "0) BALSAMFUT_CORES=1-8 ;;" in masked
    assert "1) BALSAMFUT_CORES=9-16 ;;" in masked


@pytest.mark.parametrize(("flavour", "rank"), RANK.items())
def test_output_gives_every_rank_a_file_of_its_own_whatever_the_launcher(flavour: str, rank: str) -> None:
    plan = with_params(flavour, ("output", "my runs/out.%r.txt"))
    assert plan.argv == with_params(flavour).argv
    assert [f"""exec >'my runs/out.'"${rank}".txt 2>&1""", *END[flavour]] == wrapper(plan)[-1 - len(END[flavour]):]


def test_ranks_that_shall_not_end_the_others_have_nobody_who_tells_hydra() -> None:
    assert wrapper(with_params("hydra", ("abort_on_failure", "no")))[-1] == 'exec "$@"'


@pytest.mark.parametrize(("flavour", "params", "sentence"), [
    ("pals", {"bogus": "x"}, "launch_params: 'bogus' is not known to pals; there are cpu_bind, output, mem_bind, pmi"),
    ("pals", {"gpu_bind": "x"}, "launch_params: 'gpu_bind' is said by gpus_per_rank"),
    ("hydra", {"ppn": "2"}, "launch_params: 'ppn' is said by ranks_per_node"),
    ("openmpi", {"abort_on_failure": "no"}, "launch_params: 'abort_on_failure' is not known to openmpi"),
    ("pals", {"cpu_bind": "list:1-8:9-x"}, "launch_params: cpu_bind='list:1-8:9-x' is wrong: '9-x' is not a CPU"),
    ("pals", {"cpu_bind": "list:1-8:"}, "launch_params: cpu_bind='list:1-8:' is wrong: a rank would have no CPU"),
    ("pals", {"cpu_bind": "mask:f:g"}, "launch_params: cpu_bind='mask:f:g' is wrong: 'f:g' are not hexadecimal masks"),
    ("pals", {"output": "out"}, "launch_params: output='out' has no %r, the rank's number"),
    ("pals", {"cpu_bind": "cores"}, "launch_params: cpu_bind='cores' is not known to pals; there are depth, none"),
    ("srun", {"no_vni": "maybe"}, "launch_params: no_vni='maybe' is neither yes nor no"),
    ("", {"pmi": "pmix"}, "launch_params: 'pmi' is not known to hydra"),
])
def test_launch_params_that_cannot_be_honoured_are_refused_by_name(flavour: str, params: dict, sentence: str) -> None:
    assert (launch.check_params(flavour, params) or "").startswith(sentence)
    if flavour:
        with pytest.raises(InvalidOption, match="launch_params"):
            with_params(flavour, *params.items())


def test_known_launch_params_pass() -> None:
    assert launch.check_params("pals", {"cpu_bind": "list:1-8:9-16", "no_vni": "True"}) is None
    assert launch.check_params("", {}) is None


# ---- what is inherited


def test_what_launchers_put_into_the_environment_is_taken_out_and_users_settings_stay() -> None:
    users = {"PATH": "/bin", "OMPI_MCA_btl": "self", "PALS_RPC_TIMEOUT": "240", "SLURM_JOB_ID": "1", "PBS_JOBID": "2",
             "MPICH_GPU_SUPPORT_ENABLED": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    launchers = dict.fromkeys(
        ["PMI_RANK", "PMI_FD", "PMIX_RANK", "PMIX_SERVER_URI2", "PALS_RANKID", "PALS_LOCAL_RANKID", "MPI_LOCALRANKID",
         "MPI_LOCALNRANKS", "HYDI_CONTROL_FD", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_initial_wdir", "PRTE_LAUNCHED",
         "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_CPU_BIND_LIST"], "0")
    assert launch.scrub({**users, **launchers}) == users
