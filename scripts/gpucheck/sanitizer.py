"""Small nets under compute-sanitizer, two iterations each, side by side."""
import os
import re
import shutil
import subprocess

from . import jobs, machine, small_nets
from .jobs import NOT_STARTED, TIME_UP, Job
from .step import FAILED, OK, REFUSED, TIMEOUT, Skip

# What it says where it cannot watch this device, or this driver, at all.
REFUSALS = re.compile(r'^=+ .*(?:[Dd]evice not supported|not supported on this|[Uu]nable to find (?:a )?supported|[Ff]ailed to initialize|'
                      r'InitializationError|[Ii]nternal [Ss]anitizer [Ee]rror|requires a newer driver).*', re.MULTILINE)


def options(tool):
    if tool == 'memcheck':
        # Every call of ours is checked anyway, and libraries try what may fail.
        return ['--report-api-errors', 'no']
    # Our own kernels alone: to see into the libraries' takes minutes.
    known = subprocess.run(['compute-sanitizer', '--help'], capture_output=True, text=True, timeout=30).stdout
    if '--kernel-regex' not in known:
        return []
    names = set()
    for file in os.listdir(os.path.join(machine.ROOT, 'kernels')):
        if file.endswith('.cu'):
            with open(os.path.join(machine.ROOT, 'kernels', file)) as f:
                names |= set(re.findall(r'^KERNEL(?:S|S_ADDING)?\(([a-z]+_)', f.read(), re.MULTILINE))
    return [part for name in sorted(names) for part in ('--kernel-regex', f'kns={name}')]


def sanitize(step, tool, only=None):
    """Every net that is packed for it, or those named."""
    if not shutil.which('compute-sanitizer'):
        raise Skip('compute-sanitizer is absent')
    watch = ['compute-sanitizer', '--tool', tool, '--error-exitcode', 9, '--print-limit', 20]
    cases = small_nets.small(step.work(), only)
    more = options(tool)

    def job(case, options, log):
        weights = ['-weights', 'init.caffemodel'] if os.path.exists(os.path.join(case, 'init.caffemodel')) else []
        train = [machine.BINARY, 'train', '-solver', 'solver.prototxt', *weights, '-gpu', step.gpu]
        return Job(os.path.basename(case), watch + options + train, step.path(log), folder=case)
    started = [job(case, more, f'{tool}-{os.path.basename(case)}.log') for case in cases]
    jobs.run(started, step.deadline, at_once=4)
    # A version that does not know an option says so, and nothing else.
    again = [(case, done) for case, done in zip(cases, started) if isinstance(done.status, int) and done.status
             and not re.search('SUMMARY', done.text()) and not REFUSALS.search(done.text())]
    plain = [job(case, [], f'{tool}-{done.name}-plain.log') for case, done in again]
    jobs.run(plain, step.deadline, at_once=4)
    final = {done.name: done for done in started + plain}
    outcomes = {OK: [], REFUSED: [], FAILED: [], TIMEOUT: []}
    for name, done in final.items():
        outcome = judge(done)
        outcomes[outcome].append(name)
        step.say(f'== {tool}: {name}: {outcome} ({done.seconds:.0f} s)')
        for line in re.findall('.*(?:ERROR|RACECHECK) SUMMARY.*', done.text()):
            step.say(line)
        if outcome != OK:
            step.say(done.tail())
    said = ', '.join(f'{outcome}: {" ".join(names)}' for outcome, names in outcomes.items() if names)
    worst = next((outcome for outcome in (FAILED, TIMEOUT, REFUSED, OK) if outcomes[outcome]), OK)
    if worst == REFUSED:
        said += f' ({REFUSALS.search("".join(final[name].text() for name in outcomes[REFUSED])).group(0).strip("= ")})'
    return worst, f'two iterations each; {said}'


def judge(done):
    if done.status == 0:
        return OK
    if done.status in (TIME_UP, NOT_STARTED):
        return TIMEOUT
    refused = REFUSALS.search(done.text())
    found = re.search(r'(?:ERROR SUMMARY: |RACECHECK SUMMARY: )([1-9]\d*)', done.text())
    # On a device that it does not know the program fails too, which it counts.
    return REFUSED if refused and ('evice not supported' in refused.group(0) or not found) else FAILED
