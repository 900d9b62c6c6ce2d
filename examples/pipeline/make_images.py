"""Photographs that nobody took: PNG files of four classes in several sizes, and lists of them, with nothing but Python.

FOLDER/train and FOLDER/test get the images, FOLDER/train.txt and FOLDER/test.txt a line "NAME CLASS" for each, and
FOLDER/labels.txt the classes' names.
"""
import math
import os
import random
import struct
import sys
import zlib

CLASSES = ["disc", "square", "triangle", "stripes"]


def inside(kind, x, y):
    """Whether a point is in the shape of a class, whose extent is 1 around (0, 0)."""
    if kind == "disc":
        return x * x + y * y < 1
    if kind == "square":
        return max(abs(x), abs(y)) < 0.85
    if kind == "triangle":
        return y < 0.8 and y > 2 * abs(x) - 1
    return max(abs(x), abs(y)) < 0.95 and math.sin(10 * y) > 0


def picture(rng, kind):
    """Rows of red, green and blue of one image."""
    width, height = rng.randint(36, 52), rng.randint(36, 52)
    cx, cy = rng.uniform(0.4, 0.6) * width, rng.uniform(0.4, 0.6) * height
    reach, turn = rng.uniform(0.25, 0.38) * min(width, height), rng.uniform(-0.4, 0.4)
    paper = [rng.randint(120, 230) for _ in range(3)]
    ink = [max(0, c - rng.randint(70, 120)) for c in paper]
    sin, cos = math.sin(turn), math.cos(turn)
    rows = []
    for row in range(height):
        line = bytearray()
        for column in range(width):
            x, y = (column - cx) / reach, (row - cy) / reach
            base = ink if inside(kind, cos * x - sin * y, sin * x + cos * y) else paper
            line += bytes(max(0, min(255, int(c + rng.gauss(0, 10)))) for c in base)
        rows.append(bytes(line))
    return width, height, rows


def save(path, width, height, rows):
    """Writes a PNG file: a header, the rows compressed, an end, each with its checksum."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


if __name__ == "__main__":
    folder = sys.argv[1]
    for part, count, seed in [("train", 480, 1), ("test", 80, 2)]:
        rng = random.Random(seed)
        os.makedirs(f"{folder}/{part}", exist_ok=True)
        with open(f"{folder}/{part}.txt", "w") as listing:
            for i in range(count):
                label = i % len(CLASSES)
                name = f"{CLASSES[label]}_{i:03}.png"
                save(f"{folder}/{part}/{name}", *picture(rng, CLASSES[label]))
                listing.write(f"{name} {label}\n")
    with open(f"{folder}/labels.txt", "w") as names:
        names.writelines(f"{name}\n" for name in CLASSES)
