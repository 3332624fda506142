#!/usr/bin/env bash
# The articles' batch: one video for each sound file of a folder, with one picture and one prompt.
#   scripts/articles/batch_avatar.sh AUDIO_DIR OUT_DIR --models MODELS --image F --prompt TEXT [FLAGS]
# talk.wav makes OUT_DIR/talk_avatar.mp4. The model is loaded once. A video that takes more than
# 30 minutes is given up, as in the articles; --timeout says another time. Every other flag of
# `avatar-run batch` and `generate` may follow. A second call goes on with what is not done.
# Exit codes: those of `avatar-run batch`; 2 where a folder is missing from the line.
set -euo pipefail
if [ $# -lt 2 ] || [[ $1 == -* || $2 == -* ]]; then
  echo "error: wanted AUDIO_DIR OUT_DIR before the flags, got: $*" >&2
  exit 2
fi
inputs=$1 out=$2
shift 2
timeout=(--timeout 30m)
for flag in "$@"; do
  case $flag in --timeout | --timeout=*) timeout=() ;; esac
done
exec "${AVATAR_RUN:-avatar-run}" batch "$inputs" --out-dir "$out" "${timeout[@]}" "$@"
