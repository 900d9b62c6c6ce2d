#!/usr/bin/env bash
# Trains a network (models/cifar100_NET, or the folder NET here if there is one) and keeps its log in NET/logs:
#   ./train.sh 0 simple            on GPU 0
#   ./train.sh cpu simple          on the CPU
#   ./train.sh 0 simple -snapshot models/cifar100_simple/….solverstate    with further flags of `lgm-caffe train`
# Paths in models/ are relative to the root of the repository, those of a folder here to this one.
set -euo pipefail
cd "$(dirname "$0")"
device=${1:?which device? usage: ./train.sh DEVICE NET [FLAG…], for example ./train.sh 0 simple}
net=${2:?which network? usage: ./train.sh DEVICE NET [FLAG…], for example ./train.sh 0 simple}
shift 2

lgm_caffe=$(realpath "${LGM_CAFFE:-../../target/release/lgm-caffe}")
mkdir -p "$net/logs"
log=$PWD/$net/logs/train_$(date +%Y-%m-%d_%H-%M-%S).log
flags=(-solver "$net/solver.prototxt")
if [ ! -e "$net/solver.prototxt" ]; then
    cd ../..
    flags=(-solver "models/cifar100_$net/solver.prototxt")
fi
[ "$device" = cpu ] || flags+=(-gpu "$device")
echo "Logging to $log"
"$lgm_caffe" train "${flags[@]}" "$@" 2>&1 | tee "$log"
