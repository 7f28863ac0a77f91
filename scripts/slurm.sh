#!/usr/bin/env bash
# Install Slurm and munge from the distribution if they are missing, for the tests that run on a real cluster.
# Never fails: the tests say what they skip.
set -u
needed() { command -v slurmctld && command -v slurmd && command -v munged; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

if needed >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "no Slurm here, and no apt-get to install it with: the Slurm tests will be skipped" >&2
  exit 0
fi
echo "installing Slurm and munge for the tests"
if ! { as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq slurm-wlm munge; } >/dev/null; then
  echo "could not install Slurm (sudo apt-get install slurm-wlm munge): the Slurm tests will be skipped" >&2
fi
exit 0
