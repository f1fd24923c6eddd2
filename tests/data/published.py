"""Tiny data sets in the formats in which the real ones are published. Pixel values follow from `noise(seed)`."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cifar10(root: Path) -> NDArray[np.uint8]:
    """Six files of ten records: one label byte, then red, green and blue rows. The images of the training part."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    images = noise(6, 10, 3, 32, 32)
    for name, part in zip(files, images, strict=True):
        records = [bytes([label]) + image.tobytes() for label, image in enumerate(part)]
        (folder / name).write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join(f"class{label}" for label in range(10)) + "\n\n")
    return images[:5].reshape(-1, 3, 32, 32)


def cifar100(root: Path) -> NDArray[np.uint8]:
    """Records of a coarse label, a fine label and the pixels."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    images = noise(100, 3, 32, 32)
    for name in ("train.bin", "test.bin"):
        records = [bytes([fine // 5, fine]) + image.tobytes() for fine, image in enumerate(images)]
        (folder / name).write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("".join(f"fine{label}\n" for label in range(100)))
    return images


def stl10(root: Path) -> NDArray[np.uint8]:
    """Pixels column by column, labels from 1. The unlabelled images."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, count in (("unlabeled", 7), ("train", 10), ("test", 5)):
        noise(count, 3, 96, 96, seed=count).transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")
    for name, count in (("train", 10), ("test", 5)):
        (np.arange(count, dtype=np.uint8) + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("".join(f"class{label}\n" for label in range(10)))
    return noise(7, 3, 96, 96, seed=7)


def fashion_mnist(root: Path) -> NDArray[np.uint8]:
    """Four idx.gz files. The training images."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        idx(folder / f"{name}-images-idx3-ubyte.gz", noise(count, 28, 28, seed=count))
        idx(folder / f"{name}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return noise(30, 28, 28, seed=30)


def idx(file: Path, array: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(header + array.tobytes()))


def picture(file: Path, colour: tuple[int, ...] | int, size: tuple[int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(file, "JPEG")


def caltech101(root: Path) -> None:
    """Folders of classes, one of them the background; pictures of all sizes, some of them grey."""
    folder = root / "caltech101" / "101_ObjectCategories"
    for number, name in enumerate(("BACKGROUND_Google", "Faces", "ant")):
        for index in range(5):
            colour = 90 if index == 0 else (20 * number, 90, 200)
            picture(folder / name / f"image_{index + 1:04d}.jpg", colour, (30 + index, 20))


def tiny_imagenet(root: Path) -> None:
    """`train/CLASS/images` with boxes beside them, `val/images` with annotations, `test` without labels."""
    folder = root / "tiny-imagenet-200"
    for name, colour in (("n01443537", (200, 30, 30)), ("n02124075", (30, 200, 30))):
        for index in range(3):
            picture(folder / "train" / name / "images" / f"{name}_{index}.JPEG", colour, (64, 64))
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    for index, colour in enumerate(((30, 200, 30), (200, 30, 30), (30, 200, 30))):
        picture(folder / "val" / "images" / f"val_{index}.JPEG", colour, (64, 64))
        picture(folder / "test" / "images" / f"test_{index}.JPEG", colour, (64, 64))
    rows = ("val_0.JPEG\tn02124075", "val_1.JPEG\tn01443537", "val_2.JPEG\tn02124075")
    (folder / "val" / "val_annotations.txt").write_text("".join(f"{row}\t0\t32\t44\t62\n" for row in rows))
    (folder / "words.txt").write_text("n01443537\tgoldfish\n")


def coco(root: Path) -> None:
    """`train2017` and, beside it, what is not read."""
    for index, colour in enumerate(((200, 30, 30), 90, (30, 30, 200))):
        picture(root / "train2017" / f"{index:012d}.jpg", colour, (64, 48 + index))
    picture(root / "val2017" / "000000000009.jpg", 10, (64, 48))
    (root / "annotations").mkdir()


def medmnist(file: Path, size: int, channels: int, num_classes: int) -> None:
    """`{train,val,test}_{images,labels}`; labels are (N, 1) of uint8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, (name, count) in enumerate((("train", 3 * num_classes), ("val", num_classes), ("test", 5))):
        shape = (count, size, size, 3) if channels == 3 else (count, size, size)
        arrays[f"{name}_images"] = noise(*shape, seed=seed)
        arrays[f"{name}_labels"] = (np.arange(count) % num_classes).astype(np.uint8)[:, None]
    np.savez_compressed(file, **arrays)
