#!/usr/bin/env bash
# Everything a change must pass: lint, format, types, tests (the C++ runner's ctest included). Needs no GPU.
# Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup_venv.sh" -e '.[dev]'

ruff check .
ruff format --check .

# mypy wants the package as it is installed, with passes/ and schedules/ inside: setuptools lays it out.
root="$PWD"
package="$(mktemp -d)"
trap 'rm -rf "$package"' EXIT
python -c 'import setuptools; setuptools.setup()' --quiet build_py --build-lib "$package"
(cd "$package" && mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p nvfp4_tvm)

# Two processes with one kernel thread each; tests that share a compiled model stay in one process (loadgroup).
TVM_NUM_THREADS=1 python -m pytest -n 2 --dist loadgroup "$@"
