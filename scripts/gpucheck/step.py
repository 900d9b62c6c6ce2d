"""One stage of a check: its time, its log, its line in the table; and the bundle of everything that is known so far."""
import os
import shutil
import sys
import tarfile
import time
import traceback

from .jobs import Deadline

# Tells a folder of results from any other.
MARK = 'revision.txt'
OK, SKIPPED, REFUSED, FAILED, TIMEOUT = 'ok', 'skipped', 'refused', 'FAILED', 'TIMEOUT'


def settled(results):
    """Whether none of some stages failed."""
    return not {FAILED, TIMEOUT} & set(results.values())


class Skip(Exception):
    """What a stage wants is not there."""


class Run:
    """A call of gpu-check: where its results go, which GPU is checked, when all must have ended."""

    def __init__(self, out, gpu, deadline, revision, bundle=None, quiet=False):
        self.out, self.gpu, self.deadline, self.quiet = os.path.abspath(out), gpu, deadline, quiet
        self.bundle_file = bundle and os.path.abspath(bundle)
        # Whether there is a GPU at all, and whether any net trains on it as on the CPU: the first stages find out.
        self.results, self.found, self.trains = {}, False, False
        if os.path.isdir(self.out) and os.listdir(self.out) and not os.path.exists(self.path(MARK)):
            sys.exit(f'gpu-check: {self.out} holds files of others: name an empty folder with --out')
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(os.path.join(self.out, 'work'))
        with open(self.path(MARK), 'w') as f:
            f.write(revision + '\n')

    def path(self, name):
        """A file among the results."""
        return os.path.join(self.out, name)

    def work(self, name):
        """An empty folder for what is no result, which no bundle holds."""
        folder = os.path.join(self.out, 'work', name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        return folder

    def bundle(self):
        """Writes all results so far as one file, which is whole at every moment."""
        if not self.bundle_file:
            return
        partial = self.bundle_file + '.partial'
        os.makedirs(os.path.dirname(partial), exist_ok=True)
        mode = 'w:gz' if self.bundle_file.endswith('gz') else 'w'
        with tarfile.open(partial, mode, compresslevel=3) if mode == 'w:gz' else tarfile.open(partial, mode) as tar:
            for name in sorted(os.listdir(self.out)):
                if name != 'work' and os.path.join(self.out, name) not in (self.bundle_file, partial):
                    tar.add(os.path.join(self.out, name), arcname=f'gpu-check/{name}')
        os.replace(partial, self.bundle_file)

    def table(self):
        if not self.results:
            return ''
        with open(self.path('table.txt')) as f:
            return f.read()

    def run(self, name, limit, stage, *arguments, **options):
        """Runs a stage, for so many seconds at the most, and notes what came of it; True unless something failed."""
        step = Step(self, name, Deadline(limit, within=self.deadline))
        begun = time.monotonic()
        if not self.quiet:
            print(f'\n== {name}', flush=True)
        try:
            if step.deadline.left() < min(5, limit):
                raise Skip('no time is left')
            status, note = stage(step, *arguments, **options)
        except Skip as why:
            status, note = SKIPPED, str(why)
        except Exception as error:
            # One stage's fault must not cost the others.
            step.say(traceback.format_exc())
            status, note = FAILED, f'{type(error).__name__}: {error}'
        except BaseException:
            self.note(name, FAILED, begun, 'ended from outside')
            raise
        finally:
            step.close()
        self.note(name, status, begun, note)
        return settled({name: status})

    def note(self, name, status, begun, note):
        """What came of a stage, for the table."""
        self.results[name] = status
        line = f'{name:<12} {status:<8} {time.monotonic() - begun:5.0f} s  {note}'
        # At once: what is known when the machine is taken back stays known.
        with open(self.path('table.txt'), 'a') as f:
            f.write(line + '\n')
        print(line, flush=True)
        self.bundle()


class Step:
    """What a stage gets to see of its run."""

    def __init__(self, run, name, deadline):
        self.run, self.name, self.deadline, self.gpu = run, name, deadline, run.gpu
        self._log = open(run.path(f'stage-{name}.log'), 'w')

    def say(self, text):
        """A line of the stage's log and, unless the run is a quiet one, of the terminal."""
        self._log.write(text + '\n')
        self._log.flush()
        if not self.run.quiet:
            print(text, flush=True)

    def path(self, name):
        return self.run.path(name)

    def work(self, name=None):
        return self.run.work(name or self.name)

    def bundle(self):
        self.run.bundle()

    def close(self):
        self._log.close()
