#!/usr/bin/env bash
# Submit alignment and downstream fine-tuning of one cell: the second job starts when the first one has succeeded, and is
# cancelled when it has failed.
#
#   TASK=list SIM=low SIZE=1k bash scripts/slurm/sft_grid.sh
#   for sim in high low random; do TASK=list SIM=$sim SIZE=1k bash scripts/slurm/sft_grid.sh; done
#
# SBATCH_OPTIONS go to sbatch as they are. For whole studies with every stage use the Snakemake profile in workflow/.
set -euo pipefail
# shellcheck source=scripts/help.sh
source "$(dirname "$0")/../help.sh" "" "$@"

TASK="${TASK:-list}"                                          # downstream task
SIM="${SIM:-high}"                                            # high, low or random
SIZE="${SIZE:-1k}"                                            # safety rows
BASE_MODEL="${BASE_MODEL:-meta-llama/Llama-2-7b-hf}"          # model to align
ALIGNED="${ALIGNED:-outputs/aligned/$(basename "$BASE_MODEL")/${TASK}_${SIM}_sim_${SIZE}}" # where the aligned model goes
SBATCH_OPTIONS="${SBATCH_OPTIONS:-}"                          # e.g. "--partition=gpu --account=x"

read -ra OPTIONS <<<"$SBATCH_OPTIONS"
command -v sbatch >/dev/null || { echo "error: no sbatch on this machine; use scripts/sft_subset.sh" >&2 && exit 2; }
export TASK SIM SIZE BASE_MODEL
FIRST="$(OUTPUT_DIR="$ALIGNED" sbatch --parsable "${OPTIONS[@]}" scripts/slurm/sft.sbatch scripts/sft_subset.sh)"
MODEL="$ALIGNED" sbatch --dependency="afterok:${FIRST%%;*}" --kill-on-invalid-dep=yes "${OPTIONS[@]}" \
    scripts/slurm/sft.sbatch scripts/sft_downstream.sh
