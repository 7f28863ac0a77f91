#!/bin/bash
#SBATCH --job-name=sample-1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-task=1
#SBATCH --time=0-00:30:00
#SBATCH --partition=batch
#SBATCH --network=disable_rdzv_get
#SBATCH --account=physics
#SBATCH --signal=B:USR1@120
#SBATCH --output=logs/attempt-1/job.log
#SBATCH --open-mode=append
#SBATCH --no-requeue
# run sample-1, attempt 1
hpcdl_folder=/scratch/runs/sample-1
cd -- "$hpcdl_folder" || exit
hpcdl_attempt=1
hpcdl_job="${SLURM_JOB_ID-}"
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
SECONDS=0 # what modules and setup take is of the walltime too

# How this script ended, renamed into place so that nobody reads half of it.
hpcdl_finish() {
  local code=$?
  printf '{"exit_code": %d}\n' "$code" >"$hpcdl_exit.part" && mv -f -- "$hpcdl_exit.part" "$hpcdl_exit"
  hpcdl_go_on "$code"
}

# The run goes on as another job if its time ended this one, or the engine itself, for a hang or a bad node.
# Whatever comes of it, this job ends as it did. Where TERM came earlier, somebody wants the nodes or the end,
# and only who watches the run goes on.
hpcdl_go_on() {
  local ended
  if [ "$1" = 0 ]; then
    ended=well
    [ -s "$hpcdl_folder/requests/attempt-$hpcdl_attempt" ] || return
  elif [ "$hpcdl_stopped" = 0 ]; then
    ended=badly
  else
    ended=at-limit
    [ "$SECONDS" -ge 1740 ] || return
  fi
  timeout 60 /opt/hpcdl/bin/python -m hpcdl advance "$hpcdl_folder" --attempt "$hpcdl_attempt" --ended "$ended" </dev/null ||
    echo "hpcdl: this job could not submit the next attempt; hpcdl advance does, wherever it is called"
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

command -v module >/dev/null || . /etc/profile
module load PrgEnv-gnu/8.7.0 || exit
module load cpe/26.03 || exit
module load miniforge3 || exit
module load rocm/7.1.1 || exit
module load craype-accel-amd-gfx90a || exit
module load rccl-net-plugin || exit
export LD_LIBRARY_PATH="$CRAY_LD_LIBRARY_PATH:$LD_LIBRARY_PATH"

set -u
export HPCDL_ATTEMPT="$hpcdl_attempt"
export OMP_NUM_THREADS=7
export NCCL_NET=Socket
export FI_MR_CACHE_MONITOR=kdreg2
export HSA_FORCE_FINE_GRAIN_PCIE=1
export MIOPEN_USER_DB_PATH=/tmp/my-miopen-cache
export MIOPEN_CUSTOM_CACHE_DIR=/tmp/my-miopen-cache

hpcdl_step() {
  exec srun --kill-on-bad-exit=1 --wait=60 --label --nodes=1 --ntasks=8 --ntasks-per-node=8 --cpus-per-task=7 --gpus-per-task=1 --gpu-bind=closest /opt/hpcdl/bin/python -m hpcdl.engine /scratch/runs/sample-1
}


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
