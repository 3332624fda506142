#!/usr/bin/env bash
# Upstream's script of this name: one GPU, weights stream from host memory.
#   scripts/articles/infinite_inference_single_gpu.sh --models MODELS --image F --audio F \
#     --prompt TEXT [FLAGS]
# Every flag of `avatar-run generate` may follow, and wins over upstream's values below. So do
# variables such as AVATAR_SIZE. The video goes to the folder output, as upstream's does.
# Upstream also gives --fp8, which no export has yet, and flags that `avatar-export onnx` settles.
set -euo pipefail
: "${AVATAR_SIZE:=704*384}" "${AVATAR_BASE_SEED:=420}" "${AVATAR_OFFLOAD_MODEL:=True}"
: "${AVATAR_INFER_FRAMES:=48}" "${AVATAR_SAMPLE_STEPS:=4}" "${AVATAR_SAMPLE_GUIDE_SCALE:=0}"
: "${AVATAR_NUM_CLIP:=10000}" "${AVATAR_NUM_GPUS_DIT:=1}" "${AVATAR_SAMPLE_SOLVER:=euler}"
: "${AVATAR_SINGLE_GPU:=1}" "${AVATAR_SAVE_DIR:=output}"
export AVATAR_SIZE AVATAR_BASE_SEED AVATAR_OFFLOAD_MODEL AVATAR_INFER_FRAMES AVATAR_SAMPLE_STEPS
export AVATAR_SAMPLE_GUIDE_SCALE AVATAR_NUM_CLIP AVATAR_NUM_GPUS_DIT AVATAR_SAMPLE_SOLVER
export AVATAR_SINGLE_GPU AVATAR_SAVE_DIR
exec "${AVATAR_RUN:-avatar-run}" generate "$@"
