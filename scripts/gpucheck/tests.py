"""The packed tests of kernels, layers, nets and solvers, with the GPU in the simulated device's place."""
import collections
import os
import re

from . import jobs, machine
from .jobs import NOT_STARTED, TIME_UP, Deadline, Job
from .step import FAILED, OK, TIMEOUT, Skip

# Binaries run side by side.
AT_ONCE = 6
# What breaks the device on purpose, and with it whatever else runs there: alone, and when all the others have ended.
ALONE = 'lgm_cuda_lost'
# The binary's own tests: the stage of that name runs those of the recorded values.
CONFORMANCE = ['lgm_cli_integration']


def crate(binary):
    """A binary's name without the hash that cargo gives it."""
    return os.path.basename(binary).rsplit('-', 1)[0]


def packed(only=None):
    """The packed binaries, or those named."""
    folder = os.path.join(machine.PACK, 'tests')
    binaries = sorted(os.path.join(folder, name) for name in (os.listdir(folder) if os.path.isdir(folder) else []))
    return [binary for binary in binaries if only is None or crate(binary) in only]


def job(step, binary, arguments=None, env=None):
    """A binary with the arguments, or all its tests."""
    # While one thread records a graph, what another gives back to the driver may wait for the whole device and spoil it:
    # one at a time but for the layers' tests, which record nothing and share one queue.
    threads = machine.threads() if crate(binary).startswith('lgm_layers') else 1
    env = {'LGM_TEST_DEVICE': os.environ.get('LGM_TEST_DEVICE', 'cuda'), 'LGM_TEST_GPU': step.gpu, 'HDF5_USE_FILE_LOCKING': 'FALSE', **(env or {})}
    command = [binary, *(arguments or ['--show-output', '--test-threads', threads])]
    return Job(crate(binary), command, step.path(f'tests-{os.path.basename(binary)}.log'), env)


def results(text):
    """What a log says of each test: its name and 'ok', 'FAILED' or 'ignored'; and the one that has begun and not ended."""
    found, begun = {}, None
    for line in text.splitlines():
        # What libraries print themselves may come between a test's name and its result.
        start = re.match(r'test (\S+)(?: - should panic)? \.\.\.', line)
        begun = start.group(1) if start else begun
        result = re.search(r'(?:^|\.\.\. )(ok|FAILED|ignored)(?:, .*)?$', line)
        if begun and result:
            found[begun], begun = result.group(1), None
    return found, begun


def unfinished(job):
    """The tests of a binary that was ended before they were: where several ran at a time, all that have no result."""
    found, begun = results(job.text())
    if begun:
        return [begun]
    listed = Job('list', [job.command[0], '--list', '--format', 'terse'], job.log + '.list')
    jobs.run([listed], Deadline(5))
    names = re.findall(r'^(\S+): test$', listed.text(), re.MULTILINE)
    os.remove(listed.log)
    return [name for name in names if name not in found]


def tests(step, only=None):
    binaries = [binary for binary in packed(only) if crate(binary) not in CONFORMANCE]
    if not binaries:
        raise Skip('no tests were packed')
    with Links(step):
        together = [job(step, binary) for binary in binaries if crate(binary) != ALONE]
        alone = [job(step, binary) for binary in binaries if crate(binary) == ALONE]
        counts, bad, late = collections.Counter(), [], []

        def ended(done):
            found, _ = results(done.text())
            counts.update(found.values())
            counts['skipped'] += len(re.findall('^skipped:', done.text(), re.MULTILINE))
            failed = [name for name, result in found.items() if result == 'FAILED']
            said = re.findall('^test result.*', done.text(), re.MULTILINE)
            step.say(f'== {done.name}: {"; ".join(said) or done.status} ({done.seconds:.0f} s)')
            if done.status in (TIME_UP, NOT_STARTED):
                names = unfinished(done) if done.status == TIME_UP else []
                late.append(f'{done.name}' + (f' (in {", ".join(names[:3])}{", …" if len(names) > 3 else ""})' if names else ''))
                step.say(f'{done.name}: {done.status}' + ''.join(f'\n  has no result: {name}' for name in names))
            if failed or done.status not in (0, TIME_UP, NOT_STARTED):
                bad.append(f'{done.name} ({", ".join(failed) or f"status {done.status}"})')
                step.say(failures(done.text()) or done.tail())
            step.bundle()

        # The last one has its time kept for it.
        most = Deadline(max(1, step.deadline.left() - (10 if alone else 0)), within=step.deadline)
        jobs.run(together, most, AT_ONCE, ended)
        jobs.run(alone, step.deadline, 1, ended)
    lines = (line.strip() for done in together + alone for line in done.text().splitlines())
    reasons = collections.Counter(line for line in lines if line.startswith('skipped:'))
    for reason, count in reasons.most_common():
        step.say(f'{count:5} × {reason}')
    note = f'{counts["ok"]} passed, {counts["FAILED"]} failed, {counts["skipped"]} said "skipped"'
    note += f'; FAILED: {"; ".join(bad)}' if bad else ''
    note += f'; not ended: {"; ".join(late)}' if late else ''
    return (FAILED if bad else TIMEOUT if late else OK), note


def failures(text):
    """What a test binary says of its failures."""
    parts = text.split('\nfailures:\n')
    return parts[1].strip()[-6000:] if len(parts) > 2 else ''


class Links:
    """Tests find their files by the path they were built under: a link there, while they run."""

    def __init__(self, step):
        self.step, self.made = step, []

    def __enter__(self):
        built = machine.first_line(os.path.join(machine.PACK, 'built-in'))
        if built and not os.path.exists(built):
            self._link(machine.ROOT, built)
            if not os.path.exists(built):
                self.step.say(f'{built}, where the tests were built, is not here and cannot be made: what needs its files is skipped')
        return self

    def _link(self, to, at):
        parent = os.path.dirname(at)
        new = not os.path.exists(parent)
        try:
            os.makedirs(parent, exist_ok=True)
            os.symlink(to, at)
        except OSError:
            return
        self.made.append((at, parent if new else None))

    def __exit__(self, *_):
        for at, parent in reversed(self.made):
            try:
                os.remove(at)
                if parent:
                    os.rmdir(parent)
            except OSError as error:
                self.step.say(f'{at} stays: {error.strerror}')
