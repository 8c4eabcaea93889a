#!/usr/bin/env bash
# A SLURM cluster of one node, for the tests: real daemons, bound to this machine's loopback.
#
#   node.sh install          slurm-wlm and munge from Debian's packages, and rsync, if missing
#   node.sh start FOLDER     munged, slurmctld and slurmd; all their files lie in FOLDER
#   node.sh stop FOLDER      ends the jobs and these daemons, takes the link in /etc/slurm away
#
# Needs root. FOLDER must have a short path (sockets lie in it). Accounting and limits of memory are
# off. Refuses a machine that has a SLURM of its own.
set -euo pipefail

# SLURM's tools look here, also inside of jobs, where the plugin of Snakemake drops SLURM_CONF.
conf=/etc/slurm/slurm.conf

fail() {
    echo "$*" >&2
    exit 1
}

install() {
    [ "$(id -u)" = 0 ] || fail "installing and starting SLURM needs root"
    type slurmctld slurmd munged sbatch rsync >/dev/null 2>&1 && return
    command -v apt-get >/dev/null || fail "no SLURM here, and no apt-get to install it"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends slurm-wlm munge rsync; } \
        >/dev/null 2>&1 || fail "apt-get could not install slurm-wlm, munge and rsync"
}

start() {
    local folder=$1 host
    host=$(hostname -s)
    # A link to nothing is what a killed test left.
    [ -e "$conf" ] || rm -f "$conf"
    [ ! -e "$conf" ] || fail "$conf exists: this machine has a SLURM of its own"
    mkdir -p "$folder"/{state,spool} "$(dirname "$conf")"
    cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
EnforcePartLimits=ALL
MinJobAge=3600
KillWait=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=32000
PartitionName=debug Nodes=$host Default=YES MaxTime=1440 DefMemPerCPU=500 State=UP
END
    # Whatever fails from here on, nothing may be left behind.
    trap 'stop "$folder"' ERR
    ln -s "$folder/slurm.conf" "$conf"
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 400 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed"
    slurmctld
    slurmd
    for _ in $(seq 50); do
        [ "$(sinfo --noheader --format=%t 2>/dev/null)" != idle ] || return 0
        sleep 0.2
    done
    tail -n 5 "$folder"/*.log >&2
    echo "SLURM was started but its node is not idle after 10 s" >&2
    false
}

# Whether a process is at work; one that nobody has buried yet is not.
alive() { grep -qs '^State:.[^Z]' "/proc/$1/status"; }

stop() {
    local folder=$1 name pid
    trap - ERR
    if [ -e "$folder/slurmctld.pid" ]; then
        squeue --noheader --format=%A 2>/dev/null | xargs --no-run-if-empty scancel || true
        for _ in $(seq 50); do
            [ -n "$(squeue --noheader 2>/dev/null)" ] || break
            sleep 0.2
        done
    fi
    for name in slurmd slurmctld munged; do
        pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do
            alive "$pid" || break
            sleep 0.2
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    [ "$(readlink "$conf" || true)" != "$folder/slurm.conf" ] || rm "$conf"
}

case "${1:-} $#" in
    "install 1") install ;;
    "start 2" | "stop 2") "$1" "$(realpath --canonicalize-missing "$2")" ;;
    *) fail "usage: node.sh install | start FOLDER | stop FOLDER" ;;
esac
