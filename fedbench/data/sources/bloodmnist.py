"""BloodMNIST of MedMNIST v2: 17,092 colour images of blood cells in 8 classes."""

from fedbench.data.sources._medmnist import MedMnist


class BloodMnist(MedMnist):
    """Sizes 28, 64, 128, 224."""

    flag = "bloodmnist"
