#!/bin/bash
# flux: --job-name=sample-1
# flux: --nodes=2
# flux: --nslots=8
# flux: --cores-per-slot=21
# flux: --gpus-per-slot=1
# flux: --exclusive
# flux: --time-limit=1800s
# flux: --queue=pdebug
# flux: --bank=physics
# flux: --output=logs/attempt-1/job.log
# run sample-1, attempt 1
hpcdl_folder=/scratch/runs/sample-1
cd -- "$hpcdl_folder" || exit
hpcdl_attempt=1
hpcdl_job="$(flux getattr jobid 2>/dev/null | sed s/^ƒ/f/)"
[ -n "$hpcdl_job" ] || hpcdl_job="process $$ of $(uname -n)" # started by hand

# Which attempt of the run this is. A scheduler may run a job again, under the same id: that is another attempt,
# with the next number that is free. A link is made once only, over NFS too, so no two jobs run one attempt.
hpcdl_begin() {
  mkdir -p starts claims rendezvous || return
  hpcdl_start && return
  hpcdl_is_mine || return
  hpcdl_attempt=$((hpcdl_attempt + 1))
  until hpcdl_claim; do
    # Claimed for another job. If that has not begun, it finds this link and never will.
    [ -L "$hpcdl_folder/claims/attempt-$hpcdl_attempt" ] || return
    hpcdl_start || hpcdl_is_nobodys || hpcdl_is_mine || return
    hpcdl_attempt=$((hpcdl_attempt + 1))
  done
  hpcdl_start || hpcdl_is_mine || return
  mkdir -p -- "$hpcdl_folder/logs/attempt-$hpcdl_attempt" "$hpcdl_folder/exits/attempt-$hpcdl_attempt" && : >>"$hpcdl_folder/requests/attempt-$hpcdl_attempt" || return
  echo "hpcdl: job $hpcdl_job runs again, as attempt $hpcdl_attempt, which has a log of its own"
  exec >>"$hpcdl_folder/logs/attempt-$hpcdl_attempt/job.log" 2>&1
}

# Over NFS a request whose answer was lost is sent again, and finds the link that it has made.
hpcdl_start() {
  [ ! -L "$hpcdl_folder/starts/attempt-$hpcdl_attempt" ] && { ln -sT -- "$hpcdl_job" "$hpcdl_folder/starts/attempt-$hpcdl_attempt" || [ "$(readlink -- "$hpcdl_folder/starts/attempt-$hpcdl_attempt")" = "$hpcdl_job" ]; }
}

hpcdl_claim() {
  [ ! -L "$hpcdl_folder/claims/attempt-$hpcdl_attempt" ] && ln -sT -- "requeued $hpcdl_job" "$hpcdl_folder/claims/attempt-$hpcdl_attempt"
}

# A launcher gave it up.
hpcdl_is_nobodys() {
  [ "$(readlink -- "$hpcdl_folder/starts/attempt-$hpcdl_attempt")" = nobody ]
}

hpcdl_is_mine() {
  local job
  job=$(readlink -- "$hpcdl_folder/starts/attempt-$hpcdl_attempt") || return
  [ "$job" = "$hpcdl_job" ] && return
  echo "hpcdl: attempt $hpcdl_attempt is run by job $job, so job $hpcdl_job ends here and has run nothing"
  return 1
}
# Ranks that look for where they meet before that file is there might not see it for a minute, on NFS.
hpcdl_begin && : >>"$hpcdl_folder/rendezvous/attempt-$hpcdl_attempt.json" || exit
hpcdl_exit="$hpcdl_folder/exits/attempt-$hpcdl_attempt/job.json"
hpcdl_step_pid=
hpcdl_stopped=0
hpcdl_timer_pid=
SECONDS=0 # what modules and setup take is of the walltime too

# How this script ended, renamed into place so that nobody reads half of it.
hpcdl_finish() {
  local code=$?
  [ -z "$hpcdl_timer_pid" ] || kill -s KILL "$hpcdl_timer_pid" 2>/dev/null
  printf '{"exit_code": %d}\n' "$code" >"$hpcdl_exit.part" && mv -f -- "$hpcdl_exit.part" "$hpcdl_exit"
}

# The end of the walltime is near: the ranks look for a line in this file, save themselves and stop.
hpcdl_warn() {
  echo 'the walltime is nearly over' >>"$hpcdl_folder/requests/attempt-$hpcdl_attempt"
}

# TERM is what schedulers send before KILL; the step gets it and may still save its work.
hpcdl_stop() {
  hpcdl_stopped=1
  [ -z "$hpcdl_step_pid" ] || kill -s TERM "$hpcdl_step_pid" 2>/dev/null
}

trap hpcdl_finish EXIT
trap hpcdl_stop TERM INT
trap hpcdl_warn USR1
export MIOPEN_USER_DB_PATH="${TMPDIR:-/tmp}/miopen" MIOPEN_CUSTOM_CACHE_DIR="${TMPDIR:-/tmp}/miopen"

set -u
export HPCDL_ATTEMPT="$hpcdl_attempt"
export OMP_NUM_THREADS=21
export NCCL_SOCKET_IFNAME=hsi0
export NCCL_NET=libfabric
export NCCL_NET_PLUGIN=librccl-net.so
export NCCL_NET_GDR_LEVEL=3
export NCCL_CROSS_NIC=1
export NCCL_MIN_NCHANNELS=24
export FI_MR_CACHE_MONITOR=userfaultfd
export FI_CXI_DISABLE_HOST_REGISTER=1
export FI_CXI_DEFAULT_CQ_SIZE=131072
export FI_CXI_DEFAULT_TX_SIZE=1024
export FI_CXI_RX_MATCH_MODE=hybrid
export FI_CXI_RDZV_PROTO=alt_read
export FI_CXI_RDZV_EAGER_SIZE=0
export FI_CXI_RDZV_THRESHOLD=0
export FI_CXI_RDZV_GET_MIN=0

hpcdl_step() {
  exec flux run --nodes=2 --ntasks=8 --cores-per-task=21 --gpus-per-task=1 --label-io --setopt=exit-on-error --setopt=exit-timeout=none --setopt=gpu-affinity=per-task -u -onosetpgrp -ofastload=on -ompibind=omp_proc_bind,omp_places --setattr=rdzv_get_en=0 /opt/hpcdl/bin/python -m hpcdl.engine /scratch/runs/sample-1
}

# A clock of our own, for this scheduler warns of no limit. Reading from a pipe that stays empty is sleeping
# without a process that would outlive the script.
hpcdl_timer() {
  local tick left=$((1680 - SECONDS))
  trap - EXIT TERM INT USR1
  exec {tick}<> <(:)
  read -r -t "$((left > 0 ? left : 0))" -u "$tick" || hpcdl_warn
}
hpcdl_timer &
hpcdl_timer_pid=$!
disown "$hpcdl_timer_pid" # so that bash does not report its end in the log

# bash runs a trap only between commands, so the step runs beside it; wait returns early when a trap fires.
[ "$hpcdl_stopped" = 0 ] || exit 143
hpcdl_step &
hpcdl_step_pid=$!
[ "$hpcdl_stopped" = 0 ] || hpcdl_stop
wait "$hpcdl_step_pid"
while kill -s 0 "$hpcdl_step_pid" 2>/dev/null; do
  wait "$hpcdl_step_pid"
done
wait "$hpcdl_step_pid"
exit
