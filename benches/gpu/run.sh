#!/usr/bin/env bash
# Every check and measurement that needs a GPU, in one call: `run.sh --help` says more.
exec python3 "$(dirname "$0")/run.py" "$@"
