"""The nets of scripts/bench, for stages that want them on their own."""
import os
import sys

from . import machine

sys.path.insert(0, os.path.join(machine.SCRIPTS, 'benchmarks'))
from models import without_files
