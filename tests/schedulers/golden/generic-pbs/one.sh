#!/bin/bash
#PBS -N sample-1
#PBS -l select=1:ncpus=64:mpiprocs=1:ngpus=4
#PBS -l place=scatter
#PBS -l walltime=00:30:00
#PBS -q workq
#PBS -A physics
#PBS -j oe
#PBS -k oed
#PBS -o logs/attempt-1/job.log
#PBS -r n
# run sample-1, attempt 1
# pbsdsh starts this script anew on every host, with the word host, in an environment that has nothing of the
# job's own. There it sets up the same, starts that host's ranks and leaves their exit code in a file.
hpcdl_folder=/scratch/runs/sample-1
cd -- "$hpcdl_folder" || exit
hpcdl_attempt=1
if [ "${1-}" = host ]; then
  hpcdl_attempt=$2
  [ "$2" = 1 ] || exec >>"$hpcdl_folder/logs/attempt-$hpcdl_attempt/job.log" 2>&1
fi
hpcdl_job="${PBS_JOBID-}"
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
[ "${1-}" = host ] || { hpcdl_begin && : >>"$hpcdl_folder/rendezvous/attempt-$hpcdl_attempt.json"; } || exit
hpcdl_exit="$hpcdl_folder/exits/attempt-$hpcdl_attempt/job.json"
hpcdl_hosts="$hpcdl_folder/exits/attempt-$hpcdl_attempt/hosts"
[ "${1-}" != host ] || hpcdl_exit=$hpcdl_hosts/$PBS_NODENUM
hpcdl_step_pid=
hpcdl_stopped=0
hpcdl_timer_pid=
SECONDS=0 # what modules and setup take is of the walltime too

# How this script ended, renamed into place so that nobody reads half of it.
hpcdl_finish() {
  local code=$?
  [ -z "$hpcdl_timer_pid" ] || kill -s KILL "$hpcdl_timer_pid" 2>/dev/null
  printf '{"exit_code": %d}\n' "$code" >"$hpcdl_exit.part" && mv -f -- "$hpcdl_exit.part" "$hpcdl_exit"
  [ "$hpcdl_exit" = "$hpcdl_folder/exits/attempt-$hpcdl_attempt/job.json" ] || return "$code"
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

set -u
export HPCDL_ATTEMPT="$hpcdl_attempt"
export OMP_NUM_THREADS=16

if [ "${1-}" = host ]; then
hpcdl_first_rank=$((PBS_NODENUM * 4))
export PBS_NODEFILE="$hpcdl_hosts/nodes" # pbsdsh tells the first host of none

# One process a rank of this host. The first that fails ends the others.
hpcdl_step() {
  local index pid tick ended code=0 stopped=0 ranks=()
  trap 'stopped=1' TERM
  for ((index = 0; index < 4; index++)); do
    RANK=$((${hpcdl_first_rank:-0} + index)) LOCAL_RANK=$index WORLD_SIZE=4 /opt/hpcdl/bin/python -m hpcdl.engine /scratch/runs/sample-1 &
    ranks+=("$!")
  done
  # To read from a pipe that stays empty is to sleep without a process. Not wait -n: in bash 5.2, one that
  # a trap interrupted makes a later wait report 255 for ranks that ended otherwise.
  exec {tick}<> <(:)
  while [ "$code$stopped" = 00 ] && kill -s 0 "${ranks[@]}" 2>/dev/null; do
    read -r -t 0.1 -u "$tick"
    for pid in "${ranks[@]}"; do
      kill -s 0 "$pid" 2>/dev/null || wait "$pid" || {
        ended=$?
        # A rank that crashed or was killed tells more than one that ended at once for want of it.
        ((code == 0 || (code < 128 && ended > 128 && ended != 143))) && code=$ended
      }
    done
  done
  hpcdl_end_ranks "${ranks[@]}"
  for pid in "${ranks[@]}"; do
    wait "$pid" || code=$((code ? code : $?))
  done
  return "$code"
}

# TERM at once, KILL after a grace of 10 s.
hpcdl_end_ranks() {
  local deadline=$((SECONDS + 10))
  kill -s TERM "$@" 2>/dev/null
  while [ "$SECONDS" -lt "$deadline" ]; do
    kill -s 0 "$@" 2>/dev/null || return
    read -r -t 0.1 -u "$tick"
  done
  kill -s KILL "$@" 2>/dev/null
}

# A file that is opened anew shows on NFS what another host wrote into it; that one has appeared shows later.
hpcdl_heed() {
  local tick
  trap - EXIT TERM INT USR1
  exec {tick}<> <(:)
  until read -r <"$hpcdl_hosts/stop"; do
    kill -s 0 "$$" 2>/dev/null || exit
    read -r -t 1 -u "$tick"
  done
  kill -s TERM "$$"
}
hpcdl_heed >/dev/null 2>&1 &
disown "$!"
else

# pbsdsh exits with 0 whatever its tasks did. So each host leaves its exit code in a file, and one more file,
# which every host reads, tells them to stop.
hpcdl_step() {
  local pid tick code=0
  trap 'code=143' TERM
  hpcdl_meet_hosts || return
  pbsdsh -- /bin/bash -l /scratch/runs/sample-1/job.sh host "$hpcdl_attempt" &
  pid=$!
  exec {tick}<> <(:)
  while [ "$code" = 0 ] && kill -s 0 "$pid" 2>/dev/null; do
    read -r -t 1 -u "$tick"
    hpcdl_look_at_hosts 0
  done
  [ "$code" != 0 ] || wait "$pid" || code=$?
  if [ "$code" = 0 ]; then
    hpcdl_look_at_hosts none
  else
    hpcdl_stop_hosts
  fi
  return "$code"
}

# An empty file for each host, and their names; PBS_NODEFILE has a line for each task that pbsdsh starts.
hpcdl_meet_hosts() {
  local host
  if [ "$(wc -l <"$PBS_NODEFILE")" -ne 1 ] || [ "$(sort -u "$PBS_NODEFILE" | wc -l)" -ne 1 ]; then
    echo "hpcdl: pbsdsh starts one task on each of 1 hosts, but PBS gave: $(tr '\n' ' ' <"$PBS_NODEFILE")"
    return 1
  fi
  mkdir -p -- "$hpcdl_hosts" && : >"$hpcdl_hosts/stop" && cat -- "$PBS_NODEFILE" >"$hpcdl_hosts/nodes" || return
  for ((host = 0; host < 1; host++)); do
    : >"$hpcdl_hosts/$host" || return
  done
}

# Sets code to that of a host whose ranks failed, rather one whose ranks were not told to end.
# $1: what a host counts as that has said nothing.
hpcdl_look_at_hosts() {
  local host word
  for ((host = 0; host < 1; host++)); do
    read -r word <"$hpcdl_hosts/$host" || word=$1
    word=${word//[!0-9]/}
    case $word in
      0) ;;
      143) code=143 ;;
      '') code=1 && echo "hpcdl: host $((host + 1)) of 1 left no exit code: not started, or lost" ;;
      *) code=$word && return ;;
    esac
  done
}

# Their ranks have 10 s to end after TERM, and the job that ends kills them; a host that is lost never answers.
# Not waiting for pbsdsh, which a TERM may have ended before its tasks.
hpcdl_stop_hosts() {
  local host deadline=$((SECONDS + 20))
  echo "$code" >"$hpcdl_hosts/stop"
  for ((host = 0; host < 1; host++)); do
    until read -r <"$hpcdl_hosts/$host" || [ "$SECONDS" -ge "$deadline" ]; do
      read -r -t 0.2 -u "$tick"
    done
  done
}
fi

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
