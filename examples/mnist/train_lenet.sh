#!/usr/bin/env bash
# Trains LeNet (models/lenet) on MNIST; further flags go to `lgm-caffe train`. A net of this folder: NET=lgm_2d ./train_lenet.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
solver=models/lenet/solver.prototxt
[ "${NET:-lenet}" = lenet ] || solver=examples/mnist/${NET}_solver.prototxt
exec "${LGM_CAFFE:-target/release/lgm-caffe}" train -solver "$solver" "$@"
