"""Where files are, what this machine has, and what the programs that are run get to see."""
import functools
import os
import shutil
import subprocess
import sys

SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(SCRIPTS)
HERE = os.path.join(SCRIPTS, 'gpucheck')
ARCHIVE = os.path.join(ROOT, 'target', 'gpu-check.tar.gz')
PACK = os.path.join(ROOT, 'target', 'gpu-check')
BINARY = os.path.join(PACK, 'lgm-caffe')
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')


@functools.cache
def python(*modules):
    """The first Python that has the modules, or None."""
    own = [os.path.join(ROOT, 'target', name, 'bin', 'python') for name in ('venv', 'bench-venv')]
    for candidate in [os.environ.get('PYTHON'), sys.executable, shutil.which('python3'), shutil.which('python'), *own]:
        # Found, not imported: that takes seconds.
        probe = [candidate, '-c', f'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {modules})))']
        try:
            if candidate and subprocess.run(probe, capture_output=True, timeout=60).returncode == 0:
                return candidate
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def prepare(out):
    """Sets the environment of all that is run: kernels come from the cache that was packed, and what is compiled stays there."""
    cache = os.path.join(PACK, 'cache')
    try:
        os.makedirs(os.path.join(cache, 'lgm-caffe'), exist_ok=True)
        usable = os.access(os.path.join(cache, 'lgm-caffe'), os.W_OK)
    except OSError:
        usable = False
    os.environ['XDG_CACHE_HOME'] = cache if usable else os.path.join(out, 'work', 'cache')
    # NVIDIA's libraries may be packages of a Python that only a wrapper leads to.
    if 'VIRTUAL_ENV' not in os.environ:
        try:
            prefix = subprocess.run(['python3', '-c', 'import sys; print(sys.prefix)'], capture_output=True, text=True, timeout=30)
            if prefix.returncode == 0:
                os.environ['VIRTUAL_ENV'] = prefix.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass


def threads():
    return len(os.sched_getaffinity(0))


def first_line(path):
    try:
        with open(path, errors='replace') as f:
            return f.readline().strip()
    except OSError:
        return ''
