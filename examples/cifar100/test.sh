#!/usr/bin/env bash
# Tests trained weights on the whole test set and keeps the log in NET/logs:
#   ./test.sh 0 simple models/cifar100_simple/….caffemodel      on GPU 0
#   ./test.sh cpu simple models/cifar100_simple/….caffemodel    on the CPU
# Paths are relative as in train.sh.
set -euo pipefail
cd "$(dirname "$0")"
usage="usage: ./test.sh DEVICE NET WEIGHTS, for example ./test.sh cpu simple models/cifar100_simple/lgm_iter_120000.caffemodel"
device=${1:?which device? $usage}
net=${2:?which network? $usage}
weights=${3:?which weights? $usage}

lgm_caffe=$(realpath "${LGM_CAFFE:-../../target/release/lgm-caffe}")
mkdir -p "$net/logs"
log=$PWD/$net/logs/test_$(date +%Y-%m-%d_%H-%M-%S).log
model=$net/trainval.prototxt
if [ ! -e "$model" ]; then
    cd ../..
    model=models/cifar100_$net/train_val.prototxt
fi
flags=(-model "$model" -weights "$weights" -iterations 100)
[ "$device" = cpu ] || flags+=(-gpu "$device")
echo "Logging to $log"
"$lgm_caffe" test "${flags[@]}" 2>&1 | tee "$log"
