"""Where the files of MNIST and CIFAR-10 are in a folder of data: mnist/ with the four idx files, gzip or not, and CIFAR-10 as a
folder or an archive (cifar*10*) of any form that convert-cifar takes."""
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
    """The folder of the images, which an archive is unpacked into `folder` for."""
    found = _first(f'{data}/cifar*10', f'{data}/cifar*10[-.]*')
    if os.path.isdir(found):
        return found
    with tarfile.open(found) as archive:
        archive.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    return folder
