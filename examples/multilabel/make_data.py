"""Images that hold some of four shapes, and which: train.h5, test.h5 and their lists.

The data is N x 1 x 32 x 32 from 0 to 1, the label N x 4 of 0 and 1: disc, frame, cross, bar.
"""
import sys

import h5py
import numpy as np

SIDE = 32


def shapes(rng):
    """Four masks of SIDE x SIDE at places and sizes drawn at random."""
    y, x = np.mgrid[:SIDE, :SIDE]
    def placed(reach):
        return rng.uniform(reach, SIDE - reach, 2), rng.uniform(0.7, 1.0) * reach
    (cy, cx), r = placed(6)
    disc = (y - cy) ** 2 + (x - cx) ** 2 < r * r
    (cy, cx), r = placed(7)
    ring = np.maximum(abs(y - cy), abs(x - cx))
    frame = (ring < r) & (ring > r - 2)
    (cy, cx), r = placed(6)
    cross = (np.minimum(abs(abs(y - cy) - abs(x - cx)), 9) < 1.2) & (np.maximum(abs(y - cy), abs(x - cx)) < r)
    (cy, cx), r = placed(4)
    bar = (abs(y - cy) < 1.6) & (abs(x - cx) < 3 * r)
    return [disc, frame, cross, bar]


def write(path, count, seed):
    rng = np.random.default_rng(seed)
    label = (rng.random((count, 4)) < 0.5).astype(np.float32)
    data = rng.uniform(0, 0.25, (count, 1, SIDE, SIDE)).astype(np.float32)
    for image, present in zip(data, label):
        for mask, is_there in zip(shapes(rng), present):
            if is_there:
                image[0][mask] = rng.uniform(0.6, 1.0)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, label


if __name__ == "__main__":
    folder = sys.argv[1]
    for name, count, seed in [("train", 3000, 1), ("test", 500, 2)]:
        write(f"{folder}/{name}.h5", count, seed)
        with open(f"{folder}/{name}.txt", "w") as file:
            file.write(f"{folder}/{name}.h5\n")
