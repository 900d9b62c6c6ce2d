#!/usr/bin/env bash
# Tests trained weights on the whole test set and keeps the log in NET/logs:
#   ./test.sh 0 simple simple/snapshot/….caffemodel      on GPU 0
#   ./test.sh cpu simple simple/snapshot/….caffemodel    on the CPU
set -euo pipefail
cd "$(dirname "$0")"
usage="usage: ./test.sh DEVICE NET WEIGHTS, for example ./test.sh cpu simple simple/snapshot/lgm_iter_120000.caffemodel"
device=${1:?which device? $usage}
net=${2:?which network? $usage}
weights=${3:?which weights? $usage}

flags=(-model "$net/trainval.prototxt" -weights "$weights" -iterations 100)
[ "$device" = cpu ] || flags+=(-gpu "$device")
mkdir -p "$net/logs"
log=$net/logs/test_$(date +%Y-%m-%d_%H-%M-%S).log
echo "Logging to $log"
"${LGM_CAFFE:-../../target/release/lgm-caffe}" test "${flags[@]}" 2>&1 | tee "$log"
