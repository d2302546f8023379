# Sourced by examples/quickstart.sh and tests/run.sh: goes to the checkout, makes .venv there, activates it, and
# installs what the arguments say, as `pip install` takes them.
#
#   PYTHON           the interpreter to make .venv with (default: the first of python3, python3.13, ... that is 3.10+)
#   NVFP4_TVM_TORCH  the PyTorch to install if .venv has none (default: torch==2.13.0)

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "found no Python >= 3.10 with venv: install one (Debian, Ubuntu: python3-venv) or set PYTHON" >&2
  return 1
}

# Also remakes one that an interrupted run left behind, or whose Python is gone.
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  python="$(find_python)"
  "$python" -m venv --clear .venv
fi
. .venv/bin/activate

# First, and by version, so that pip prefers a CPU build (2.13.0+cpu) where one is on offer: the build that PyPI has
# for Linux brings 2 GB of CUDA libraries, which nothing here needs.
if ! python -c 'import torch' 2>/dev/null; then
  python -m pip install "${NVFP4_TVM_TORCH:-torch==2.13.0}" || python -m pip install torch
fi
python -m pip install "$@"
