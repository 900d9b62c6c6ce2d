"""Single convolutions, ours and PyTorch's side by side: each pass alone, waited for, with the data there already."""
import json
import os
import re

from . import jobs, machine
from .jobs import NOT_STARTED, TIME_UP, Deadline, Job
from .step import FAILED, OK, TIMEOUT

# Images, channels, outputs, height and width, kernel, stride: those of ResNet-50 with 64 images and of the paper's net with 128.
GEOMETRIES = [
    (64, 3, 64, 224, 7, 2), (64, 64, 64, 56, 1, 1), (64, 64, 64, 56, 3, 1), (64, 64, 256, 56, 1, 1), (64, 256, 64, 56, 1, 1),
    (64, 128, 128, 56, 3, 2), (64, 256, 512, 56, 1, 2), (64, 128, 128, 28, 3, 1), (64, 128, 512, 28, 1, 1), (64, 512, 128, 28, 1, 1),
    (64, 256, 256, 14, 3, 1), (64, 256, 1024, 14, 1, 1), (64, 1024, 256, 14, 1, 1), (64, 512, 512, 7, 3, 1), (64, 512, 2048, 7, 1, 1),
    (64, 2048, 512, 7, 1, 1),
    (128, 3, 96, 32, 3, 1), (128, 96, 96, 32, 3, 1), (128, 96, 192, 16, 3, 1), (128, 192, 192, 16, 3, 1), (128, 192, 384, 8, 3, 1),
    (128, 384, 384, 8, 3, 1),
]
ITERATIONS = 10


def label(geometry):
    n, c, k, size, kernel, stride = geometry
    return f'{n}x{c}x{size}x{size}-{k}-{kernel}x{kernel}s{stride}'


def prototxt(geometries):
    """A net of nothing but these convolutions. Every value is a constant, as PyTorch's are too, but for the filters'."""
    text = ['name: "convolutions"', 'force_backward: true']
    for geometry in geometries:
        n, c, k, size, kernel, stride = geometry
        name = label(geometry)
        shape = ' '.join(f'dim: {extent}' for extent in (n, c, size, size))
        text.append(f'layer {{ name: "x-{name}" type: "DummyData" top: "x-{name}" dummy_data_param {{ shape {{ {shape} }} '
                    'data_filler { type: "constant" value: 0.5 } } }')
        settings = f'num_output: {k} kernel_size: {kernel} stride: {stride} pad: {kernel // 2} bias_term: false'
        text.append(f'layer {{ name: "{name}" type: "Convolution" bottom: "x-{name}" top: "{name}" loss_weight: 1 '
                    f'convolution_param {{ {settings} weight_filler {{ type: "msra" }} }} }}')
    return '\n'.join(text) + '\n'


def compare(step, geometries):
    """Writes the table; what came of it, and how many of its rows have both sides."""
    folder = step.work('convolutions')
    with open(os.path.join(folder, 'net.prototxt'), 'w') as f:
        f.write(prototxt(geometries))
    ours = Job('ours', [machine.BINARY, 'time', '-model', 'net.prototxt', '-iterations', ITERATIONS, '-gpu', step.gpu, '-precision', 'bf16',
                        '-v', 1], step.path('convolutions-ours.log'), folder=folder)
    python = machine.python('torch')
    script = os.path.join(machine.HERE, 'torch_convolutions.py')
    theirs = Job('PyTorch', [python, script, step.gpu, ITERATIONS, json.dumps(geometries)], step.path('convolutions-torch.log'))
    # One after another: each has the device to itself.
    jobs.run([ours], Deadline(step.deadline.left() / 2, within=step.deadline))
    if python:
        jobs.run([theirs], step.deadline)
    mine, other = {}, {}
    for name, way, ms in re.findall(r'(\S+)\t(forward|backward): (\S+) ms\.', ours.text()):
        mine[name, way] = float(ms)
    for line in theirs.text().splitlines() if python else []:
        found = re.fullmatch(r'(\d+x\S+) (\S+) (\S+)', line)
        if found:
            other[found.group(1), 'forward'], other[found.group(1), 'backward'] = float(found.group(2)), float(found.group(3))
    lines = [f'{"convolution, bf16":<30}' + ''.join(f'{way:>11}{"PyTorch":>11}{"ratio":>8}' for way in ('forward', 'backward'))]
    both = 0
    for geometry in geometries:
        row = f'{label(geometry):<30}'
        for way in ('forward', 'backward'):
            a, b = mine.get((label(geometry), way)), other.get((label(geometry), way))
            row += f'{f"{a:.3f} ms" if a else "-":>11}{f"{b:.3f} ms" if b else "-":>11}{f"{b / a:.2f}x" if a and b else "-":>8}'
        both += (label(geometry), 'backward') in mine and (label(geometry), 'backward') in other
        lines.append(row)
    with open(step.path('convolutions.txt'), 'w') as f:
        f.write('\n'.join(lines) + '\n')
    step.say('\n'.join(lines))
    if ours.status != 0:
        step.say(f'ours: {ours.status}\n{ours.tail(8)}')
    if python and theirs.status != 0:
        step.say(f'PyTorch: {theirs.status}\n{theirs.tail(8)}')
    measured = sum((label(geometry), 'backward') in mine for geometry in geometries)
    late = {ours.status, theirs.status if python else 0} & {TIME_UP, NOT_STARTED}
    note = f'{measured} of {len(geometries)} measured, {both} beside PyTorch' + ('' if python else ', which is absent')
    return (TIMEOUT if late else FAILED if ours.status != 0 or (python and theirs.status != 0) else OK), note
