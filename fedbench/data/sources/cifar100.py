"""CIFAR-100: 60,000 images of 32 x 32 pixels in 100 classes (Krizhevsky 2009)."""

from fedbench.data.sources._cifar import Cifar


class Cifar100(Cifar):
    """Its binary version: `cifar-100-binary`; the classes are the fine ones."""

    url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    md5 = "03b5dce01913d631647c71ecec9e9cb8"
    folder = "cifar-100-binary"
    train_files = ("train.bin",)
    test_file = "test.bin"
    names_file = "fine_label_names.txt"
    label_bytes = 2  # coarse, fine
