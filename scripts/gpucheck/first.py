"""The first minutes on a GPU: every step whatever came of those before, the ones that a failure elsewhere must not cost first."""
import os
import sys

from . import convolutions, jobs, machine, sanitizer, smoke, stages, tests
from .jobs import Deadline, Job

# Seconds in all.
LIMIT = 490
NETS = 'cifar100_simple:128,resnet50:64,lenet:64'


class Plan:
    """What the steps are given: all of it."""
    nets, precisions, bench = NETS, 'bf16,tf32', ['--modes', 'compiled-last']
    smoke = {}
    conformance = tests = None
    profile = {'nets': NETS}
    sanitized = ('lgm', 'residual')
    geometries = convolutions.GEOMETRIES


class Short(Plan):
    """So little of each that it can be tried where there is no GPU, on libraries that stand in for NVIDIA's."""
    nets, precisions, bench = 'lenet:2', 'fp32', ['--ours', '--seconds', '0.2']
    smoke = {'only': [('residual', 'fp32', '1', '1'), ('residual', 'bf16', '0', '1'), ('lgm', 'fp32', '1', '0')], 'iterations': 2,
             'at_once': 2}
    conformance, tests = ['layers/conv_1', 'lgm/lgm_iso', 'train/sgd_step'], ['lgm_cuda_probe', 'lgm_solver_rules']
    profile = {'nets': 'lenet:2', 'iterations': 1}
    geometries = [(2, 8, 8, 8, 3, 1), (2, 8, 16, 8, 1, 2)]


def first(run, plan):
    """Runs the steps."""
    # Compiled by PyTorch's compiler while other things run, for bench to find.
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = run.work('inductor')
    compiling, kept = None, [*plan.bench, '--folder', run.work('bench')]
    try:
        run.run('device', 20, stages.device)
        if not run.found:
            return
        run.run('smoke', 40, smoke.smoke, **plan.smoke)
        # Where no net trains as on the CPU, times mean nothing, and what is left goes to finding out why.
        python = machine.python('torch', 'h5py')
        if python and plan is Plan and run.trains:
            command = [sys.executable, os.path.join(machine.SCRIPTS, 'bench'), '--prepare', '--bin', machine.BINARY, '--python', python,
                       '--gpu', run.gpu, '--precision', plan.precisions, '--nets', plan.nets, *kept]
            compiling = Job('compile', command, run.path('compile.log'))
            compiling.start()
        run.run('conformance', 90, stages.conformance, only=plan.conformance)
        run.run('tests', 120, tests.tests, only=plan.tests)
        if run.trains:
            run.run('bench', 150, bench, plan, compiling, kept)
            run.run('profile', 25, stages.profile, precision=plan.precisions.split(',')[0], **plan.profile)
            spare = run.deadline.left() - 55
            if spare > 10:
                run.run('convolutions', min(40, spare), stages.convolutions, plan.geometries)
        run.run('memcheck', 60, sanitizer.sanitize, tool='memcheck', only=plan.sanitized)
    finally:
        if compiling:
            compiling.stop()


def bench(step, plan, compiling, more):
    """The benchmarks, with nothing beside them: what is being compiled is waited for, for a while."""
    if compiling:
        most = Deadline(min(60, step.deadline.left() / 2))
        while not compiling.done() and most.left() > 0:
            jobs.pause()
        step.say(f'compiled for PyTorch beforehand: {"all" if compiling.done() else "not all in time"}\n{compiling.tail()}')
        compiling.stop()
    return stages.bench(step, plan.nets, plan.precisions, more=more)
