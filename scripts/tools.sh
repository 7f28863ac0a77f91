#!/usr/bin/env bash
# Install from the distribution what the tests use and pip has not, if it is missing: Slurm and munge for those that
# run on a real cluster, shellcheck for batch scripts, faketime for clocks that differ, a browser for reports. Never
# fails: the tests say what they skip.
set -u
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

packages=()
{ command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null || packages+=(slurm-wlm munge)
command -v shellcheck >/dev/null || packages+=(shellcheck)
command -v faketime >/dev/null || packages+=(faketime)
{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || packages+=(chromium)
if [ "${#packages[@]}" = 0 ]; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "no ${packages[*]} here, and no apt-get to install them with: their tests will be skipped" >&2
  exit 0
fi
echo "installing for the tests: ${packages[*]}"
as_root apt-get update -qq >/dev/null
# One by one: a distribution that lacks one of them has the others all the same.
for package in "${packages[@]}"; do
  DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq "$package" >/dev/null ||
    echo "could not install it (sudo apt-get install $package): its tests will be skipped" >&2
done
exit 0
