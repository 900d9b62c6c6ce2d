"""The stages that look at the device, compare with recorded values, and measure."""
import os
import re
import sys

from . import benchmarks, jobs, machine, tests
from . import convolutions as single
from .jobs import TIME_UP, Job
from .step import FAILED, OK, TIMEOUT, Skip

VERSIONS = """
import importlib.metadata as m, platform
names = sorted({(d.metadata['Name'] or '').lower(): d.version for d in m.distributions()}.items())
wanted = ('nvidia', 'torch', 'triton', 'numpy', 'h5py', 'cuda')
print('Python', platform.python_version(), *(f'{n} {v}' for n, v in names if n.startswith(wanted)), sep='\\n')
"""


def device(step):
    """What is found on this machine. Everything else asks for it."""
    gpu = step.gpu
    query = Job('device_query', [machine.BINARY, 'device_query', '-gpu', gpu], step.path('device_query.log'))
    others = [
        Job('nvidia-smi', ['nvidia-smi', '-i', gpu], step.path('nvidia-smi.log')),
        Job('nvidia-smi', ['nvidia-smi', '-q', '-i', gpu], step.path('nvidia-smi-q.log')),
        Job('ldd', ['ldd', machine.BINARY], step.path('ldd.log')),
        Job('packages', ['python3', '-c', VERSIONS], step.path('python.log')),
        Job('machine', ['sh', '-c', 'uname -a; nproc; free -g; ldd --version | head -n 1; g++ --version | head -n 1; '
                        'which compute-sanitizer ncu'], step.path('machine.log')),
    ]
    jobs.run([query, *others], step.deadline, at_once=6)
    step.say(query.text().rstrip())
    if query.status != 0:
        lines = [line for line in query.text().splitlines() if line.strip()]
        return (TIMEOUT if query.status == TIME_UP else FAILED), f'no GPU: {reason(lines[-1]) if lines else query.status}'
    step.run.found = True
    found = re.findall(r'(CUDA driver|NVRTC|cuBLAS|cuDNN|NCCL) +(\d+\.[\d.]+)', query.text())
    name = re.search(r'Name: +(.*)', query.text())
    smi = re.search(r'Driver Version: *([\d.]+)', others[0].text())
    note = [name.group(1).strip() if name else f'GPU {gpu}', *(' '.join(pair) for pair in found)]
    # The kernels are made ready before processes that start side by side all do it.
    status, ready = warm_up(step)
    return status, ', '.join(note + ([f'driver {smi.group(1)}'] if smi else []) + ([ready] if ready else []))


def reason(line):
    """What the last line of a log gives as the reason."""
    return re.sub(r'^[IWEF]\d+ \S+ +\d+ \S+\] (.*no GPU can be used: )?', '', line).strip()


def warm_up(step):
    """Compiles the kernels, unless they were packed for this NVRTC: what came of it, and what is to be said of it."""
    net = os.path.join(step.work('warm-up'), 'net.prototxt')
    with open(net, 'w') as f:
        f.write("layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 2 dim: 2 } } }\n"
                "layer { name: 'y' type: 'ReLU' bottom: 'x' top: 'y' }\n")
    job = Job('warm-up', [machine.BINARY, 'time', '-model', net, '-iterations', 1, '-gpu', step.gpu], step.path('warm-up.log'))
    jobs.run([job], step.deadline)
    if job.status != 0:
        step.say(job.tail(12))
        return FAILED, f'a net of one ReLU does not run ({job.status})'
    compiled = re.search(r'compiled \d+ kernel sources .*? s\b', job.text())
    return OK, compiled.group(0) if compiled else ''


def conformance(step, only=None):
    """Caffe's recorded values: every case, or those that start so."""
    binary = tests.packed(tests.CONFORMANCE)
    if not binary:
        raise Skip('its test was not packed')
    env = {'LGM_CAFFE': machine.BINARY, 'LGM_CASES': ' '.join(only or ())}
    with tests.Links(step):
        job = tests.job(step, binary[0], ['conformance::on_a_device', '--exact', '--nocapture'], env)
        jobs.run([job], step.deadline)
    lines = re.findall('^(ok|none|FAIL) (.*)', job.text(), re.MULTILINE)
    for kind, line in lines:
        if kind == 'FAIL':
            step.say(f'FAIL {line[:200]}')
    # What runs on the CPU only is no fault of the device.
    passed, absent, failed = (sum(kind == wanted for kind, _ in lines) for wanted in ('ok', 'none', 'FAIL'))
    note = f'{passed} cases passed, {failed} failed, {absent} run on the CPU only'
    if job.status == TIME_UP:
        return (FAILED if failed else TIMEOUT), f'{note}; not ended'
    if job.status != 0:
        step.say(job.tail())
    return (OK if job.status == 0 and passed else FAILED), note


def precision(step, **_):
    """scripts/precision, on the data that was packed for it or is beside the repository."""
    data = os.environ.get('LGM_DATA') or next((at for at in (f'{machine.PACK}/data', f'{machine.SHARED}/data') if os.path.isdir(at)), None)
    if not data:
        raise Skip('no data: pack it with "gpu-check pack precision", or name its folder in LGM_DATA')
    command = [sys.executable, os.path.join(machine.SCRIPTS, 'precision'), '--bin', machine.BINARY, '--gpu', step.gpu, '--data', data]
    job = Job('precision', command, step.path('precision.log'))
    jobs.run([job], step.deadline)
    step.say(job.text().rstrip())
    return (OK if job.status == 0 else TIMEOUT if job.status == TIME_UP else FAILED), 'see precision.log'


def bench(step, nets='cifar100_simple:128,resnet50:64,lenet:64', precisions='bf16,tf32,fp32', rounds=1, more=()):
    """scripts/bench, its rows kept as they come."""
    python, more = machine.python('torch', 'h5py'), list(more)
    if not python:
        python, more = machine.python('h5py'), [*more, '--ours']
    if not python:
        raise Skip('no Python with h5py')
    command = [sys.executable, os.path.join(machine.SCRIPTS, 'bench'), '--bin', machine.BINARY, '--python', python, '--gpu', step.gpu,
               '--precision', precisions, '--rounds', rounds, '--nets', nets, *more]
    job, seen, size = Job('bench', command, step.path('bench.log')), 0, 0

    def rows():
        return re.findall(r'^\S+ b\d+ .*', job.text(), re.MULTILINE)

    def look():
        nonlocal seen, size
        if not os.path.exists(job.log) or os.path.getsize(job.log) == size:
            return
        size, found = os.path.getsize(job.log), rows()
        for row in found[seen:]:
            step.say(row)
        if len(found) > seen:
            seen = len(found)
            step.bundle()
    jobs.run([job], step.deadline, meanwhile=look)
    look()
    if job.status != 0:
        step.say(job.tail())
    return (OK if job.status == 0 else TIMEOUT if job.status == TIME_UP else FAILED), f'{len(rows())} rows{"" if "--ours" not in more else ", of ours alone"}: ' + '; '.join(re.sub(' +', ' ', row) for row in rows())


def profile(step, nets='cifar100_simple:128,resnet50:64,lenet:64', precision='bf16', iterations=5):
    """Each layer's time, and cuDNN's choice for each convolution."""
    folder, started = step.work(), []
    for spec in nets.split(','):
        name, batch = spec.split(':')
        at = os.path.join(folder, f'{name}.prototxt')
        with open(at, 'w') as f:
            f.write(benchmarks.without_files(name, int(batch)))
        command = [machine.BINARY, 'time', '-model', at, '-iterations', iterations, '-gpu', step.gpu, '-precision', precision, '-v', 1]
        started.append(Job(name, command, step.path(f'profile-{name}.log')))
    # One after another: each has the device to itself.
    jobs.run(started, step.deadline)
    notes, bad = [], False
    for job in started:
        made = re.search(r'Convolutions of a forward and a backward pass: (.*)', job.text())
        total = re.search(r'Average Forward-Backward: (\S+) ms', job.text())
        notes.append(f'{job.name} {total.group(1) + " ms" if total else job.status}' + (f': {made.group(1).rstrip(".")}' if made else ''))
        bad |= job.status != 0
        if job.status != 0:
            step.say(f'{job.name}: {job.status}\n{job.tail(12)}')
    for note in notes:
        step.say(note)
    late = all(job.status in (0, TIME_UP, jobs.NOT_STARTED) for job in started)
    short = '; '.join(re.sub(r' \([^()]*\)', '', note) for note in notes)
    return (OK if not bad else TIMEOUT if late else FAILED), short


def convolutions(step, geometries=single.GEOMETRIES):
    """Single convolutions beside PyTorch's."""
    return single.compare(step, geometries)
