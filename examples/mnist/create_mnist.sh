#!/usr/bin/env bash
# Turns MNIST's four idx files (gzip or not) into the databases that the nets of this folder read:
#   examples/mnist/create_mnist.sh FOLDER
set -euo pipefail
folder=$(realpath "${1:?usage: examples/mnist/create_mnist.sh FOLDER_OF_THE_IDX_FILES}")
cd "$(dirname "$0")/../.."

idx() { # idx NAME: the file, gzip or not
    local file
    for file in "$folder/$1" "$folder/$1.gz"; do
        [ -f "$file" ] && { echo "$file"; return; }
    done
    echo "create_mnist: neither $1 nor $1.gz is in $folder" >&2
    return 1
}

for set in train:train test:t10k; do
    images=$(idx "${set#*:}-images-idx3-ubyte")
    labels=$(idx "${set#*:}-labels-idx1-ubyte")
    database=examples/mnist/mnist_${set%:*}_lmdb
    rm -rf "$database"
    "${LGM_CAFFE:-target/release/lgm-caffe}" convert-mnist "$images" "$labels" "$database"
done
