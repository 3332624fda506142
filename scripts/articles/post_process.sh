#!/usr/bin/env bash
# The articles' work on finished videos: join them, set their clocks right, remove noise, enlarge.
#   scripts/articles/post_process.sh [--denoise FILTER|none] [--scale W:H|none] [--crf N] \
#     [--overwrite] IN.mp4... OUT.mp4
# Without flags it removes noise as the articles do (hqdn3d=1.5:1.5:6:6) and keeps the size. The
# articles' 1080p is --scale 1920:1080. Where both are none, no picture is encoded again.
# Needs the program ffmpeg. Exit codes: 0 done, 2 usage, 3 an input cannot be used, 5 no ffmpeg.
set -euo pipefail

fail() { echo "error: $2" >&2; exit "$1"; }

denoise=hqdn3d=1.5:1.5:6:6 scale=none crf=17 overwrite=no files=()
while [ $# -gt 0 ]; do
  case $1 in
    --denoise | --scale | --crf)
      [ $# -ge 2 ] || fail 2 "$1: wanted a value after it"
      case $1 in
        --denoise) denoise=$2 ;;
        --scale) scale=${2/[*x]/:} ;;
        --crf) crf=$2 ;;
      esac
      shift
      ;;
    --overwrite) overwrite=yes ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --*) fail 2 "$1: no such flag; wanted --denoise, --scale, --crf or --overwrite" ;;
    *) files+=("$1") ;;
  esac
  shift
done
[ ${#files[@]} -ge 2 ] || fail 2 "wanted IN.mp4... OUT.mp4, got ${#files[@]} files"
out=${files[-1]}
unset 'files[-1]'
for file in "${files[@]}"; do
  [ -f "$file" ] || fail 3 "$file: there is no such file"
  [ ! "$file" -ef "$out" ] || fail 2 "$out: the output is also an input"
done
[ "$overwrite" = yes ] || [ ! -e "$out" ] || fail 3 "$out: exists; --overwrite replaces it"
ffmpeg=${FFMPEG:-ffmpeg}
command -v "$ffmpeg" >/dev/null || fail 5 \
  "$ffmpeg: no such program; \`apt-get install ffmpeg\` brings it, or FFMPEG names it"

work=$(mktemp -d)
part=$(dirname "$out")/.$(basename "$out").partial.mp4
trap 'rm -rf "$work" "$part"' EXIT
# FFmpeg's list of files to join. A quote in a name is written '\''. The join starts the picture up to
# one frame after the sound, as the articles' command does, so one file is read without it.
input=(-f concat -safe 0 -i "$work/list")
[ ${#files[@]} -gt 1 ] || input=(-i "${files[0]}")
for file in "${files[@]}"; do
  printf "file '%s'\n" "$(realpath "$file" | sed "s/'/'\\\\''/g")"
done >"$work/list"
filters=$denoise
[ "$denoise" != none ] || filters=
[ "$scale" = none ] || filters=${filters:+$filters,}scale=$scale:flags=lanczos
picture=(-c:v copy)
[ -z "$filters" ] || picture=(-vf "$filters" -c:v libx264 -crf "$crf" -pix_fmt yuv420p)
"$ffmpeg" -nostdin -hide_banner -loglevel error -y "${input[@]}" "${picture[@]}" \
  -c:a copy -movflags +faststart "$part" || fail 3 "ffmpeg refused the work"
mv "$part" "$out"
echo "wrote $out"
