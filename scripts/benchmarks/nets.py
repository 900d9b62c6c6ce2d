"""Prototxt of the benchmark nets, written from their architecture tables.

simple   the paper's CIFAR-100 net: 3x3 Convolution-BatchNorm-Scale-ReLU, 5 of 96 channels, 4 of 192, 4 of 384, a 2x2 max
         pool between stages, global average, the L-GM head (ClassDistance); Nesterov
lenet    Caffe's LeNet for MNIST
alexnet  CaffeNet (pooling before normalisation), 227x227, 1000 classes
resnet18 ResNet-18, 224x224, 1000 classes
resnet50 ResNet-50 with the stride in a block's 3x3 convolution, 224x224, 1000 classes
resnet20 ResNet-20 for CIFAR-10, shortcuts projected by 1x1 convolutions where the shape changes
resnet20_pad  the same, shortcuts subsampled and padded with zero channels there
"""

SHAPES = {'simple': (3, 32, 32), 'lenet': (1, 28, 28), 'alexnet': (3, 227, 227), 'resnet18': (3, 224, 224), 'resnet50': (3, 224, 224),
          'resnet20': (3, 32, 32), 'resnet20_pad': (3, 32, 32)}
CLASSES = {'simple': 100, 'lenet': 10, 'alexnet': 1000, 'resnet18': 1000, 'resnet50': 1000, 'resnet20': 10, 'resnet20_pad': 10}


class Net:
    """A prototxt in the making; `names` are those of its layers by type, in order."""

    def __init__(self, name, batch):
        self.name, self.batch, self.names = name, batch, {}
        self.text = [f'name: "{name}"']
        self.layer('data', 'HDF5Data', [], ['data', 'label'], f'hdf5_data_param {{ source: "list.txt" batch_size: {batch} }}')

    def layer(self, name, kind, bottoms, tops, body=''):
        blobs = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
        self.text.append(f'layer {{ name: "{name}" type: "{kind}" {" ".join(blobs)} {body} }}')
        self.names.setdefault(kind, []).append(name)
        return tops[0]

    def conv(self, name, bottom, outputs, kernel, stride=1, pad=0, group=1, bias=True):
        settings = f'num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} group: {group}'
        bias_term = '' if bias else 'bias_term: false'
        return self.layer(name, 'Convolution', [bottom], [name],
                          f'convolution_param {{ {settings} {bias_term} weight_filler {{ type: "msra" }} }}')

    def norm(self, blob, relu=True):
        self.layer(f'{blob}/bn', 'BatchNorm', [blob], [blob])
        self.layer(f'{blob}/scale', 'Scale', [blob], [blob], 'scale_param { bias_term: true }')
        return self.relu(blob) if relu else blob

    def relu(self, blob):
        return self.layer(f'{blob}/relu', 'ReLU', [blob], [blob])

    def pool(self, name, bottom, how, kernel=2, stride=2, more=''):
        size = f'kernel_size: {kernel} stride: {stride}' if kernel else 'global_pooling: true'
        return self.layer(name, 'Pooling', [bottom], [name], f'pooling_param {{ pool: {how} {size} {more} }}')

    def full(self, name, bottom, outputs):
        return self.layer(name, 'InnerProduct', [bottom], [name],
                          f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }}')

    def loss(self, logits):
        self.layer('loss', 'SoftmaxWithLoss', [logits, 'label'], ['loss'])
        return self

    def prototxt(self):
        return '\n'.join(self.text) + '\n'


def simple(batch):
    net, blob = Net('simple', batch), 'data'
    for stage, (width, depth) in enumerate(((96, 5), (192, 4), (384, 4)), 1):
        for i in range(1, depth + 1):
            blob = net.norm(net.conv(f'conv{stage}_{i}', blob, width, 3, pad=1, bias=False))
        blob = net.pool(f'pool{stage}', blob, 'MAX') if stage < 3 else net.pool('average', blob, 'AVE', kernel=0)
    head = 'num_output: 100 weight_filler { type: "msra" } bias_filler { value: 1 } center_coef: 0.1 '
    head += 'margin_mul { policy: STEPUP value: 0.1 step: 5000 gamma: 2 max: 0.3 }'
    rates = 'param { lr_mult: 2 } param { lr_mult: 0 decay_mult: 0 }'
    return net.loss(net.layer('head', 'ClassDistance', [blob, 'label'], ['logits'], f'{rates} class_distance_param {{ {head} }}'))


def lenet(batch):
    net = Net('lenet', batch)
    blob = net.pool('pool1', net.conv('conv1', 'data', 20, 5), 'MAX')
    blob = net.pool('pool2', net.conv('conv2', blob, 50, 5), 'MAX')
    return net.loss(net.full('ip2', net.relu(net.full('ip1', blob, 500)), 10))


def alexnet(batch):
    net = Net('alexnet', batch)
    lrn = lambda name, blob: net.layer(name, 'LRN', [blob], [name], 'lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }')
    blob = lrn('norm1', net.pool('pool1', net.relu(net.conv('conv1', 'data', 96, 11, stride=4)), 'MAX', 3))
    blob = lrn('norm2', net.pool('pool2', net.relu(net.conv('conv2', blob, 256, 5, pad=2, group=2)), 'MAX', 3))
    blob = net.relu(net.conv('conv3', blob, 384, 3, pad=1))
    blob = net.relu(net.conv('conv4', blob, 384, 3, pad=1, group=2))
    blob = net.pool('pool5', net.relu(net.conv('conv5', blob, 256, 3, pad=1, group=2)), 'MAX', 3)
    for name in ('fc6', 'fc7'):
        blob = net.relu(net.full(name, blob, 4096))
        net.layer(f'{name}/drop', 'Dropout', [blob], [blob], 'dropout_param { dropout_ratio: 0.5 }')
    return net.loss(net.full('fc8', blob, 1000))


def resnet18(batch):
    net = Net('resnet18', batch)
    blob = net.norm(net.conv('conv1', 'data', 64, 7, stride=2, pad=3, bias=False))
    blob = net.pool('pool1', blob, 'MAX', 3, 2, 'pad: 1 round_mode: FLOOR')
    width = 64
    for stage, outputs in enumerate((64, 128, 256, 512), 1):
        for block in (1, 2):
            stride = 2 if stage > 1 and block == 1 else 1
            at = f'res{stage}_{block}'
            inner = net.norm(net.conv(f'{at}/a', blob, outputs, 3, stride, 1, bias=False))
            inner = net.norm(net.conv(f'{at}/b', inner, outputs, 3, 1, 1, bias=False), relu=False)
            if stride != 1 or width != outputs:
                blob = net.norm(net.conv(f'{at}/project', blob, outputs, 1, stride, bias=False), relu=False)
            blob, width = net.relu(net.layer(f'{at}/sum', 'Eltwise', [inner, blob], [at])), outputs
    return net.loss(net.full('fc', net.pool('average', blob, 'AVE', kernel=0), 1000))


def resnet50(batch):
    net = Net('resnet50', batch)
    blob = net.norm(net.conv('conv1', 'data', 64, 7, stride=2, pad=3, bias=False))
    blob = net.pool('pool1', blob, 'MAX', 3, 2, 'pad: 1 round_mode: FLOOR')
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(1, depth + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            at = f'res{stage}_{block}'
            inner = net.norm(net.conv(f'{at}/a', blob, width, 1, bias=False))
            inner = net.norm(net.conv(f'{at}/b', inner, width, 3, stride, 1, bias=False))
            inner = net.norm(net.conv(f'{at}/c', inner, 4 * width, 1, bias=False), relu=False)
            if block == 1:
                blob = net.norm(net.conv(f'{at}/project', blob, 4 * width, 1, stride, bias=False), relu=False)
            blob = net.relu(net.layer(f'{at}/sum', 'Eltwise', [inner, blob], [at]))
    return net.loss(net.full('fc', net.pool('average', blob, 'AVE', kernel=0), 1000))


def resnet20(batch, pad=False):
    net, blob, width, size = Net("resnet20_pad" if pad else "resnet20", batch), "data", 16, 32
    blob = net.norm(net.conv('conv1', blob, width, 3, pad=1, bias=False))
    for stage, outputs in enumerate((16, 32, 64), 1):
        for block in (1, 2, 3):
            stride = 2 if stage > 1 and block == 1 else 1
            at, size = f'res{stage}_{block}', size // stride
            inner = net.norm(net.conv(f'{at}/a', blob, outputs, 3, stride, 1, bias=False))
            inner = net.norm(net.conv(f'{at}/b', inner, outputs, 3, 1, 1, bias=False), relu=False)
            if stride != 1 and pad:
                every_other = net.pool(f'{at}/subsampled', blob, 'AVE', 1, 2, 'round_mode: FLOOR')
                shape = f'shape {{ dim: {batch} dim: {outputs - width} dim: {size} dim: {size} }}'
                zeros = net.layer(f'{at}/zeros', 'DummyData', [], [f'{at}/zeros'], f'dummy_data_param {{ {shape} }}')
                blob = net.layer(f'{at}/padded', 'Concat', [every_other, zeros], [f'{at}/padded'])
            elif stride != 1:
                blob = net.norm(net.conv(f'{at}/project', blob, outputs, 1, stride, bias=False), relu=False)
            blob, width = net.relu(net.layer(f'{at}/sum', 'Eltwise', [inner, blob], [at])), outputs
    return net.loss(net.full('fc', net.pool('average', blob, 'AVE', kernel=0), 10))


def resnet20_pad(batch):
    return resnet20(batch, pad=True)


# Of ResNet-50 on few random images two layouts of PyTorch part by half a hundredth within five iterations at 0.001.
RATES = {'resnet50': 0.00001}
MOMENTUM, DECAY = 0.9, 0.0005


def rate(name):
    return RATES.get(name, 0.001)


def solver(name, more='', base_rate=None):
    kind = 'Nesterov' if name == 'simple' else 'SGD'
    return (f'net: "net.prototxt"\ntype: "{kind}"\nbase_lr: {base_rate or rate(name)}\nlr_policy: "fixed"\nmomentum: {MOMENTUM}\n'
            f'weight_decay: {DECAY}\nrandom_seed: 1\n{more or "max_iter: 1000"}\n')


def build(name, batch, dropout=True):
    """The net; without dropout, whose masks two programs draw differently, if asked."""
    net = globals()[name](batch)
    if not dropout:
        net.text = [line.replace('dropout_ratio: 0.5', 'dropout_ratio: 0') for line in net.text]
    return net
