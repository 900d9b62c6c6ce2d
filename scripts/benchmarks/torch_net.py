"""Training iterations of a benchmark net in PyTorch, timed: what a user would otherwise run.

    torch_net.py NET BATCH --weights FILE --data FILE [--iterations N] [--seconds S] [--losses N] [--rate R] [--channels-last]
                 [--compile] [--threads N] [--gpu ID] [--precision fp32|tf32|bf16]

NET is one of models/. It begins with the weights of a .caffemodel.h5 that lgm-caffe wrote for the same net, and takes its
batches from an HDF5 file with `data` and `label`, one after another, all in memory beforehand, the GPU's with --gpu.
Prints the time in milliseconds of a whole iteration (zero gradients, forward, backward, update): on the CPU the median, on a
GPU the total over the number of iterations, of which only the last is waited for; with --seconds after so long to warm up, and
of as many iterations as take no less. Eager, or with --compile torch.compile,
which on a GPU replays CUDA graphs. cuDNN benchmarks its algorithms for each convolution and takes the fastest. With --losses it
prints in their place the losses of as many first iterations, without dropout.
"""
import argparse
import math
import time

import h5py
import torch
import torch.nn as nn
import torch.nn.functional as F

import models


class GaussianHead(nn.Module):
    """L-GM logits with the likelihood term, unit variance; margin 0.1, weight 0.1. The cross-entropy, and the objective."""

    def __init__(self, classes, width):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(classes, width))

    def forward(self, x, label):
        distance = 0.5 * ((x * x).sum(1, keepdim=True) - 2 * x @ self.centers.t() + (self.centers * self.centers).sum(1)[None])
        margin = torch.ones_like(distance).scatter(1, label[:, None], 1.1)
        likelihood = 0.5 * ((x - self.centers[label]) ** 2).sum() / x.shape[0]
        loss = F.cross_entropy(-distance * margin, label)
        return loss, loss + 0.1 * likelihood


def conv_norm(i, o, kernel, stride=1, pad=0, relu=True):
    layers = [nn.Conv2d(i, o, kernel, stride, pad, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class Pad(nn.Module):
    """Every other pixel, and zeros for the channels that are not there."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


class Block(nn.Module):
    def __init__(self, i, o, stride, pad=False):
        super().__init__()
        # First, as the prototxts have it: parameters are loaded in this order.
        self.project = nn.Identity()
        if stride != 1 or i != o:
            self.project = Pad(o - i) if pad else conv_norm(i, o, 1, stride, relu=False)
        self.inner = nn.Sequential(conv_norm(i, o, 3, stride, 1), conv_norm(o, o, 3, 1, 1, relu=False))

    def forward(self, x):
        return F.relu(self.inner(x) + self.project(x), inplace=True)


class Bottleneck(nn.Module):
    def __init__(self, i, width, stride):
        super().__init__()
        self.project = conv_norm(i, 4 * width, 1, stride, relu=False) if i != 4 * width else nn.Identity()
        self.inner = nn.Sequential(conv_norm(i, width, 1, stride), conv_norm(width, width, 3, 1, 1), conv_norm(width, 4 * width, 1, relu=False))

    def forward(self, x):
        return F.relu(self.inner(x) + self.project(x), inplace=True)


NETS = ('caffenet', 'cifar100_simple', 'cifar_resnet20', 'lenet', 'resnet18', 'resnet50')


def build(name):
    if name == 'cifar100_simple':
        layers, i = [], 3
        for stage, (width, depth) in enumerate(((96, 5), (192, 4), (384, 4))):
            for _ in range(depth):
                layers.append(conv_norm(i, width, 3, pad=1))
                i = width
            layers.append(nn.MaxPool2d(2) if stage < 2 else nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*layers, nn.Flatten())
    if name == 'lenet':
        return nn.Sequential(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
                             nn.Linear(800, 500), nn.ReLU(inplace=True), nn.Linear(500, 10))
    if name == 'caffenet':
        conv = lambda i, o, k, **more: [nn.Conv2d(i, o, k, **more), nn.ReLU(inplace=True)]
        pool, lrn = nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        full = lambda i: [nn.Linear(i, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        return nn.Sequential(*conv(3, 96, 11, stride=4), pool, lrn, *conv(96, 256, 5, padding=2, groups=2), pool, lrn,
                             *conv(256, 384, 3, padding=1), *conv(384, 384, 3, padding=1, groups=2),
                             *conv(384, 256, 3, padding=1, groups=2), pool, nn.Flatten(), *full(9216), *full(4096),
                             nn.Linear(4096, 1000))
    if name == 'cifar_resnet20':
        blocks, i = [], 16
        for stage, o in enumerate((16, 32, 64)):
            for block in range(3):
                blocks.append(Block(i, o, 2 if stage and not block else 1, pad=True))
                i = o
        return nn.Sequential(conv_norm(3, 16, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))
    blocks, i = [], 64
    for stage, o in enumerate((64, 128, 256, 512)):
        stride = 2 if stage else 1
        if name == 'resnet18':
            blocks += [Block(i, o, stride), Block(o, o, 1)]
            i = o
        else:
            blocks += [Bottleneck(i, o, stride), *(Bottleneck(4 * o, o, 1) for _ in range((2, 3, 5, 2)[stage]))]
            i = 4 * o
    return nn.Sequential(conv_norm(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(i, 1000))


def load(net, head, layers, path):
    """Gives a net the parameters that lgm-caffe began with: its layers of each kind stand in the same order."""
    with h5py.File(path) as f:
        for module, kind in ((nn.Conv2d, 'Convolution'), (nn.BatchNorm2d, 'Scale'), (nn.Linear, 'InnerProduct')):
            modules, names = [m for m in net.modules() if isinstance(m, module)], layers.get(kind, [])
            assert len(modules) == len(names), f'{len(modules)} modules for {len(names)} layers of type {kind}'
            for module, name in zip(modules, names):
                for i, param in enumerate(p for p in (module.weight, module.bias) if p is not None):
                    param.data.copy_(torch.from_numpy(f[f'data/{name}/{i}'][...]).reshape(param.shape))
        if head:
            head.centers.data.copy_(torch.from_numpy(f[f'data/{layers["ClassDistance"][0]}/0'][...]))


def warm_up(iteration, finish, seconds):
    """Iterates for so many seconds; the number of iterations that take as long."""
    begin, together, needed = time.perf_counter(), 1, 0
    while time.perf_counter() - begin < seconds:
        lap = time.perf_counter()
        for i in range(together):
            iteration(i)
        # Else the host would run ahead of a GPU without end.
        finish()
        lap = time.perf_counter() - lap
        needed = math.ceil(seconds * together / lap)
        together *= 2 if lap < seconds / 8 else 1
    return needed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('net', choices=NETS)
    parser.add_argument('batch', type=int)
    parser.add_argument('--weights', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--iterations', type=int, default=10)
    parser.add_argument('--seconds', type=float, default=0)
    parser.add_argument('--losses', type=int)
    parser.add_argument('--rate', type=float)
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--threads', type=int)
    parser.add_argument('--gpu')
    parser.add_argument('--precision', choices=['fp32', 'tf32', 'bf16'], default='fp32')
    args = parser.parse_args()
    rate = args.rate or models.rate(args.net)
    torch.manual_seed(0)
    device = torch.device('cpu' if args.gpu is None else f'cuda:{args.gpu}')
    finish = (lambda: None) if args.gpu is None else torch.cuda.synchronize
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == 'tf32'
    if args.threads:
        torch.set_num_threads(args.threads)
    net, head = build(args.net), GaussianHead(100, 384) if args.net == 'cifar100_simple' else None
    load(net, head, models.layers(args.net), args.weights)
    with h5py.File(args.data) as f:
        x, label = (torch.from_numpy(f[name][...]).split(args.batch) for name in ('data', 'label'))
    if args.channels_last:
        net, x = net.to(memory_format=torch.channels_last), [x.to(memory_format=torch.channels_last) for x in x]
    net, head = net.to(device), head and head.to(device)
    x, label = [x.to(device) for x in x], [label.long().to(device) for label in label]
    groups = [{'params': net.parameters()}] + ([{'params': head.parameters(), 'lr': 2 * rate}] if head else [])
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=models.MOMENTUM, nesterov=head is not None,
                                weight_decay=models.DECAY, fused=True)
    if args.losses:
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0

    def objective(x, label):
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == 'bf16'):
            features = net(x)
        if head:
            return head(features.float(), label)
        loss = F.cross_entropy(features.float(), label)
        return loss, loss

    if args.compile:
        objective = torch.compile(objective, mode='default' if args.gpu is None else 'reduce-overhead')

    def iteration(i):
        optimizer.zero_grad(set_to_none=True)
        loss, total = objective(x[i % len(x)], label[i % len(x)])
        total.backward()
        optimizer.step()
        return loss

    if args.losses:
        print(*(f'{iteration(i).item():.8g}' for i in range(args.losses)))
        return
    for i in range(2 if args.gpu is None else 10):
        iteration(i)
    finish()
    times, begin = [], time.perf_counter()
    for i in range(max(args.iterations, warm_up(iteration, finish, args.seconds))):
        start = time.perf_counter()
        iteration(i)
        times.append(time.perf_counter() - start)
    finish()
    total = time.perf_counter() - begin
    median = sorted(times)[len(times) // 2]
    print(f'{(median if args.gpu is None else total / len(times)) * 1e3:.3f}')


main()
