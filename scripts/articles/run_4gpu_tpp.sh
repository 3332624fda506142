#!/usr/bin/env bash
# The articles' run on four GPUs: three for the transformer, one for the VAE.
#   scripts/articles/run_4gpu_tpp.sh --models MODELS --image F --audio F --prompt TEXT [FLAGS]
# Every flag of `avatar-run generate` may follow, and wins over the defaults below. A default is a
# variable, so `AVATAR_SIZE="384*256" run_4gpu_tpp.sh ...` changes it too. Without a GPU the same
# steps run on this processor.
# The articles give four GPUs to the transformer, or three and one to the VAE; upstream refuses
# both (docs/compatibility.md). NCCL's variables mean nothing here: one process uses all devices.
set -euo pipefail
: "${AVATAR_SIZE:=688*368}" "${AVATAR_NUM_CLIP:=100}" "${AVATAR_SAMPLE_STEPS:=4}"
: "${AVATAR_INFER_FRAMES:=48}" "${AVATAR_SAMPLE_GUIDE_SCALE:=0}" "${AVATAR_SAMPLE_SOLVER:=euler}"
: "${AVATAR_NUM_GPUS_DIT:=3}" "${AVATAR_ENABLE_VAE_PARALLEL:=1}"
: "${AVATAR_ENABLE_ONLINE_DECODE:=1}" "${AVATAR_OUT:=output.mp4}"
export AVATAR_SIZE AVATAR_NUM_CLIP AVATAR_SAMPLE_STEPS AVATAR_INFER_FRAMES
export AVATAR_SAMPLE_GUIDE_SCALE AVATAR_SAMPLE_SOLVER AVATAR_NUM_GPUS_DIT
export AVATAR_ENABLE_VAE_PARALLEL AVATAR_ENABLE_ONLINE_DECODE AVATAR_OUT
exec "${AVATAR_RUN:-avatar-run}" generate "$@"
