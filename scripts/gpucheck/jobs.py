"""Commands run side by side, each with its own log, none longer than a deadline."""
import collections
import os
import signal
import subprocess
import time

TIME_UP = 'time is up'
NOT_STARTED = 'not started'


def pause():
    """Waits a moment, between two looks at what runs."""
    time.sleep(0.02)


class Deadline:
    """A moment that nothing outlasts."""

    def __init__(self, seconds, within=None):
        """So many seconds from now, but no later than another deadline."""
        self.at = time.monotonic() + seconds
        if within:
            self.at = min(self.at, within.at)

    def left(self):
        return max(0.0, self.at - time.monotonic())


class Job:
    """A command. Its status is an exit status, TIME_UP or NOT_STARTED, and None while it runs."""

    def __init__(self, name, command, log, env=None, folder=None):
        self.name, self.command, self.log = name, [str(part) for part in command], log
        self.env, self.folder = dict(os.environ, **(env or {})), folder
        self.status, self.process, self.seconds, self._started = NOT_STARTED, None, 0.0, None

    def start(self):
        self._started = time.monotonic()
        with open(self.log, 'w') as log:
            try:
                # A session of its own, so that what it starts ends with it.
                self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                                env=self.env, cwd=self.folder, start_new_session=True)
                self.status = None
            except OSError as error:
                log.write(f'{self.command[0]}: {error.strerror}\n')
                self.status = 127

    def done(self):
        if self.status is None and self.process.poll() is not None:
            self._end(self.process.returncode)
        return self.status is not None

    def stop(self, status=TIME_UP):
        """Ends it and what it started, if it still runs."""
        if self.done():
            return
        for number, patience in ((signal.SIGTERM, 2), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
            break
        self._end(status)

    def _end(self, status):
        self.status, self.seconds = status, time.monotonic() - self._started
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def text(self):
        try:
            with open(self.log, errors='replace') as log:
                return log.read()
        except FileNotFoundError:
            return ''

    def tail(self, lines=40):
        return '\n'.join(self.text().splitlines()[-lines:])


def run(jobs, deadline, at_once=1, done=lambda job: None, meanwhile=lambda: None):
    """Runs jobs, so many at a time; `done` is called as each ends or is ended by the deadline, and for what never started."""
    waiting, running = collections.deque(jobs), []
    try:
        while (waiting or running) and deadline.left() > 0:
            while waiting and len(running) < at_once:
                running.append(waiting.popleft())
                running[-1].start()
            for job in [job for job in running if job.done()]:
                running.remove(job)
                done(job)
            meanwhile()
            pause()
        for job in running:
            job.stop()
        for job in running + list(waiting):
            done(job)
        running = []
    finally:
        for job in running:
            job.stop()
    return jobs
