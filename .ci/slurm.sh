#!/usr/bin/env bash
# A Slurm of its own for tests: three nodes that are one machine, thrown away afterwards.
#
#   .ci/slurm.sh start DIR    as root: install slurm-wlm and munge from Debian where they are missing, start munged,
#                             slurmctld and three slurmd (n1, n2, n3), wait until the nodes are idle; DIR/env is to be sourced
#   .ci/slurm.sh stop DIR     cancel what runs and end the daemons
#
# Everything is in DIR, which must be empty or missing: configuration, key, sockets, state, logs. The ports are found free,
# so several can run side by side, and beside a Slurm of the machine.
set -euo pipefail

NODES=3
CPUS=4            # of each node, whatever the machine has: tests look at where work is placed, not at its speed
PATIENCE=60       # seconds for the nodes to become idle

say() { echo "slurm: $*" >&2; }
fail() { say "$*"; exit 1; }

# Debian's sbin is not on everybody's PATH.
PATH="$PATH:/usr/sbin:/sbin"

install_packages() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v srun >/dev/null \
        && command -v munged >/dev/null && return 0
    command -v apt-get >/dev/null || fail "slurmctld, slurmd, srun or munged is missing, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get -qq update >/dev/null || fail "apt-get update failed"
    timeout 240 apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null 2>&1 \
        || fail "slurm-wlm and munge could not be installed"
}

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
taken = [socket.create_server(("", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in taken))
PYTHON
}

write_conf() {
    local host ports n
    host=$(hostname -s)
    read -r -a ports <<<"$(free_ports $((NODES + 1)))"
    {
        echo "ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=NO"
        for n in $(seq $NODES); do
            echo "NodeName=n$n NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[n]} CPUs=$CPUS State=UNKNOWN"
        done
    } >"$DIR/slurm.conf"
}

start_munge() {
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge.key")
    # --force: the directories above need not be root's alone, for nobody else is to be kept out of a test.
    munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
        --log-file="$DIR/munged.log" --seed-file="$DIR/munge.seed" >/dev/null 2>"$DIR/munged.err" \
        || fail "munged did not start: $(cat "$DIR/munged.err")"
}

start_slurm() {
    local n deadline
    export SLURM_CONF="$DIR/slurm.conf"
    slurmctld -f "$SLURM_CONF" >/dev/null 2>"$DIR/start.err" || fail "slurmctld did not start: $(cat "$DIR/start.err")"
    for n in $(seq $NODES); do
        slurmd -N "n$n" -f "$SLURM_CONF" >/dev/null 2>"$DIR/start.err" || fail "slurmd did not start: $(cat "$DIR/start.err")"
    done
    deadline=$((SECONDS + PATIENCE))
    until [ "$(sinfo --noheader --format=%D --states=idle 2>/dev/null)" = "$NODES" ]; do
        [ $SECONDS -lt $deadline ] || fail "the nodes did not become idle in $PATIENCE s: $(tail -n 5 "$DIR"/*.log)"
        sleep 0.2
    done
}

start() {
    [ "$(id -u)" -eq 0 ] || fail "root is needed"
    install_packages
    mkdir -p "$DIR"/state "$DIR"/spool/n{1..3}
    chmod 755 "$DIR"
    trap 'stop' ERR EXIT
    write_conf
    start_munge
    start_slurm
    echo "export SLURM_CONF=$DIR/slurm.conf" >"$DIR/env"
    trap - ERR EXIT
}

cancel_all() {
    local deadline=$((SECONDS + 15)) jobs
    while jobs=$(timeout 5 squeue --noheader --format=%A 2>/dev/null) && [ -n "$jobs" ] && [ $SECONDS -lt $deadline ]; do
        # shellcheck disable=SC2086  # one word a job
        timeout 5 scancel $jobs 2>/dev/null || true
        sleep 0.2
    done
}

# A daemon that has ended is there until somebody reaps it, and a container's first process may not.
runs() {
    [ -e "/proc/$1/status" ] && ! grep -q '^State:[[:space:]]*[ZX]' "/proc/$1/status" 2>/dev/null
}

stop() {
    local file pid deadline
    export SLURM_CONF="$DIR/slurm.conf"
    [ ! -e "$DIR/slurmctld.pid" ] || cancel_all
    for file in "$DIR"/n*.pid "$DIR/slurmctld.pid" "$DIR/munged.pid"; do
        pid=$(cat "$file" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        deadline=$((SECONDS + 10))
        while runs "$pid" && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    done
}

[ $# -eq 2 ] || fail "usage: .ci/slurm.sh start|stop DIR"
mkdir -p "$2"
DIR=$(cd "$2" && pwd)
case $1 in
    start) start ;;
    stop) stop ;;
    *) fail "start or stop, not $1" ;;
esac
