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


def read(name):
    """The net's prototxt, its data those of list.txt."""
    at = os.path.join('examples', 'quickstart', 'net.prototxt') if name == 'lgm' else os.path.join('scripts', 'gpucheck', 'nets', f'{name}.prototxt')
    with open(os.path.join(machine.ROOT, at)) as f:
        text = f.read()
    return re.sub('batch_size: .*? ', 'batch_size: 20 ', re.sub('source: "[^"]*"', 'source: "list.txt"', text)) if name == 'lgm' else text


# Each with a learning rate at which rounding does not grow within the iterations compared.
NETS = {'lgm': 0.001, 'residual': 0.05, 'wide': 0.05}


def draw(folder, binary):
    """The glyphs, into a folder."""
    command = [binary, 'make-glyphs', '-out', folder, '-train', str(GLYPHS), '-test', '1']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)


def write(folder, name, iterations, data):
    """A net and its solver, ready to be trained in that folder, on the glyphs of another."""
    os.makedirs(folder)
    solver = SOLVER.format(iterations=iterations, rate=NETS[name])
    texts = {'net.prototxt': read(name), 'solver.prototxt': solver, 'list.txt': f'{data}/train.h5\n'}
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
            # Their data is beside them.
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
