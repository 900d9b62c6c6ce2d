"""The nets of scripts/bench, for stages that want them on their own."""
import os
import re
import sys

from . import machine

sys.path.insert(0, os.path.join(machine.SCRIPTS, 'benchmarks'))
import nets
from nets import Net


def without_files(name, batch):
    """A net whose data is a constant, so that no file is read."""
    shapes = [(batch, *nets.SHAPES[name]), (batch,)]
    shape = ' '.join(f'shape {{ {" ".join(f"dim: {extent}" for extent in extents)} }}' for extents in shapes)
    fillers = ' '.join(f'data_filler {{ type: "constant" value: {value} }}' for value in (0.5, 0))
    text, count = re.subn(r'type: "HDF5Data"(.*?)hdf5_data_param {[^}]*}', rf'type: "DummyData"\1dummy_data_param {{ {shape} {fillers} }}',
                          nets.build(name, batch).prototxt(), count=1)
    if not count:
        raise RuntimeError(f'the benchmark net {name} reads no HDF5 data')
    return text
