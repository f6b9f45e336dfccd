#!/usr/bin/env bash
# A Slurm for the tests: one machine, several virtual nodes with stand-in GPUs; no systemd, no accounting, no cgroups.
#
#   local_slurm.sh install     Debian packages, if they are missing (root)
#   local_slurm.sh up FOLDER   start, or start again what is missing; everything it writes lies in FOLDER (root)
#   local_slurm.sh down FOLDER stop what `up` started, by its own pid files
#
# NODES, CPUS and GPUS (per node) can be set in the environment.
set -euo pipefail

NODES=${NODES:-2}
CPUS=${CPUS:-8}
GPUS=${GPUS:-2}
PORT=${PORT:-27817}
HOST=$(hostname -s)
# Job steps that Snakemake starts do not get SLURM_CONF, so the configuration must also lie where Slurm looks by default.
SYSTEM=/etc/slurm

say() { echo "local_slurm: $*" >&2; }

install_packages() {
    command -v slurmctld slurmd srun munged > /dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null
}

runs() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2> /dev/null; }

configure() {
    local folder=$1 megabytes
    megabytes=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    mkdir -p "$folder"/{state,spool,log,run,devices}
    # Other users must reach the socket; slurmd refuses folders that they can write to.
    chmod 755 "$folder" "$folder"/*
    for ((k = 0; k < GPUS; k++)); do
        # Slurm insists on character devices: copies of /dev/null stand for /dev/nvidia*.
        [ -e "$folder/devices/gpu$k" ] || mknod -m 666 "$folder/devices/gpu$k" c 1 3
    done
    cat > "$folder/slurm.conf" << CONF
ClusterName=rmtest
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# Credentials that expire soon: a requeued job waits until those of its first start have.
AuthInfo=socket=$folder/run/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
GresTypes=gpu
DefMemPerCPU=200
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
JobRequeue=0
MinJobAge=3600
KillWait=5
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for ((n = 1; n <= NODES; n++)); do
        # The same physical memory is promised to every node: the jobs of the tests use far less than they ask for.
        echo "NodeName=n$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + n)) CPUs=$CPUS CoresPerSocket=$CPUS" \
            "RealMemory=$megabytes Gres=gpu:$GPUS" >> "$folder/slurm.conf"
    done
    # The flag makes Slurm set CUDA_VISIBLE_DEVICES.
    echo "Name=gpu Flags=nvidia_gpu_env File=$folder/devices/gpu[0-$((GPUS - 1))]" > "$folder/gres.conf"
    echo "CgroupMountpoint=/sys/fs/cgroup" > "$folder/cgroup.conf"
}

up() {
    local folder=$1
    if [ -e "$SYSTEM/slurm.conf" ] && [ ! -L "$SYSTEM/slurm.conf" ]; then
        say "$SYSTEM/slurm.conf is the configuration of another Slurm; not touched"
        exit 3
    fi
    local other
    other=$(dirname "$(readlink "$SYSTEM/slurm.conf" || echo "$folder/none")")
    # Left by a test that was killed; tests take turns (conftest.py).
    if [ "$other" != "$folder" ]; then down "$other"; fi
    configure "$folder"
    mkdir -p "$SYSTEM"
    for name in slurm gres cgroup; do ln -sfn "$folder/$name.conf" "$SYSTEM/$name.conf"; done
    if ! runs "$folder/run/munged.pid"; then
        head -c 1024 /dev/urandom > "$folder/munge.key"
        chmod 400 "$folder/munge.key"
        munged --force --socket="$folder/run/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/run/munged.pid" \
            --seed-file="$folder/run/munge.seed" --log-file="$folder/log/munged.log"
    fi
    runs "$folder/run/slurmctld.pid" || slurmctld -c
    for ((n = 1; n <= NODES; n++)); do
        mkdir -p "$folder/spool/n$n"
        runs "$folder/run/slurmd-n$n.pid" || slurmd -N "n$n"
    done
    for ((k = 0; k < 120; k++)); do
        [ "$(sinfo -h -N -t idle,mix,alloc -o %N 2> /dev/null | wc -l)" = "$NODES" ] && return
        sleep 0.25
    done
    say "did not come up; last lines of its logs:"
    tail -n 5 "$folder"/log/*.log >&2
    down "$folder"
    exit 1
}

down() {
    local folder=$1
    for file in "$folder"/run/slurmd-*.pid "$folder"/run/slurmctld.pid "$folder"/run/munged.pid; do
        if runs "$file"; then kill "$(cat "$file")"; fi
    done
    for file in "$folder"/run/slurmd-*.pid "$folder"/run/slurmctld.pid; do
        for ((k = 0; k < 40; k++)); do
            runs "$file" || break
            sleep 0.25
        done
        if runs "$file"; then kill -KILL "$(cat "$file")"; fi
    done
    for name in slurm gres cgroup; do
        if [ "$(readlink "$SYSTEM/$name.conf" || true)" = "$folder/$name.conf" ]; then rm "$SYSTEM/$name.conf"; fi
    done
}

case "${1:-}" in
    install) install_packages ;;
    up) up "${2:?folder}" ;;
    down) down "${2:?folder}" ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
