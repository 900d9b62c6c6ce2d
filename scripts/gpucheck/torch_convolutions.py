"""Times single convolutions in PyTorch, bf16 and channels last, cuDNN's algorithms timed and the quickest taken.

    torch_convolutions.py GPU ITERATIONS GEOMETRIES      (a JSON list of [images, channels, outputs, size, kernel, stride])

Prints for each its name and the milliseconds of a forward and of a backward pass, the median, each waited for.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

gpu, iterations, geometries = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
device = torch.device(f'cuda:{gpu}')
torch.backends.cudnn.benchmark = True


def lap(work):
    torch.cuda.synchronize()
    begun = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return result, (time.perf_counter() - begun) * 1e3


for n, c, k, size, kernel, stride in geometries:
    like = dict(device=device, dtype=torch.bfloat16)
    x = torch.full((n, c, size, size), 0.5, **like).to(memory_format=torch.channels_last).requires_grad_()
    w = (torch.randn(k, c, kernel, kernel, **like) * (2 / (c * kernel * kernel)) ** 0.5).to(memory_format=torch.channels_last)
    w.requires_grad_()
    forward, backward = [], []
    for i in range(iterations + 3):
        y, there = lap(lambda: F.conv2d(x, w, stride=stride, padding=kernel // 2))
        dy = torch.ones_like(y)
        _, back = lap(lambda: torch.autograd.grad(y, (x, w), dy))
        if i >= 3:
            forward.append(there)
            backward.append(back)
    print(f'{n}x{c}x{size}x{size}-{k}-{kernel}x{kernel}s{stride} {statistics.median(forward):.4f} {statistics.median(backward):.4f}', flush=True)
    del x, w, y, dy
