#!/usr/bin/env bash
# Sets up a virtual environment in the checkout and runs examples/quickstart.py in it. Arguments go to the latter.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup_venv.sh" -e '.[torch]' 'transformers>=5'
exec python examples/quickstart.py "$@"
