#!/bin/sh
# Install torch into the environment whose pip is $PIP. What $TORCH names wins. On Linux without a GPU the default wheel
# would bring gigabytes of CUDA, so the newest CPU build (a version ending in "+cpu") that pip's configured indexes
# list is preferred; everywhere else, and where no index lists one, the default build.
set -eu
if [ -n "${TORCH:-}" ]; then
    # shellcheck disable=SC2086  # several pip arguments may be given
    exec "$PIP" install $TORCH
fi
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && [ ! -e /dev/kfd ]; then
    cpu=$("$PIP" index versions torch 2>/dev/null | grep -o '[0-9][0-9.]*+cpu' | head -n 1 || true)
    [ -z "$cpu" ] || exec "$PIP" install "torch==$cpu"
    echo 'no CPU build of torch on the configured indexes: installing the default one, which is large;' >&2
    echo 'TORCH="torch --index-url https://download.pytorch.org/whl/cpu" avoids it' >&2
fi
exec "$PIP" install "torch>=2.6"
