"""CIFAR-10: 60,000 images of 32 x 32 pixels in 10 classes (Krizhevsky 2009)."""

from fedbench.data.sources._cifar import Cifar


class Cifar10(Cifar):
    """Its binary version: `cifar-10-batches-bin`."""

    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    md5 = "c32a1d4ab5d03f1284b67883e8d87530"
    folder = "cifar-10-batches-bin"
    train_files = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    test_file = "test_batch.bin"
    names_file = "batches.meta.txt"
    label_bytes = 1
