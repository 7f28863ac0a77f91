#!/usr/bin/env bash
# Make a virtual environment and install hpcdl with its pinned dependencies into it.
# usage: scripts/venv.sh VENV EXTRAS       e.g. scripts/venv.sh .venv engine,mpi,test
set -euo pipefail
venv=$1
extras=$2
python=${PYTHON:-python3}
# Where the PyTorch project publishes builds without CUDA.
torch_cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "hpcdl needs Python 3.11 or newer; $("$python" --version) was found. Name another: make PYTHON=python3.12" >&2
  exit 2
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

make_venv() { "$python" -m venv "$venv" 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

if ! [ -x "$venv/bin/pip" ] && ! make_venv; then
  # Debian and Ubuntu ship venv apart from Python.
  echo "python3-venv is missing; installing it"
  as_root apt-get update -qq && as_root apt-get install -y -qq python3-venv && make_venv || {
    echo "cannot make a virtual environment; install it with: sudo apt-get install python3-venv" >&2
    exit 2
  }
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/kfd ]; }

# The default build of torch brings gigabytes of CUDA; a machine without a GPU takes the CPU build.
if ! has_gpu && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  version=$(sed -n 's/^torch==//p' constraints.txt)
  echo "no GPU here: installing the CPU build of torch $version"
  pip install --quiet --constraint constraints.txt "torch==$version+cpu" 2>/dev/null ||
    pip install --quiet --constraint constraints.txt "torch==$version+cpu" --extra-index-url "$torch_cpu_index"
fi

echo "installing hpcdl[$extras] into $venv"
pip install --quiet --constraint constraints.txt --editable ".[$extras]"
