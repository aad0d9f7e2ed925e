#!/usr/bin/env bash
# Run one study: every stage of its grid as a DAG (Snakemake), then the table, the figure and study.json.
#
#   bash scripts/study.sh configs/studies/quickstart.yaml            # run, or continue after any interruption
#   bash scripts/study.sh configs/studies/quickstart.yaml --plan     # stages, hours, disk, judge calls; runs nothing
#   bash scripts/study.sh configs/studies/quickstart.yaml --plan --calibrate   # measure this machine first (2 minutes)
#   PLAN_GPU=h100 PLAN_GPUS=4 bash scripts/study.sh configs/studies/paper_llama2_7b.yaml --plan --budget 50
#   bash scripts/study.sh configs/studies/quickstart.yaml --dry-run  # the jobs that would run
#
# Jobs run side by side. On a GPU machine the GPUs decide how many: training takes all of GPUS (their number is part of
# its key), every other job TENSOR_PARALLEL of them, mixing none; no two jobs ever share one, nor do two studies.
#
# Further arguments go to Snakemake. A failed stage leaves the other cells alone; its cell is marked FAILED.
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"

STUDY="${1:?usage: bash scripts/study.sh configs/studies/NAME.yaml [snakemake options]}" # the study file
shift
JOBS="${JOBS:-}"                # most jobs side by side; empty: the cores of a CPU machine, or GPUs and $CPU_JOBS
CPU_JOBS="${CPU_JOBS:-2}"       # of these on a GPU machine: jobs that need no GPU
TENSOR_PARALLEL="${TENSOR_PARALLEL:-1}" # GPUs of a job that does not train, on a GPU machine
NODES="${NODES:-1}"             # with a profile: nodes of a training job, each with all of GPUS; their product is in its key
OUTPUTS="${OUTPUTS:-outputs}"   # results go to $OUTPUTS/<study>/
SIZE="${SIZE:-}"                # replace the study's subset sizes, e.g. 500 or 500,1000
SEEDS="${SEEDS:-}"              # replace the study's seeds, e.g. 1,2,3
SUBSETS="${SUBSETS:-}"          # replace the study's subsets, e.g. high,low
TASKS="${TASKS:-}"              # keep only these tasks, e.g. list,pure_bad
DESIGNS="${DESIGNS:-}"          # replace the study's designs, e.g. continued (docs/designs.md)
DEFENCES="${DEFENCES:-}"        # keep only these defences, e.g. filter_10,soup_30 (docs/defences.md)
SET="${SET:-}"                  # change single settings, e.g. keep=none,alignment.batching=length_grouped
export PLAN_GPU="${PLAN_GPU:-}"       # --plan: the kind of GPU, e.g. h100, or cpu; empty: this machine's (docs/planning.md)
export PLAN_GPUS="${PLAN_GPUS:-}"     # --plan: how many; empty: this machine's, or four
export PLAN_ASSUME="${PLAN_ASSUME:-}" # --plan: other assumptions, e.g. training_utilisation=0.5
PROMPTS="${PROMPTS:-}"          # only the first so many safety prompts, as the study's evaluation.limit

STUDY="$(realpath -m -- "$STUDY")"
source "$(dirname "$0")/setup.sh"
unset MASTER_PORT # every job finds its own: jobs run side by side
if [[ "$DEVICE" == gpu ]]; then N_GPUS="${#GPU_LIST[@]}"; else GPUS='' N_GPUS=0; fi
if [[ -z "$JOBS" && "$DEVICE" == gpu ]]; then JOBS=$((N_GPUS + CPU_JOBS)); fi
JOBS="${JOBS:-$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)}" # nproc would take threads per job for the cores

CHECK=(python -m guardrail.study.check "$STUDY" --outputs "$OUTPUTS")
[[ -z "$SIZE" ]] || CHECK+=(--sizes "$SIZE")
[[ -z "$SEEDS" ]] || CHECK+=(--seeds "$SEEDS")
[[ -z "$SUBSETS" ]] || CHECK+=(--subsets "$SUBSETS")
[[ -z "$TASKS" ]] || CHECK+=(--tasks "$TASKS")
[[ -z "$DESIGNS" ]] || CHECK+=(--designs "$DESIGNS")
[[ -z "$DEFENCES" ]] || CHECK+=(--defences "$DEFENCES")
[[ -z "$SET" ]] || CHECK+=(--set "$SET")
[[ -z "$PROMPTS" ]] || CHECK+=(--prompts "$PROMPTS")
if [[ " $* " == *" --plan "* ]]; then
    "${CHECK[@]}" --ranks "$NUM_PROCESSES" --nodes "$NODES" "--gpu_names=$GPUS" --gpus_per_job "$TENSOR_PARALLEL" "$@"
    exit
fi
if [[ " $* " == *" --dry-run "* || " $* " == *" -n "* ]]; then
    "${CHECK[@]}" --dry_run --ranks "$NUM_PROCESSES" --nodes "$NODES" "--gpu_names=$GPUS" --gpus_per_job "$TENSOR_PARALLEL"
    exit
fi
if [[ "$NODES" != 1 && " $* " != *" --profile"* ]]; then
    echo "error: NODES=$NODES needs a scheduler that gives nodes: add --profile workflow/profiles/slurm, or name them in HOSTFILE" >&2
    exit 2
fi
value() { python -c 'import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])' "$1" "$2"; }
PLAN="$("${CHECK[@]}")"
CONFIG="$(value "$PLAN" study_config)"

# One run per study at a time. The jobs inherit the lock: after `kill -9` a new start waits for what is still running.
exec 9>"$(dirname "$CONFIG")/.lock"
flock -n 9 || { echo "waiting for an earlier run of this study to end (its jobs are still running) ..." >&2 && flock 9; }

schedule() {
    python -m guardrail.study.schedule "$CONFIG" --outputs "$OUTPUTS" --ranks "$NUM_PROCESSES" --nodes "$NODES" \
        "--gpus=$GPUS" --gpus_per_job "$TENSOR_PARALLEL" "$@"
}
run_scheduled() {
    # Snakemake only schedules: what runs is decided by guardrail.study.schedule. The two sed lines drop its chatter from
    # the terminal; .snakemake/log/ keeps everything.
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" snakemake --snakefile "$REPO/workflow/Snakefile" \
        --config "jobs=$(value "$SCHEDULE" jobs)" --cores "$JOBS" \
        --resources "gpus=$N_GPUS" "cpu_jobs=$CPU_JOBS" --keep-going --rerun-incomplete --nolock --quiet rules \
        "$@" 2>&1 >/dev/null |
        sed -uE -e '/^(host:|Assuming|Building|Using shell|Provided|Rules claiming|Select jobs|Execute [0-9]+|Finished jobid|\[.*\]$|Complete log|Touching output file)/d' \
            -e 's/^([0-9]+ of [0-9]+) steps \(([0-9]+%)\) done$/          \2 done (\1)/' >&2
}
STARTED="$(date +%s)" INTERRUPTED=''
trap 'INTERRUPTED=yes' INT # Snakemake ends its jobs; nothing more is begun
SCHEDULE="$(schedule)"
while [[ "$(value "$SCHEDULE" n_run)" != 0 ]]; do
    BEFORE="$(value "$SCHEDULE" run)"
    ALL_WELL=''
    if run_scheduled "$@"; then # weights that are not kept: the next jobs, now that those of these have been used
        [[ "$(value "$SCHEDULE" n_later)" != 0 ]] || break
        ALL_WELL=yes
    fi
    [[ -z "$INTERRUPTED" ]] || break
    # What came after a failed process, or shared one with a failed job, and does not need the failed one, goes on.
    SCHEDULE="$(schedule --failed_since "$STARTED")"
    if [[ "$(value "$SCHEDULE" n_run)" == 0 || "$(value "$SCHEDULE" run)" == "$BEFORE" ]]; then
        echo "some stages failed; the others are done, and the table says which cells are missing" >&2
        break
    fi
    [[ -n "$ALL_WELL" ]] || echo "some stages failed; those that do not need them go on" >&2
done
python -m guardrail.study.write "$CONFIG" --outputs "$OUTPUTS"
