"""A first look: small nets trained a few iterations under every switch, their losses beside those of a CPU."""
import itertools
import json
import os
import re

from . import jobs, machine, small_nets
from .jobs import NOT_STARTED, TIME_UP, Job
from .step import FAILED, OK, TIMEOUT, Skip

ITERATIONS = 20
LOSSES = os.path.join(machine.PACK, 'smoke', 'losses.json')
# How far a loss may be from the CPU's, in parts of the first loss: in the first few iterations what rounding makes of one, and
# from then on what training makes of that.
FEW = 4
TOLERANCES = {'fp32': (2e-4, 2e-2), 'tf32': (3e-3, 5e-2), 'bf16': (1e-2, 1e-1)}


def losses(log):
    """The loss of every iteration."""
    return [float(loss) for loss in re.findall(r'Iteration \d+ \(.*loss = (\S+)', log)]


def reference(folder, binary):
    """Trains every net on the CPU, layer by layer, and keeps the losses, for machines to be compared with."""
    folder = os.path.join(folder, 'smoke')
    small_nets.draw(os.path.join(folder, 'glyphs'), binary)
    found, data = {}, os.path.join(folder, 'glyphs')
    for name in small_nets.NETS:
        case = small_nets.write(os.path.join(folder, name), name, ITERATIONS, data)
        env = {'LGM_FUSE': '0'}
        job = Job(name, [binary, 'train', '-solver', 'solver.prototxt'], os.path.join(case, 'log'), env, case)
        jobs.run([job], jobs.Deadline(300))
        found[name] = losses(job.text())
        if job.status != 0 or len(found[name]) != ITERATIONS:
            raise RuntimeError(f'the net {name} does not train on the CPU:\n{job.tail()}')
    with open(os.path.join(folder, 'losses.json'), 'w') as f:
        json.dump(found, f)


def combinations():
    """Net, precision, LGM_GRAPH, LGM_FUSE: the default switches first."""
    for name in ('residual', 'lgm'):
        for precision, graph, fuse in itertools.product(('fp32', 'bf16', 'tf32'), '10', '10'):
            yield name, precision, graph, fuse
    yield from (('wide', precision, '1', '1') for precision in ('tf32', 'bf16'))


def smoke(step, only=None, iterations=ITERATIONS, at_once=8):
    """Every combination, or those given."""
    if not os.path.exists(LOSSES):
        raise Skip('no nets were packed for it')
    with open(LOSSES) as f:
        expected = json.load(f)
    work, glyphs = step.work(), os.path.join(machine.PACK, 'smoke', 'glyphs')
    started = []
    for name, precision, graph, fuse in only or combinations():
        label = f'{name}-{precision}-graph{graph}-fuse{fuse}'
        case = small_nets.write(os.path.join(work, label), name, iterations, glyphs)
        command = [machine.BINARY, 'train', '-solver', 'solver.prototxt', '-gpu', step.gpu, '-precision', precision]
        env = {'LGM_GRAPH': graph, 'LGM_FUSE': fuse}
        job = Job(label, command, step.path(f'smoke-{label}.log'), env, case)
        job.expected, (first, later) = expected[name][:iterations], TOLERANCES[precision]
        job.tolerances = [first if i < FEW else later for i in range(iterations)]
        started.append(job)
    bad, late = [], []

    def ended(job):
        found = losses(job.text())
        apart = [abs(a - b) / max(1.0, abs(job.expected[0])) for a, b in zip(found, job.expected)]
        few, worst = max(apart[:FEW], default=0.0), max(apart, default=0.0)
        verdict = 'ok'
        if job.status in (TIME_UP, NOT_STARTED):
            verdict = job.status
            late.append(job.name)
        elif job.status != 0 or len(found) != len(job.expected):
            verdict = f'FAILED with status {job.status}'
            bad.append(job.name)
        elif not all(distance <= most for distance, most in zip(apart, job.tolerances)):
            i = next(i for i, most in enumerate(job.tolerances) if not apart[i] <= most)
            verdict = f'FAILED: the losses of iteration {i} differ by {apart[i]:.1e} of the first one, more than {job.tolerances[i]}'
            bad.append(job.name)
        ends = f'first {found[0]:.6g} (CPU {job.expected[0]:.6g}), last {found[-1]:.6g} (CPU {job.expected[-1]:.6g})' if found else 'no loss'
        step.say(f'{job.name:<32} {job.seconds:5.1f} s  apart {few:.1e}, later {worst:.1e}  {ends}  {verdict}')
        if verdict.startswith('FAILED'):
            step.say(job.tail(12))
            step.say('  found    ' + ' '.join(f'{loss:.5g}' for loss in found))
            step.say('  expected ' + ' '.join(f'{loss:.5g}' for loss in job.expected))
    jobs.run(started, step.deadline, at_once, ended)
    step.run.trains = len(bad) + len(late) < len(started)
    note = f'{len(started) - len(bad) - len(late)} of {len(started)} runs like the CPU\'s'
    note += f'; FAILED: {" ".join(bad)}' if bad else ''
    note += f'; not ended: {" ".join(late)}' if late else ''
    return (FAILED if bad else TIMEOUT if late else OK), note
