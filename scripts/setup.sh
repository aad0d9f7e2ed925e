# Sourced by every script in this folder: environment, devices, port, trainer, Weights & Biases.
#
#   source "$(dirname "$0")/setup.sh"
#
# Reads (all optional):
#   GPUS=             GPUs of this node, as 0,1; empty: those that CUDA_VISIBLE_DEVICES shows or SLURM gave, else the
#                     first four (python -m guardrail.core.gpus). A study (scripts/study.sh) shares them out: training
#                     takes all of them, every other job one, and sees only its own
#   DEVICE=auto       gpu, cpu, or auto: gpu where `nvidia-smi -L` works and CUDA_VISIBLE_DEVICES hides not all
#   NUM_PROCESSES=1   processes of one job on a CPU machine
#   MASTER_PORT=      a free port is found when empty
#   HOSTFILE=         DeepSpeed hostfile for several nodes (`name slots=4` a line): every launcher starts on each of them
#                     by ssh, in this folder and with this environment (python -m guardrail.core.nodes)
#   SFT_MODULE=       trainer; default: align-anything's when it is importable and can do what is asked, else this project's
# Gives: REPO, DEVICE, MASTER_PORT, DEEPSPEED_WHERE, ACCELERATE_WHERE, `launch`,
# `launch_processes`, `choose_trainer`, `launch_trainer`, `output_folder`.
# Does not parse anything: a script that needs a value from a stage reads its JSON in Python.
# shellcheck shell=bash
set -euo pipefail

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ -f "$REPO/pyproject.toml" ]]; then cd "$REPO"; fi # an installed wheel's scripts work in the caller's folder

if [[ -z "${VIRTUAL_ENV:-}" && -f "$REPO/.venv/bin/activate" ]]; then
    # shellcheck disable=SC1091
    source "$REPO/.venv/bin/activate"
fi
if ! python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("guardrail") is None)' 2>/dev/null; then
    echo "error: the library is not installed in this environment; run: bash scripts/install.sh" >&2
    exit 2
fi

DEVICE="${DEVICE:-auto}"
if [[ "$DEVICE" == auto ]] && ! command -v nvidia-smi >/dev/null; then DEVICE=cpu; fi
if [[ "$DEVICE" == auto || "$DEVICE" == gpu ]]; then
    GPUS="$(python -m guardrail.core.gpus --device "$DEVICE")"
    if [[ -n "$GPUS" ]]; then DEVICE=gpu; else DEVICE=cpu; fi
fi
case "$DEVICE" in
gpu)
    export CUDA_DEVICE_ORDER="${CUDA_DEVICE_ORDER:-PCI_BUS_ID}" # the numbers of nvidia-smi
    if [[ "${DS_ACCELERATOR:-}" == cpu ]]; then unset DS_ACCELERATOR; fi # from a login node without a GPU
    IFS=, read -ra GPU_LIST <<<"$GPUS"
    NUM_PROCESSES="${#GPU_LIST[@]}"
    DEEPSPEED_WHERE=(--include "localhost:$GPUS")
    ACCELERATE_WHERE=("--gpu_ids=$GPUS" "--num_processes=$NUM_PROCESSES")
    ;;
cpu)
    NUM_PROCESSES="${NUM_PROCESSES:-1}"
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    DEEPSPEED_WHERE=(--num_gpus "$NUM_PROCESSES") # DeepSpeed counts CPU ranks with the same flag
    # accelerate's --cpu always starts one process; several CPU ranks (gloo) come from its torchrun launcher, --multi_gpu
    ACCELERATE_WHERE=(--cpu --num_processes=1)
    if [[ "$NUM_PROCESSES" != 1 ]]; then ACCELERATE_WHERE=(--multi_gpu "--num_processes=$NUM_PROCESSES"); fi
    ;;
*)
    echo "error: unknown DEVICE '$DEVICE'; expected gpu, cpu or auto" >&2
    exit 2
    ;;
esac
if [[ -n "${HOSTFILE:-}" ]]; then
    NUM_PROCESSES="$(python -m guardrail.core.nodes "$HOSTFILE")" # of all nodes
    HOSTFILE="$(realpath -- "$HOSTFILE")"
    # shellcheck disable=SC2034
    DEEPSPEED_WHERE=(--hostfile "$HOSTFILE" --no_ssh "--node_rank={node_rank}" "--master_addr={main}")
    ACCELERATE_WHERE=(--multi_gpu "--gpu_ids={gpus}" "--num_processes={n_processes}" "--main_process_ip={main}"
        "--num_machines={n_nodes}" "--machine_rank={node_rank}")
else
    ACCELERATE_WHERE+=(--num_machines=1)
fi

MASTER_PORT="${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}"
ACCELERATE_WHERE+=("--main_process_port=$MASTER_PORT" --mixed_precision=no --dynamo_backend=no)

if [[ -z "${WANDB_API_KEY:-}" ]]; then export WANDB_MODE="${WANDB_MODE:-offline}"; fi
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" HF_HUB_DISABLE_TELEMETRY=1

# Sets SFT_MODULE and says why; the arguments are the flags of the training: align-anything cannot honour all of them.
# A function, because only training scripts need the (slow) import test.
choose_trainer() {
    local reason="set by SFT_MODULE" choice
    if [[ -z "${SFT_MODULE:-}" ]]; then
        SFT_MODULE=guardrail.training.sft
        reason="align-anything is not installed"
        if python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("align_anything") is None)'; then
            choice="$(python -m guardrail.training.foreign --choose "$@")"
            SFT_MODULE="$(python -c 'import json, sys; print(json.loads(sys.argv[1])["module"])' "$choice")"
            return
        fi
    fi
    echo "trainer: $SFT_MODULE ($reason)" >&2
}

# Train with SFT_MODULE and the flags given. What another project's trainer leaves is recorded as ours records it.
launch_trainer() {
    local command=(deepspeed --log_level warning --master_port "$MASTER_PORT" "${DEEPSPEED_WHERE[@]}" --module "$SFT_MODULE")
    if [[ "$SFT_MODULE" == guardrail.* && "$NUM_PROCESSES" == 1 && -z "${HOSTFILE:-}" ]]; then
        # One process needs no launcher: it makes the same DeepSpeed engine as the only rank, and the launcher's two
        # processes cost more start-up time than its own.
        if [[ "$DEVICE" == gpu ]]; then export CUDA_VISIBLE_DEVICES="$GPUS"; fi
        python -m "$SFT_MODULE" "$@"
    elif [[ "$SFT_MODULE" == guardrail.* ]]; then
        launch "${command[@]}" "$@"
    else
        if [[ -n "${HOSTFILE:-}" ]]; then command=(python -m guardrail.core.nodes "$HOSTFILE" "${command[@]}"); fi
        NUM_PROCESSES="$NUM_PROCESSES" python -m guardrail.training.foreign "${command[@]}" -- "$@"
    fi
}

# Run a launcher, on every node of HOSTFILE, so that a user error stays one line with exit code 2.
launch() {
    if [[ -n "${HOSTFILE:-}" ]]; then set -- python -m guardrail.core.nodes "$HOSTFILE" "$@"; fi
    python -m guardrail.core.launch "$@"
}

# Run a script on this job's processes: with accelerate when there are several, with plain python when there is one
# (the same code path after start-up; the launcher costs as much start-up time as the script).
launch_processes() {
    if [[ "$NUM_PROCESSES" == 1 ]]; then
        if [[ "$DEVICE" == gpu ]]; then export CUDA_VISIBLE_DEVICES="$GPUS"; fi
        python "$@"
    else
        launch accelerate launch "${ACCELERATE_WHERE[@]}" "$@"
    fi
}

output_folder() {
    mkdir -p "$1" || { echo "error: cannot create the output folder $1" >&2 && exit 2; }
}
