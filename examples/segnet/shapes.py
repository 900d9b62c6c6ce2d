#!/usr/bin/env python3
"""Draws images of shapes and, of each pixel, which shape it is of: 0 none, 1 disc, 2 square, 3 triangle.

    shapes.py FOLDER [SEED]

writes FOLDER/train.h5 (2000 images of 32 x 32, `data` and `label`) and test.h5 (200), and train.txt and test.txt, which HDF5Data
reads. Shapes lie over one another, of any brightness, in noise.
"""

import os
import sys

import h5py
import numpy as np

SIDE = 32


def inside(shape, x, y, size):
    """Which pixels a shape at the origin covers."""
    if shape == 1:
        return x * x + y * y <= size * size
    if shape == 2:
        return np.maximum(abs(x), abs(y)) <= 0.85 * size
    return (y <= 0.7 * size) & (2 * abs(x) <= y + size)


def draw(rng):
    image = np.full((SIDE, SIDE), rng.uniform(0, 1))
    label = np.zeros((SIDE, SIDE))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(rng.integers(1, 4)):
        shape, size = rng.integers(1, 4), rng.uniform(5, 9)
        row, column = rng.uniform(4, SIDE - 4, 2)
        covered = inside(shape, columns - column, rows - row, size)
        image[covered] = (image[0, 0] + rng.uniform(0.3, 0.7)) % 1
        label[covered] = shape
    return image + rng.normal(0, 0.05, image.shape) - 0.5, label


def main(folder, seed=1):
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng(int(seed))
    for name, count in ("train", 2000), ("test", 200):
        images, labels = zip(*(draw(rng) for _ in range(count)))
        path = os.path.join(folder, name)
        with h5py.File(path + ".h5", "w") as file:
            file["data"] = np.array(images, "f4")[:, None]
            file["label"] = np.array(labels, "f4")
        with open(path + ".txt", "w") as file:
            file.write(path + ".h5\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
