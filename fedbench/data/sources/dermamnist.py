"""DermaMNIST of MedMNIST v2: 10,015 colour images of pigmented skin lesions in 7 classes."""

from fedbench.data.sources._medmnist import MedMnist


class DermaMnist(MedMnist):
    """Sizes 28, 64, 128, 224."""

    flag = "dermamnist"
