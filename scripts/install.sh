#!/usr/bin/env bash
# Make the Python environment: `.venv` in the repository (or the virtual environment that is active), the pinned
# requirements.txt, this library in editable mode. Safe to repeat; does nothing when nothing changed.
#
#   bash scripts/install.sh
#   bash scripts/install.sh --align-anything    # an environment with align-anything's trainer and its older stack
#   ALIGN_ANYTHING=/path/to/align-anything bash scripts/install.sh --align-anything
#
# The second kind is made beside the first, in ALIGN_ANYTHING_ENV, and never in an environment of the first kind. It
# holds everything of requirements-align-anything.txt, this library, and the drop-in template. Activate it to use it.
#
# On a GPU machine (`nvidia-smi -L` works) vLLM is added too (scripts/install_vllm.sh); VLLM=no leaves it out.
#
# Sourced by quickstart.sh and test.sh. Known limit: on a machine where the package index serves CUDA builds of
# torch, the first installation downloads several GB.
set -euo pipefail
# shellcheck source=scripts/help.sh
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then source "$(dirname "$0")/help.sh" "" "$@"; fi

PYTHON="${PYTHON:-}" # interpreter for a new environment; empty: python3 (3.10 to 3.13), with align-anything python3.11
ALIGN_ANYTHING="${ALIGN_ANYTHING:-}"         # where align-anything comes from: a folder or a git URL; empty: the pinned commit
ALIGN_ANYTHING_ENV="${ALIGN_ANYTHING_ENV:-}" # its environment; empty: .venv-align-anything
VLLM="${VLLM:-auto}" # auto: vLLM where there is a GPU (not beside align-anything: it needs another torch); no: never

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ENVIRONMENT="${VIRTUAL_ENV:-$REPO/.venv}"
REQUIREMENTS=requirements.txt
ALIGN_ANYTHING_STAMP=.guardrail-align-anything # in an environment of the second kind, from its first moment
TEMPLATE_COPY=.guardrail-template.py           # there, too: the drop-in template that was installed last

fail() {
    echo "error: $*" >&2
    exit 2
}

if [[ -f "$ENVIRONMENT/$ALIGN_ANYTHING_STAMP" ]]; then # active: it stays what it is
    REQUIREMENTS=requirements-align-anything.txt
fi
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    for ARGUMENT in "$@"; do
        [[ "$ARGUMENT" == --align-anything ]] || fail "unknown argument '$ARGUMENT'; expected --align-anything or nothing"
    done
    if (($#)) && [[ "$REQUIREMENTS" == requirements.txt || -n "$ALIGN_ANYTHING_ENV" ]]; then
        REQUIREMENTS=requirements-align-anything.txt
        ENVIRONMENT="$(realpath -m -- "${ALIGN_ANYTHING_ENV:-$REPO/.venv-align-anything}")"
        [[ ! -f "$ENVIRONMENT/.guardrail-installed" || -f "$ENVIRONMENT/$ALIGN_ANYTHING_STAMP" ]] ||
            fail "$ENVIRONMENT holds the default stack, which would be replaced; set ALIGN_ANYTHING_ENV to another folder"
    fi
fi

SOURCE="$ALIGN_ANYTHING"
if [[ "$REQUIREMENTS" == requirements.txt ]]; then
    PYTHON="${PYTHON:-python3}" SUPPORTED='(3, 10) <= sys.version_info[:2] <= (3, 13)' VERSIONS=3.10-3.13 SOURCE=''
else
    PYTHON="${PYTHON:-python3.11}" SUPPORTED='sys.version_info[:2] == (3, 11)' VERSIONS=3.11
    if [[ -n "$SOURCE" && "$SOURCE" != *://* ]]; then
        [[ -f "$SOURCE/pyproject.toml" && -d "$SOURCE/align_anything" ]] ||
            fail "ALIGN_ANYTHING=$SOURCE is no checkout of align-anything (no pyproject.toml with align_anything/ beside it)"
        SOURCE="$(realpath -- "$SOURCE")"
    elif [[ "$SOURCE" == *://* && "$SOURCE" != *+*://* ]]; then
        SOURCE="git+$SOURCE"
    fi
fi

if [[ ! -x "$ENVIRONMENT/bin/python" ]]; then
    command -v "$PYTHON" >/dev/null ||
        fail "no $PYTHON on the PATH; install Python $VERSIONS or set PYTHON=/path/to/python"
    "$PYTHON" -c "import sys; sys.exit(not $SUPPORTED)" ||
        fail "$("$PYTHON" --version) is not supported here; set PYTHON to a Python $VERSIONS"
    echo "creating $ENVIRONMENT" >&2
    "$PYTHON" -m venv "$ENVIRONMENT" ||
        fail "cannot create $ENVIRONMENT; on Debian and Ubuntu install the package python3-venv, then run this again"
fi
if [[ "${VIRTUAL_ENV:-}" != "$ENVIRONMENT" ]]; then
    # shellcheck disable=SC1091
    source "$ENVIRONMENT/bin/activate"
fi
python -c "import sys; sys.exit(not $SUPPORTED)" ||
    fail "$ENVIRONMENT has $(python --version), which is not supported here; expected $VERSIONS"

# The stamp is written last: an installation cut short is taken up again.
STAMP="$ENVIRONMENT/.guardrail-installed"
WANTED="$REPO $(cat "$REPO/$REQUIREMENTS" "$REPO/pyproject.toml" | sha256sum)"
if [[ "$REQUIREMENTS" != requirements.txt ]]; then
    touch "$ENVIRONMENT/$ALIGN_ANYTHING_STAMP"
    if [[ -z "$SOURCE" ]]; then SOURCE="$(cat "$ENVIRONMENT/$ALIGN_ANYTHING_STAMP")"; fi # where it came from before
    WANTED+=" $SOURCE"
    if [[ -d "$SOURCE" ]]; then # a folder's content counts
        WANTED+=" $(find "$SOURCE/align_anything" "$SOURCE/pyproject.toml" -type f \( -name '*.py' -o -name '*.yaml' -o \
            -name '*.json' -o -name '*.toml' \) -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)"
    fi
fi
if [[ ! -f "$STAMP" || "$(cat "$STAMP")" != "$WANTED" ]]; then
    rm -f "$STAMP" # half of a new set is no longer the old one
    LOG="$ENVIRONMENT/install.log"
    INSTALL=(-r "$REPO/$REQUIREMENTS")
    if [[ -n "$SOURCE" ]]; then # the same pins, align-anything from elsewhere
        grep -v '^align-anything @' "$REPO/$REQUIREMENTS" >"$ENVIRONMENT/requirements.txt"
        INSTALL=(-r "$ENVIRONMENT/requirements.txt" "$SOURCE")
    fi
    echo "installing $REQUIREMENTS${SOURCE:+ with align-anything from $SOURCE} into $ENVIRONMENT (log: $LOG)" >&2
    python -m pip install --progress-bar off "${INSTALL[@]}" 2>&1 | tee "$LOG" |
        sed -un -e 's/^Collecting \([^ ]*\).*/  \1/p' -e 's/^Installing collected.*/  unpacking .../p' >&2 ||
        fail "pip could not install $REQUIREMENTS${SOURCE:+ with $SOURCE}; the reason is at the end of $LOG"
    python -m pip install -q --no-deps --no-build-isolation -e "$REPO" >>"$LOG" 2>&1 ||
        fail "pip could not install the library itself; the reason is at the end of $LOG"
    if [[ "$REQUIREMENTS" != requirements.txt ]]; then
        echo "$SOURCE" >"$ENVIRONMENT/$ALIGN_ANYTHING_STAMP"
        rm -f "$ENVIRONMENT/$TEMPLATE_COPY" # the package has its own again
    fi
    echo "$WANTED" >"$STAMP"
fi
if [[ "$REQUIREMENTS" != requirements.txt ]] && ! cmp -s "$REPO/configs/template.py" "$ENVIRONMENT/$TEMPLATE_COPY"; then
    bash "$REPO/scripts/install_template.sh" >>"$ENVIRONMENT/install.log" 2>&1 ||
        fail "the drop-in template could not be installed; the reason is at the end of $ENVIRONMENT/install.log"
    cp "$REPO/configs/template.py" "$ENVIRONMENT/$TEMPLATE_COPY"
fi

# vLLM needs the torch of requirements.txt; another set of requirements has another torch.
if [[ "$VLLM" == auto && "$REQUIREMENTS" == requirements.txt ]] && nvidia-smi -L >/dev/null 2>&1 &&
    ! python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then
    echo "a GPU: adding vLLM (VLLM=no leaves it out)" >&2
    DEVICE=gpu VLLM_ENV="" bash "$REPO/scripts/install_vllm.sh" >&2 ||
        echo "vLLM could not be added; everything but the vLLM backend works. To try again: bash scripts/install_vllm.sh" >&2
fi
if [[ "${BASH_SOURCE[0]}" == "$0" && "$REQUIREMENTS" != requirements.txt ]]; then
    echo "align-anything is ready; use it with: source $ENVIRONMENT/bin/activate" >&2
fi
