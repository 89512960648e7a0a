#!/bin/sh
# Makes .venv from the lock files. Every make target runs it; it is silent when nothing changed.
#   PYTHON=/path/to/python3.11   use this interpreter
#   UV=/path/to/uv               use this uv instead of the pinned one; UV=none installs with pip
set -eu
cd "$(dirname -- "$0")"
lock=requirements-py311.lock nodeps=requirements-nodeps.txt uv_version=0.13.9
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT UV_PYTHON UV_SYSTEM_PYTHON

say() { echo "setup: $*" >&2; }
real() { "$1" -c 'import os, sys; print(os.path.realpath(sys.executable))'; }
is_311() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }
stamp() { { pwd; cat setup.sh pyproject.toml "$lock" "$nodeps" .venv/pyvenv.cfg; } 2>/dev/null | cksum; }
ready() {
    [ ! -e .venv/.incomplete ] && [ -x .venv/bin/python ] && [ "$(cat .venv/.stamp 2>/dev/null)" = "$(stamp)" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(real "$PYTHON" 2>/dev/null)" = "$(real .venv/bin/python)" ]; }
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_311 "$PYTHON" && real "$PYTHON" && return
        say "PYTHON=$PYTHON is not a Python 3.11 with the venv and ensurepip modules."
        return 1
    fi
    for python in python3.11 python3 python "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.11*/bin/python \
        "${HOME:-}"/.local/share/uv/python/cpython-3.11*/bin/python3.11; do
        is_311 "$python" && real "$python" && return
    done
    say "no Python 3.11 found (tried python3.11, python3, python, and the versions of pyenv and uv).
TensorFlow 2.12 and the Merlin libraries need 3.11. Install it in one of these ways, then run the command again:
    Debian 12      apt install python3.11 python3.11-venv
    pyenv          pyenv install 3.11
    uv             uv python install 3.11
    conda          conda create -n py311 python=3.11 && conda activate py311
or name one that is elsewhere: make setup PYTHON=/path/to/python3.11"
    return 1
}

# uv does not read pip's configuration: hand it what pip would use, unless uv has been told otherwise.
uv_settings() {
    config=$(.venv/bin/python -m pip config list 2>/dev/null || true)
    for pair in index-url:UV_DEFAULT_INDEX extra-index-url:UV_INDEX find-links:UV_FIND_LINKS \
        trusted-host:UV_INSECURE_HOST cert:SSL_CERT_FILE; do
        name=${pair#*:}
        for section in global install :env:; do
            value=$(printf '%s\n' "$config" | sed -n "s/^$section\.${pair%%:*}='\(.*\)'\$/\1/p" | sed 's/\\n/ /g')
            [ "$name" != UV_FIND_LINKS ] || value=$(echo "$value" | tr ' ' ,)
            [ -z "$value" ] || eval ": \${$name:=\$value}; export $name"
        done
    done
    export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}" # as pip does; hashes decide what is accepted
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-120}"
}

# Bytecode as pip makes it: where Python may not write it (PYTHONDONTWRITEBYTECODE, usual in containers),
# every process would compile TensorFlow's sources again, 8 seconds of its 13.
install_with_uv() {
    uv=${UV:-.venv/bin/uv}
    if [ -z "${UV:-}" ]; then .venv/bin/python -m pip install -qq "uv==$uv_version" || return 1; fi
    (
        uv_settings
        "$uv" pip install $quiet --compile-bytecode --python .venv/bin/python --no-deps --build-constraints "$lock" -r "$lock" -r "$nodeps" &&
            "$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
    )
}

install_with_pip() {
    .venv/bin/python -m pip install -q 'pip<26.3' && # later ones refuse merlin-models
        .venv/bin/python -m pip install $quiet --no-deps --require-hashes -r "$lock" -r "$nodeps" &&
        .venv/bin/python -m pip install -q --no-deps --no-build-isolation -e .
}

ready && exit
if command -v flock >/dev/null; then # one set-up at a time in this folder
    exec 9<setup.sh
    flock -n 9 || { say "another set-up is at work here, waiting for it"; flock 9; }
    ready && exit
fi

if [ -e .venv/.incomplete ]; then
    say "the last set-up was interrupted, beginning again"
    rm -rf .venv
elif [ -n "${PYTHON:-}" ] && [ -x .venv/bin/python ] && [ "$(real "$PYTHON")" != "$(real .venv/bin/python)" ]; then
    rm -rf .venv
fi
if ! is_311 .venv/bin/python; then
    python=$(find_python)
    rm -rf .venv
    say "making .venv with $python; the first time takes minutes and 4 GB of disk"
    mkdir .venv
    : >.venv/.incomplete
    "$python" -m venv .venv
else
    say "bringing .venv up to date"
    : >.venv/.incomplete
fi
rm -f .venv/.stamp
quiet=-q
[ ! -t 2 ] || quiet=
if [ "${UV:-}" = none ] || ! install_with_uv; then
    [ "${UV:-}" = none ] || say "uv could not install the environment, trying pip"
    install_with_pip || { say "the environment could not be installed; the reason is above. Run the command again when it is mended."; exit 1; }
fi
stamp >.venv/.stamp
rm -f .venv/.incomplete
say "ready"
