#!/usr/bin/env bash
# Trains LeNet on MNIST; further flags go to `lgm-caffe train`. Another net of this folder: NET=lgm_2d ./train_lenet.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${LGM_CAFFE:-target/release/lgm-caffe}" train -solver "examples/mnist/${NET:-lenet}_solver.prototxt" "$@"
