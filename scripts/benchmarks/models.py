"""The nets of models/, ready for scripts/bench: in a batch of any size, with HDF5 data, without what a comparison cannot share."""
import glob
import os
import re

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'models')
NAMES = sorted(os.path.basename(os.path.dirname(file)) for file in glob.glob(f'{FOLDER}/*/train_val.prototxt'))

# Of ResNet-50 on few random images two layouts of PyTorch part by half a hundredth within five iterations at 0.001.
RATES = {'resnet50': 0.00001}
MOMENTUM, DECAY = 0.9, 0.0005


def read(name, file):
    with open(f'{FOLDER}/{name}/{file}.prototxt') as f:
        return f.read()


def shape(name):
    """Channels, height and width of the images."""
    found = re.search(r'type: "Input".*? shape { dim: 1 dim: (\d+) dim: (\d+) dim: (\d+) }', read(name, 'deploy'))
    return tuple(map(int, found.groups()))


def classes(name):
    return int(re.findall(r'num_output: (\d+)', read(name, 'deploy'))[-1])


def rate(name):
    return RATES.get(name, 0.001)


def train(name, batch, data=None, dropout=True):
    """The net that is trained, its data a layer of HDF5Data in list.txt unless given; all rates and decays of weights and biases
    alike, as an optimizer has them, and no accuracy. Without dropout, whose masks two programs draw differently, if asked."""
    text = read(name, 'train_val')
    data = data or f'layer {{ name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param {{ source: "list.txt" batch_size: {batch} }} }}'
    text, sources = re.subn(r'(?:^layer {\n  name: "data"\n.*?^}\n)+', lambda _: data + '\n', text, count=1, flags=re.MULTILINE | re.DOTALL)
    if not sources:
        raise RuntimeError(f'models/{name}/train_val.prototxt has no layer "data" that can be replaced')
    text = re.sub(r'^  param { lr_mult: (1|2|1 decay_mult: [01]|2 decay_mult: 0) }\n', '', text, flags=re.MULTILINE)
    text = re.sub('^layer { name: "accuracy" .*\n', '', text, flags=re.MULTILINE)
    zeros = r'(type: "DummyData"\n.*\n  include { phase: TRAIN }\n  dummy_data_param { shape { dim: )\d+'
    text = re.sub(zeros, rf'\g<1>{batch}', text)
    return text if dropout else re.sub(r'dropout_ratio: [\d.]+', 'dropout_ratio: 0', text)


def without_files(name, batch):
    """The net that is trained, on constant data, so that no file is read."""
    shapes = ' '.join(f'shape {{ {" ".join(f"dim: {n}" for n in extents)} }}' for extents in ((batch, *shape(name)), (batch,)))
    fillers = ' '.join(f'data_filler {{ type: "constant" value: {value} }}' for value in (0.5, 0))
    return train(name, batch, f'layer {{ name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {{ {shapes} {fillers} }} }}')


def layers(name):
    """The names of the net's layers by their type, in order."""
    found = {}
    for layer, kind in re.findall(r'name: "([^"]*)"\s+type: "([^"]*)"', train(name, 1)):
        found.setdefault(kind, []).append(layer)
    return found


def solver(name, more='', base_rate=None):
    kind = 'Nesterov' if 'Nesterov' in read(name, 'solver') else 'SGD'
    return (f'net: "net.prototxt"\ntype: "{kind}"\nbase_lr: {base_rate or rate(name)}\nlr_policy: "fixed"\nmomentum: {MOMENTUM}\n'
            f'weight_decay: {DECAY}\nrandom_seed: 1\n{more or "max_iter: 1000"}\n')
