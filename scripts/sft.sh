#!/usr/bin/env bash
# Full upstream alignment: fine-tune a base model on one training split.
#
#   BASE_MODEL=meta-llama/Llama-2-7b-hf DATASET=datasets/ultrachat_beavertails SPLIT=train bash scripts/sft.sh
#   BASE_MODEL=models/sandbox/base DATASET=datasets/sandbox SPLIT=instruct DS_CONFIG=ds_z0_config.json BF16=False \
#       LEARNING_RATE=1e-3 BATCH_SIZE=16 bash scripts/sft.sh
#
# Further arguments go to the trainer as they are. Several nodes: HOSTFILE=hosts bash scripts/sft.sh
set -euo pipefail
source "$(dirname "$0")/help.sh" guardrail.training.sft "$@"
source "$(dirname "$0")/setup.sh"

BASE_MODEL="${BASE_MODEL:-meta-llama/Llama-2-7b-hf}"           # folder (or one holding slice_end/) or hub name
DATASET="${DATASET:-datasets/ultrachat_beavertails}"           # file, hub-layout folder or hub name
SPLIT="${SPLIT:-train}"                                        # training split
OUTPUT_DIR="${OUTPUT_DIR:-outputs/sft/$(basename "$BASE_MODEL")-$SPLIT}" # weights go to $OUTPUT_DIR/slice_end
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-UltraChat}"                  # formatter of configs/template.py
PROMPT_STYLE="${PROMPT_STYLE:-llama2_base}"                    # llama2_base, llama2, gemma_base, gemma, chat_template
EPOCHS="${EPOCHS:-1}"                                          # passes over the data
LEARNING_RATE="${LEARNING_RATE:-2e-5}"                         # peak learning rate
BATCH_SIZE="${BATCH_SIZE:-8}"                                  # rows per device
ACCUMULATION="${ACCUMULATION:-1}"                              # micro-batches per optimizer step
MAX_LENGTH="${MAX_LENGTH:-4096}"                               # longest row in tokens
DS_CONFIG="${DS_CONFIG:-ds_z3_config.json}"                    # name in configs/deepspeed (ours) or of the same in align-anything
BF16="${BF16:-True}"                                           # False on a CPU machine: float32
GRADIENT_CHECKPOINTING="${GRADIENT_CHECKPOINTING:-True}"       # False: faster, more memory
BATCHING="${BATCHING:-padded}"                                 # length_grouped pads less, packed not at all (docs/training.md)
SEED="${SEED:-42}"                                             # dropout and LoRA initialisation
DATA_SEED="${DATA_SEED:-$SEED}"                                # row order; align-anything's trainer always has order 0
RUN_NAME="${RUN_NAME:-$(basename "$OUTPUT_DIR")}"              # name in Weights & Biases
LOG_TYPE="${LOG_TYPE:-wandb}"                                  # wandb (offline without a key), tensorboard, none

FLAGS=(
    --log_run_name "$RUN_NAME"
    --log_type "$LOG_TYPE"
    --model_name_or_path "$BASE_MODEL"
    --train_datasets "$DATASET"
    --train_template "$TRAIN_TEMPLATE"
    --train_split "$SPLIT"
    --output_dir "$OUTPUT_DIR"
    --prompt_style "$PROMPT_STYLE"
    --epochs "$EPOCHS"
    --learning_rate "$LEARNING_RATE"
    --per_device_train_batch_size "$BATCH_SIZE"
    --gradient_accumulation_steps "$ACCUMULATION"
    --model_max_length "$MAX_LENGTH"
    --ds_cfgs "$DS_CONFIG"
    --bf16 "$BF16"
    --gradient_checkpointing "$GRADIENT_CHECKPOINTING"
    --batching "$BATCHING"
    --seed "$SEED"
    --data_seed "$DATA_SEED"
    --save_checkpoint False
    "$@"
)
choose_trainer "${FLAGS[@]}"
output_folder "$OUTPUT_DIR"
launch_trainer "${FLAGS[@]}"
