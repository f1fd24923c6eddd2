"""PathMNIST of MedMNIST v2: 107,180 colour images of colorectal tissue in 9 classes."""

from fedbench.data.sources._medmnist import MedMnist


class PathMnist(MedMnist):
    """Sizes 28, 64, 128, 224."""

    flag = "pathmnist"
