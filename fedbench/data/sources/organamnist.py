"""OrganAMNIST of MedMNIST v2: 58,830 grey slices of abdominal CT in 11 classes."""

from fedbench.data.sources._medmnist import MedMnist


class OrganAMnist(MedMnist):
    """Sizes 28, 64, 128, 224."""

    flag = "organamnist"
