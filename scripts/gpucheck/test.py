"""What a check must get right when a machine is slow or taken back: python3 -m gpucheck.test, in scripts/."""
import contextlib
import io
import os
import sys
import tarfile
import tempfile
import time
import unittest

from . import jobs, machine, sanitizer, smoke, tests
from .jobs import NOT_STARTED, TIME_UP, Deadline, Job
from .step import FAILED, MARK, OK, REFUSED, SKIPPED, TIMEOUT, Run, Skip, settled


class Check(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def job(self, name, script):
        return Job(name, ['sh', '-c', script], os.path.join(self.folder, f'{name}.log'))

    def test_jobs_end_by_themselves_or_at_the_deadline_with_all_they_started(self):
        quick, bad, slow = self.job('quick', 'echo said'), self.job('bad', 'exit 3'), self.job('slow', 'sleep 60 & echo $!; wait')
        never, ended = self.job('never', 'true'), []
        begun = time.monotonic()
        jobs.run([quick, bad, slow, never], Deadline(1), at_once=3, done=lambda job: ended.append(job.name) if job is not never else None)
        self.assertEqual([job.status for job in (quick, bad, slow)], [0, 3, TIME_UP])
        self.assertEqual((quick.text(), sorted(ended), never.status), ('said\n', ['bad', 'quick', 'slow'], 0))
        self.assertLess(time.monotonic() - begun, 5)
        started = int(slow.text())
        time.sleep(0.1)
        # Gone, or not yet asked after by whoever inherited it.
        self.assertIn(') Z ', machine.first_line(f'/proc/{started}/stat') or ') Z ')
        jobs.run([slow := self.job('slow', 'sleep 60'), never := self.job('never', 'true')], Deadline(0.2))
        self.assertEqual([slow.status, never.status], [TIME_UP, NOT_STARTED])
        jobs.run([absent := Job('absent', ['no/such/program'], os.path.join(self.folder, 'absent.log'))], Deadline(5))
        self.assertEqual((absent.status, absent.text()), (127, 'no/such/program: No such file or directory\n'))

    def run_in(self, name, seconds=60):
        return Run(os.path.join(self.folder, name), '0', Deadline(seconds), 'a revision', os.path.join(self.folder, f'{name}.tar.gz'), quiet=True)

    def test_what_is_known_is_in_the_bundle_at_every_moment(self):
        run, quiet = self.run_in('out'), contextlib.redirect_stdout(io.StringIO())

        def broken(step):
            step.say('so far')
            step.bundle()
            with tarfile.open(run.bundle_file) as tar:
                self.assertIn(b'so far', tar.extractfile('gpu-check/stage-broken.log').read())
            raise ValueError('a fault')

        def absent(step):
            raise Skip('it is absent')

        def taken(step):
            sys.exit('ended')
        with quiet:
            self.assertEqual([run.run(stage.__name__, 30, stage) for stage in (broken, absent)], [False, True])
            with self.assertRaises(SystemExit):
                run.run('taken', 30, taken)
        with tarfile.open(run.bundle_file) as tar:
            table = tar.extractfile('gpu-check/table.txt').read().decode().splitlines()
            self.assertNotIn('gpu-check/work', tar.getnames())
            self.assertEqual(tar.extractfile(f'gpu-check/{MARK}').read(), b'a revision\n')
        self.assertEqual([line.split()[:2] for line in table], [['broken', FAILED], ['absent', SKIPPED], ['taken', FAILED]])
        self.assertTrue(table[0].endswith('ValueError: a fault') and table[2].endswith('ended from outside'))
        self.assertFalse(settled(run.results))

    def test_a_folder_of_others_is_not_emptied_and_no_stage_begins_late(self):
        os.makedirs(os.path.join(self.folder, 'theirs', 'work'))
        with self.assertRaises(SystemExit):
            self.run_in('theirs')
        self.assertEqual(os.listdir(os.path.join(self.folder, 'theirs')), ['work'])
        run = self.run_in('late', seconds=0)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertTrue(run.run('stage', 30, lambda step: self.fail('it began')))
        self.assertEqual(run.results, {'stage': SKIPPED})

    def test_tests_without_a_result_are_named(self):
        log = 'running 4 tests\ntest a::b ... ok\ntest c - should panic ... ok\ntest d ... said beside it\nFAILED\ntest e ... ignored, slow\ntest f ... '
        self.assertEqual(tests.results(log), ({'a::b': 'ok', 'c': 'ok', 'd': 'FAILED', 'e': 'ignored'}, 'f'))
        script = 'case "$*" in *--list*) printf "a: test\\nb: test\\n" ;; *) echo "test a ... ok"; sleep 60 ;; esac'
        binary = os.path.join(self.folder, 'binary')
        with open(binary, 'w') as f:
            f.write(f'#!/bin/sh\n{script}\n')
        os.chmod(binary, 0o755)
        jobs.run([job := Job('binary', [binary], os.path.join(self.folder, 'log'))], Deadline(0.5))
        self.assertEqual((job.status, tests.unfinished(job)), (TIME_UP, ['b']))

    def test_a_tool_that_refuses_the_device_finds_no_fault(self):
        def judged(status, text):
            job = self.job('tool', f'printf "%s" "{text}"; exit {status}')
            jobs.run([job], Deadline(5))
            return sanitizer.judge(job)
        self.assertEqual(judged(0, '========= ERROR SUMMARY: 0 errors'), OK)
        self.assertEqual(judged(9, '========= ERROR SUMMARY: 2 errors'), FAILED)
        self.assertEqual(judged(1, '========= Error: Device not supported\n========= ERROR SUMMARY: 1 error'), REFUSED)
        self.assertEqual(judged(1, '========= Internal Sanitizer Error: no'), REFUSED)
        self.assertEqual(judged(9, '========= Internal Sanitizer Error: no\n========= ERROR SUMMARY: 3 errors'), FAILED)
        self.assertEqual(judged(1, 'lgm-caffe: error: a label'), FAILED)
        late = self.job('late', 'true')
        self.assertEqual(sanitizer.judge(late), TIMEOUT)

    def test_losses_are_read_from_the_log(self):
        log = ('I1 Iteration 0 (0 iter/s, 1s/1 iters), loss = 2.5\nI1 Iteration 0, lr = 0.1\n'
               'I1 Iteration 1 (3 iter/s, 1s/1 iters), loss = nan\nI1 Iteration 2, loss = 2\n')
        self.assertEqual(str(smoke.losses(log)), '[2.5, nan]')


if __name__ == '__main__':
    unittest.main()
