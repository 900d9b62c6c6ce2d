"""Small nets of every kind of layer that a first look at a device is about, on digit glyphs.

lgm       examples/quickstart: convolutions with BatchNorm, two features, the L-GM loss
residual  sums with and without a projection, and convolutions that are pointwise, depthwise, grouped and with a bias
wide      two convolutions so large that TF32 and NHWC are taken for them
"""
import os
import re
import shutil
import subprocess

from . import machine
from .benchmarks import Net

GLYPHS = 512
RECORDED = ('sgd_step', 'bn_residual_exp', 'adam')
SOLVER = """net: "net.prototxt"
type: "Nesterov"
base_lr: {rate}
lr_policy: "fixed"
momentum: 0.9
weight_decay: 0.0005
display: 1
max_iter: {iterations}
random_seed: 1
snapshot_after_train: false
"""


def glyphs(net, batch):
    """The net's data layer, of glyphs between 0 and 1."""
    source = f'source: "list.txt" batch_size: {batch} scale: 0.00390625'
    net.text = [net.text[0]]
    return net.layer('data', 'HDF5Data', [], ['data', 'label'], f'hdf5_data_param {{ {source} }}')


def lgm():
    with open(os.path.join(machine.ROOT, 'examples', 'quickstart', 'net.prototxt')) as f:
        return re.sub('batch_size: .*? ', 'batch_size: 20 ', re.sub('source: "[^"]*"', 'source: "list.txt"', f.read()))


def residual():
    net = Net('residual', 16)
    blob = net.norm(net.conv('first', glyphs(net, 16), 16, 3, 2, 1, bias=False))
    inner = net.norm(net.conv('plain/a', blob, 16, 3, 1, 1, bias=False))
    inner = net.norm(net.conv('plain/b', inner, 16, 3, 1, 1, bias=False), relu=False)
    blob = net.relu(net.layer('plain/sum', 'Eltwise', [inner, blob], ['plain']))
    inner = net.norm(net.conv('project/a', blob, 32, 3, 2, 1, bias=False))
    inner = net.norm(net.conv('project/b', inner, 32, 3, 1, 1, bias=False), relu=False)
    beside = net.norm(net.conv('project/beside', blob, 32, 1, 2, bias=False), relu=False)
    blob = net.relu(net.layer('project/sum', 'Eltwise', [inner, beside], ['project']))
    blob = net.norm(net.conv('depthwise', blob, 32, 3, 1, 1, group=32, bias=False))
    blob = net.relu(net.conv('pointwise', blob, 64, 1))
    blob = net.relu(net.conv('grouped', blob, 64, 3, 1, 1, group=4))
    return net.loss(net.full('classes', net.pool('average', blob, 'AVE', kernel=0), 10))


def wide():
    net = Net('wide', 8)
    blob = net.norm(net.conv('first', glyphs(net, 8), 64, 3, pad=1, bias=False))
    blob = net.norm(net.conv('second', blob, 64, 3, pad=1, bias=False))
    return net.loss(net.full('classes', net.pool('average', blob, 'AVE', kernel=0), 10))


# Each with a learning rate at which its loss falls.
NETS = {'lgm': (lgm, 0.01), 'residual': (residual, 0.05), 'wide': (wide, 0.05)}


def draw(folder, binary):
    """The glyphs, into a folder."""
    command = [binary, 'make-glyphs', '-out', folder, '-train', str(GLYPHS), '-test', '1']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)


def write(folder, name, iterations, data):
    """A net and its solver, ready to be trained in that folder, on the glyphs of another."""
    os.makedirs(folder)
    net, rate = NETS[name]
    solver = SOLVER.format(iterations=iterations, rate=rate)
    texts = {'net.prototxt': net() if name == 'lgm' else net().prototxt(), 'solver.prototxt': solver, 'list.txt': f'{data}/train.h5\n'}
    for file, text in texts.items():
        with open(os.path.join(folder, file), 'w') as f:
            f.write(text)
    return folder


def small(folder, only=None):
    """Folders of nets to train for two iterations: the first two of these, and recorded ones."""
    data, cases = os.path.join(machine.PACK, 'smoke', 'glyphs'), []
    for name in ('lgm', 'residual'):
        if only is None or name in only:
            cases.append(write(os.path.join(folder, name), name, 2, data))
    recorded = os.path.join(machine.ROOT, 'tests', 'golden', 'train')
    for name in RECORDED:
        if only is None or name in only:
            case = shutil.copytree(os.path.join(recorded, name), os.path.join(folder, name))
            # Their data lies beside them.
            for file in os.listdir(recorded):
                if file.endswith('.h5') and not os.path.exists(os.path.join(folder, file)):
                    shutil.copy(os.path.join(recorded, file), folder)
            at = os.path.join(case, 'solver.prototxt')
            os.chmod(at, 0o644)
            with open(at) as f:
                text = re.sub(r'max_iter: *\d+', 'max_iter: 2', f.read())
            with open(at, 'w') as f:
                f.write(re.sub(r'(test_interval|test_iter|snapshot): *\d+|solver_mode: *CPU', '', text))
            cases.append(case)
    return cases
