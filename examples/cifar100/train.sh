#!/usr/bin/env bash
# Trains a network of this folder and keeps its log in NET/logs:
#   ./train.sh 0 simple            on GPU 0
#   ./train.sh cpu simple          on the CPU
#   ./train.sh 0 simple -snapshot simple/snapshot/….solverstate    with further flags of `lgm-caffe train`
set -euo pipefail
cd "$(dirname "$0")"
device=${1:?which device? usage: ./train.sh DEVICE NET [FLAG…], for example ./train.sh 0 simple}
net=${2:?which network? usage: ./train.sh DEVICE NET [FLAG…], for example ./train.sh 0 simple}
shift 2

flags=(-solver "$net/solver.prototxt")
[ "$device" = cpu ] || flags+=(-gpu "$device")
mkdir -p "$net/logs" "$net/snapshot"
log=$net/logs/train_$(date +%Y-%m-%d_%H-%M-%S).log
echo "Logging to $log"
"${LGM_CAFFE:-../../target/release/lgm-caffe}" train "${flags[@]}" "$@" 2>&1 | tee "$log"
