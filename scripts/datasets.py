"""Where the files of MNIST, CIFAR-10 and CIFAR-100 are in a folder of data: mnist/ with the four idx files, gzip or not, and CIFAR
as a folder or an archive (cifar*10*, cifar*100*) of any form that convert-cifar takes."""
import glob
import os
import tarfile


class Absent(Exception):
    """What the folder of data lacks."""


def _first(*patterns):
    found = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    if not found:
        raise Absent(f'there is no {" and no ".join(patterns)}')
    return found[0]


def mnist(data):
    """The files of images and of labels, by part: train and test."""
    return {part: tuple(_first(f'{data}/mnist/{name}-{what}-ubyte*') for what in ('images-idx3', 'labels-idx1'))
            for part, name in (('train', 'train'), ('test', 't10k'))}


def cifar10(data, folder):
    """The folder of CIFAR-10's images, which an archive is unpacked into `folder` for."""
    return _cifar(data, folder, 10)


def cifar100(data, folder):
    """The same of CIFAR-100."""
    return _cifar(data, folder, 100)


def _cifar(data, folder, classes):
    found = _first(f'{data}/cifar*{classes}', f'{data}/cifar*{classes}[-.]*')
    if os.path.isdir(found):
        return found
    with tarfile.open(found) as archive:
        archive.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    return folder
