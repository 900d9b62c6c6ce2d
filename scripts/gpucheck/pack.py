"""Builds all that a machine with a GPU needs and has no toolchain for, as one archive."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tarfile

from . import jobs, machine, smoke
from .machine import ARCHIVE, PACK, ROOT

# Those that a device runs in; all would be too many to carry far.
TESTS = {
    'lgm-cli': ('integration',),
    'lgm-cuda': ('lgm_cuda', *(os.path.basename(file)[:-3] for file in glob.glob(os.path.join(ROOT, 'crates', 'cuda', 'tests', '*.rs')))),
    'lgm-layers': ('lgm_layers',),
    'lgm-net': ('device',),
    'lgm-solver': ('faults', 'resume', 'rules'),
}
# What the kernels are compiled for here: an H100 or H200. Elsewhere they are compiled where they run.
ARCHITECTURE = '90'


def run(*command, **more):
    print('+', *command, flush=True)
    return subprocess.run(command, cwd=ROOT, check=True, **more)


def pack(what, binary, tests):
    """The binary, tests, losses to compare with, compiled kernels; with 'precision' the data for that, and no tests."""
    precision = what == ['precision']
    if what and not precision:
        sys.exit(f"gpu-check: pack takes 'precision' or nothing, not '{' '.join(what)}'")
    shutil.rmtree(PACK, ignore_errors=True)
    os.makedirs(PACK)
    if not binary:
        run('cargo', 'build', '--locked', '--release', '-p', 'lgm-caffe')
        binary = os.path.join(ROOT, 'target', 'release', 'lgm-caffe')
    shutil.copy(binary, machine.BINARY)
    if precision:
        copy(os.environ.get('LGM_DATA') or os.path.join(machine.SHARED, 'data'), os.path.join(PACK, 'data'))
    else:
        pack_tests(tests)
        smoke.reference(PACK, machine.BINARY)
    run('strip', machine.BINARY)
    pack_kernels(simulator=not precision)
    with open(os.path.join(PACK, 'built-in'), 'w') as f:
        f.write(ROOT + '\n')
    with open(os.path.join(PACK, 'revision'), 'w') as f:
        f.write(run('git', 'rev-parse', 'HEAD', capture_output=True, text=True).stdout.strip())
        if run('git', 'status', '--porcelain', capture_output=True, text=True).stdout:
            f.write(' with changes that are not committed')
        f.write('\n')
    partial = ARCHIVE + '.partial'
    with tarfile.open(partial, 'w:gz') as tar:
        tar.add(PACK, arcname='gpu-check')
    os.replace(partial, ARCHIVE)
    print(f'{os.path.relpath(ARCHIVE, ROOT)}: {os.path.getsize(ARCHIVE) / 1e6:.1f} MB')


def copy(source, to):
    shutil.copytree(source, to, ignore=shutil.ignore_patterns('__pycache__'))
    # The source may be a place that nobody writes to.
    for folder, _, files in os.walk(to):
        os.chmod(folder, 0o755)
        for file in files:
            os.chmod(os.path.join(folder, file), 0o644)


def pack_tests(only):
    """Every test binary of TESTS, or those whose target is named."""
    wanted = {(package, target) for package, targets in TESTS.items() for target in targets if only is None or target in only}
    # With the features of the whole workspace, as scripts/test builds them, so that nothing is built twice.
    files = sorted({target for package, target in wanted if target != package.replace('-', '_')})
    command = ['cargo', 'test', '--locked', '--no-run', '--workspace', '--lib', *(part for file in files for part in ('--test', file))]
    printed = run(*command, '--message-format', 'json-render-diagnostics', stdout=subprocess.PIPE, text=True).stdout
    os.makedirs(os.path.join(PACK, 'tests'))
    for message in map(json.loads, printed.splitlines()):
        if message.get('reason') != 'compiler-artifact' or not message.get('executable'):
            continue
        package = os.path.basename(os.path.dirname(message['manifest_path']))
        key = (f'lgm-{package}', message['target']['name'])
        if key in wanted and message['profile']['test']:
            wanted.discard(key)
            # Targets of several crates may have one name.
            name = os.path.basename(message['executable'])
            to = os.path.join(PACK, 'tests', name if name.startswith('lgm_') else f'lgm_{package}_{name}')
            shutil.copy(message['executable'], to)
            run('strip', to)
    if wanted:
        sys.exit(f'gpu-check: cargo built no tests of {", ".join(" ".join(key) for key in sorted(wanted))}')


def pack_kernels(simulator):
    """What would be compiled on the first run: the kernels for the GPU, and for the simulated device that tests compare with."""
    cache = os.path.join(PACK, 'cache', 'lgm-caffe')
    os.makedirs(cache)
    try:
        run(os.path.join(machine.SCRIPTS, 'nvrtc-check'), '--keep', ARCHITECTURE, cache)
    except subprocess.CalledProcessError:
        print('gpu-check: the kernels could not be compiled here: they will be where they run, which takes a while')
    if simulator:
        net = os.path.join(PACK, 'smoke', 'residual')
        job = jobs.Job('simulator', [machine.BINARY, 'time', '-solver', 'solver.prototxt', '-iterations', '1', '-gpu', '0'],
                       os.path.join(PACK, 'simulator.log'), {'LGM_GPU': 'sim', 'XDG_CACHE_HOME': os.path.dirname(cache)}, net)
        jobs.run([job], jobs.Deadline(300))
        if job.status != 0:
            print(f'gpu-check: the simulated device could not be made here:\n{job.tail(5)}')
        os.remove(job.log)
