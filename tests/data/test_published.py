"""Each published set is read from its true format, split as it was published, and downloaded only if allowed."""

import gzip
import hashlib
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import medmnist
import numpy as np
import published
import pytest
import torch

from fedbench.config.schema import DataConfig, EncoderConfig
from fedbench.data import Dataset, data_source, load_dataset
from fedbench.data.dataset import _load
from fedbench.data.images import convert
from fedbench.data.sources import cifar10, fashion_mnist, stl10
from fedbench.errors import UserError
from fedbench.plugins import builtin_files


def load(
    name: str, root: Path, size: int = 32, channels: int = 3, edition: int | None = None, download: bool = False
) -> Dataset:
    encoder = EncoderConfig.model_validate({"image_size": size, "patch_size": size, "in_channels": channels})
    return load_dataset(DataConfig(name=name, path=str(root), size=edition, download=download), encoder)


@pytest.mark.parametrize("where", [".", "cifar-10-batches-bin"])
def test_cifar10_is_its_binary_version_in_the_order_of_its_files(tmp_path, where):
    images = published.cifar10(tmp_path)
    data = load("cifar10", tmp_path / where)
    assert data.train_images.tolist() == images.tolist()
    assert data.train_labels.tolist() == list(range(10)) * 5
    assert (len(data.test_labels), data.class_names[3], len(data.class_names)) == (10, "class3", 10)
    assert data.downstream is None


def test_cifar100_has_the_fine_labels(tmp_path):
    images = published.cifar100(tmp_path)
    data = load("cifar100", tmp_path)
    assert data.train_images.tolist() == images.tolist()
    assert data.train_labels.tolist() == data.test_labels.tolist() == list(range(100))
    assert data.class_names[42] == "fine42"


def test_stl10_gives_clients_the_unlabelled_images_and_a_probe_the_labelled_ones(tmp_path):
    images = published.stl10(tmp_path)
    data = load("stl10", tmp_path, size=96)
    assert data.train_images.tolist() == images.tolist()
    assert data.train_labels.tolist() == [-1] * 7
    assert data.probe_part.images.tolist() == published.noise(10, 3, 96, 96, seed=10).tolist()
    assert data.probe_part.labels.tolist() == list(range(10))
    assert data.test_labels.tolist() == list(range(5))


def test_fashion_mnist_is_read_from_its_idx_files(tmp_path):
    images = published.fashion_mnist(tmp_path)
    data = load("fashion_mnist", tmp_path, size=28, channels=1)
    assert data.train_images[:, 0].tolist() == images.tolist()
    assert data.train_labels.tolist() == list(range(10)) * 3
    assert (len(data.test_labels), data.class_names[9]) == (10, "Ankle boot")


def test_caltech101_leaves_the_background_out_and_converts_grey_images(tmp_path):
    published.caltech101(tmp_path)
    data = load("caltech101", tmp_path)
    assert data.class_names == ("Faces", "ant")
    assert (len(data.train_labels), data.test_labels.tolist()) == (8, [0, 1])
    means = torch.cat([data.train_images, data.test_images]).float().mean(dim=(2, 3))
    assert (means - 90).abs().max(dim=1).values.lt(3).sum() == 2  # the grey ones, one of each class


def test_tiny_imagenet_is_scored_on_its_annotated_validation_part(tmp_path):
    published.tiny_imagenet(tmp_path)
    data = load("tiny_imagenet", tmp_path)
    assert data.class_names == ("n01443537", "n02124075")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [1, 0, 1]
    reddish = data.test_images.float().mean(dim=(2, 3)).argmax(dim=1)  # class 0 is red, class 1 green
    assert reddish.tolist() == [1, 0, 1]


def test_coco_is_a_pool_of_images_without_labels(tmp_path):
    published.coco(tmp_path)
    data = load("coco", tmp_path)
    assert data.train_images.shape == (3, 3, 32, 32)
    assert data.train_labels.tolist() == [-1] * 3
    assert (data.class_names, len(data.test_labels)) == ((), 0)
    assert data.train_names[0] == "train2017/000000000000.jpg"


MEDMNIST = [("pathmnist", 3, 9), ("bloodmnist", 3, 8), ("dermamnist", 3, 7), ("organamnist", 1, 11)]


@pytest.mark.parametrize(("name", "channels", "num_classes"), MEDMNIST)
def test_medmnist_trains_on_train_probes_on_validation_and_scores_on_test(tmp_path, name, channels, num_classes):
    published.medmnist(tmp_path / f"{name}.npz", 28, channels, num_classes)
    data = load(name, tmp_path, size=28, channels=channels)
    counts = len(data.train_labels), len(data.probe_part.labels), len(data.test_labels)
    assert counts == (3 * num_classes, num_classes, 5)
    with np.load(tmp_path / f"{name}.npz") as arrays:
        expected = arrays["val_images"].reshape(num_classes, 28, 28, channels).transpose(0, 3, 1, 2)
    assert data.probe_part.images.tolist() == expected.tolist()
    assert len(data.class_names) == num_classes


@pytest.mark.parametrize(
    ("image_size", "asked", "read"), [(32, None, 28), (64, None, 64), (96, None, 128), (32, 64, 64)]
)
def test_medmnist_is_read_in_the_size_asked_for_or_else_the_nearest(tmp_path, image_size, asked, read):
    suffix = "" if read == 28 else f"_{read}"
    published.medmnist(tmp_path / f"bloodmnist{suffix}.npz", read, 3, 8)  # no other size is there
    assert load("bloodmnist", tmp_path, size=image_size, edition=asked).train_images.shape[2] == image_size


def test_without_the_optional_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(UserError, match=r"needs the package medmnist .*pip install 'fedbench\[medmnist\]'"):
        load("pathmnist", tmp_path)


def test_images_of_another_size_are_resized_as_those_of_an_archive_are(tmp_path):
    images = torch.from_numpy(published.cifar10(tmp_path))
    assert torch.equal(load("cifar10", tmp_path, size=8).train_images, convert(images, 8, 3))


def test_the_hash_is_the_same_when_decoded_and_when_read_from_the_cache(tmp_path):
    published.stl10(tmp_path)
    decoded = load("stl10", tmp_path).content_hash
    _load.cache_clear()
    assert load("stl10", tmp_path).content_hash == decoded
    _load.cache_clear()
    (tmp_path / "stl10_binary" / "train_y.bin").write_bytes(bytes([2, 1, *range(3, 11)]))
    assert load("stl10", tmp_path).content_hash != decoded  # what a probe learns from is part of it


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def relabel(file: Path) -> None:
    """A label of 255 in the first byte of a record, or of the labels."""
    file.write_bytes(b"\xff" + file.read_bytes()[1:])


DAMAGED = [
    ("cifar10", "cifar-10-batches-bin/data_batch_3.bin", cut, "30727 bytes are not records of 3073"),
    ("cifar10", "cifar-10-batches-bin/data_batch_3.bin", relabel, "label 255 of 10 classes"),
    ("cifar10", "cifar-10-batches-bin/data_batch_3.bin", Path.unlink, "No such file"),
    ("cifar10", "cifar-10-batches-bin/batches.meta.txt", Path.unlink, "No such file"),
    ("stl10", "stl10_binary/test_X.bin", cut, "bytes are not images of 27648"),
    ("stl10", "stl10_binary/train_y.bin", cut, "must hold 10 labels of 1 to 10"),
    ("stl10", "stl10_binary/train_y.bin", relabel, "must hold 10 labels of 1 to 10"),
    ("stl10", "stl10_binary/train_y.bin", Path.unlink, "No such file"),
    ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz", cut, "cannot read"),
    ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz", relabel, "Not a gzipped file"),
    ("tiny_imagenet", "tiny-imagenet-200/val/images/val_1.JPEG", Path.unlink, "is missing"),
    ("caltech101", "caltech101/101_ObjectCategories/ant/image_0002.jpg", halve, "1 of .* images cannot be read"),
    ("coco", "train2017/000000000001.jpg", halve, "1 of .* images cannot be read"),
]


@pytest.mark.parametrize(("name", "file", "damage", "message"), DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name, file, damage, message):
    getattr(published, name)(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(UserError, match=message) as error:
        load(name, tmp_path)
    assert file in str(error.value)


def test_an_idx_file_of_another_shape_is_named(tmp_path):
    published.fashion_mnist(tmp_path)
    file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    published.idx(file, published.noise(30, 784))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz \(not an idx file of 3 dimensions"):
        load("fashion_mnist", tmp_path)


def test_a_class_without_images_and_an_unknown_class_of_an_annotation_are_named(tmp_path):
    published.tiny_imagenet(tmp_path)
    root = tmp_path / "tiny-imagenet-200"
    (root / "train" / "n00000001").mkdir()
    with pytest.raises(UserError, match=r"no image in .*n00000001"):
        load("tiny_imagenet", tmp_path)
    (root / "train" / "n00000001").rmdir()
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt .*'val_0.JPEG n99 0 0 1 1' names no class"):
        load("tiny_imagenet", tmp_path)


def test_a_wrong_array_of_medmnist_is_named_with_its_file(tmp_path):
    file = tmp_path / "pathmnist.npz"
    published.medmnist(file, 28, 3, 12)  # three classes too many
    with pytest.raises(UserError, match=r"pathmnist\.npz: `train_labels` has 11; allowed: 0 to 8"):
        load("pathmnist", tmp_path)
    with np.load(file) as arrays:
        np.savez(file, **{**arrays, "train_labels": arrays["train_labels"][:, 0]})
    with pytest.raises(UserError, match=r"`train_labels` is uint8 \(36,\); allowed: integers \(N, 1\)"):
        load("pathmnist", tmp_path)


def no_network(*_: object, **__: object) -> None:
    raise AssertionError("a download was begun")


@pytest.mark.parametrize("name", [name for name in builtin_files("datasets") if name != "digits"])
def test_nothing_is_downloaded_unasked_and_the_error_says_what_to_do(tmp_path, monkeypatch, name):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as error:
        load(name, tmp_path / "nowhere")
    text = str(error.value)
    assert str(tmp_path / "nowhere") in text
    assert ("data.download=true" in text) == type(data_source(DataConfig(name=name, path="x"))).downloads
    assert not (tmp_path / "nowhere").exists()


def test_without_a_path_a_published_set_lies_in_a_folder_of_its_name(tmp_path, monkeypatch):
    published.cifar10(tmp_path / "data" / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset(DataConfig(name="cifar10"), EncoderConfig()).train_labels) == 50


@pytest.fixture
def address(tmp_path, monkeypatch) -> Iterator[str]:
    """Of a web server that serves `tmp_path`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def publish(folder: Path, make: Callable[[Path], object], archive: str) -> str:
    """Pack what `make` makes; the archive's checksum."""
    make(folder / "made")
    with tarfile.open(folder / archive, "w:gz") as file:
        for child in (folder / "made").iterdir():
            file.add(child, child.name)
    return md5(folder / archive)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_an_archive_is_downloaded_checked_unpacked_and_not_fetched_again(tmp_path, monkeypatch, address):
    monkeypatch.setattr(cifar10.Cifar10, "md5", publish(tmp_path, published.cifar10, "cifar.tar.gz"))
    monkeypatch.setattr(cifar10.Cifar10, "url", f"{address}/cifar.tar.gz")
    first = load("cifar10", tmp_path / "new", download=True)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    _load.cache_clear()
    assert load("cifar10", tmp_path / "new", download=True).content_hash == first.content_hash


@pytest.mark.parametrize("file", ["cifar.tar.gz", "absent.tar.gz"])
def test_a_download_that_fails_or_has_another_checksum_is_an_error(tmp_path, monkeypatch, address, file):
    publish(tmp_path, published.cifar10, "cifar.tar.gz")
    monkeypatch.setattr(cifar10.Cifar10, "url", f"{address}/{file}")  # with the checksum of the real one
    with pytest.raises(UserError, match=r"data\.download=true: cifar10 could not be downloaded into .*new "):
        load("cifar10", tmp_path / "new", download=True)
    assert not (tmp_path / "new" / "cifar-10-batches-bin").exists()


def outside(name: str, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    return member


@pytest.mark.parametrize(
    "member",
    [outside("../planted"), outside("a/../../planted"), outside("a", "../.."), outside("a", "/etc/passwd")],
)
def test_an_archive_that_leads_outside_plants_nothing(tmp_path, monkeypatch, address, member):
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as file:
        file.addfile(member)
    monkeypatch.setattr(cifar10.Cifar10, "md5", md5(tmp_path / "cifar.tar.gz"))
    monkeypatch.setattr(cifar10.Cifar10, "url", f"{address}/cifar.tar.gz")
    with pytest.raises(UserError, match=r"cifar10 could not be downloaded into .* (outside|an absolute path)"):
        load("cifar10", tmp_path / "new", download=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar.tar.gz", "new"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar.tar.gz"]


@pytest.mark.parametrize("name", ["cifar.zip", "cifar.tar.gz"])
def test_an_archive_of_whatever_damage_is_told_as_such(tmp_path, monkeypatch, address, name):
    entry = bytearray(tarfile.TarInfo("a").tobuf())
    entry[:1] = b"\0"  # no name: tarfile ends in an IndexError, zipfile in a UnicodeDecodeError
    (tmp_path / name).write_bytes(
        gzip.compress(bytes(entry)) if name.endswith("gz") else b"PK\x03\x04" + bytes(99)
    )
    monkeypatch.setattr(cifar10.Cifar10, "md5", md5(tmp_path / name))
    monkeypatch.setattr(cifar10.Cifar10, "url", f"{address}/{name}")
    with pytest.raises(UserError, match=r"data\.(download=true: cifar10 could not|name=cifar10: no test_batch)"):
        load("cifar10", tmp_path / "new", download=True)


@pytest.mark.parametrize("name", ["../../secret.JPEG", "/etc/secret.JPEG", "..", "a/b.JPEG"])
def test_an_annotation_names_files_of_its_own_folder_only(tmp_path, name):
    published.tiny_imagenet(tmp_path)
    root = tmp_path / "tiny-imagenet-200"
    published.picture(root / "secret.JPEG", 9, (8, 8))
    (root / "val" / "val_annotations.txt").write_text(f"{name}\tn01443537\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"names no file of val/images"):
        load("tiny_imagenet", tmp_path)


def test_a_file_that_unpacks_to_more_than_was_published_is_refused(tmp_path):
    published.fashion_mnist(tmp_path)
    file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(bytes(60_000_000)))
    with pytest.raises(UserError, match="unpacked it is larger than 47,040,016 bytes"):
        load("fashion_mnist", tmp_path, channels=1)


@pytest.mark.parametrize("name", ["train.bin", "fine_label_names.txt"])
def test_a_file_that_is_larger_than_any_published_one_is_not_read(tmp_path, name):
    published.cifar100(tmp_path)
    with (tmp_path / "cifar-100-binary" / name).open("wb") as file:
        file.truncate(3074 * 10**9)  # on the disk it takes nothing
    with pytest.raises(UserError, match=r"3,074,000,000,000 bytes; allowed: "):
        load("cifar100", tmp_path)


def test_stl10_is_fetched_from_where_torchvision_says(tmp_path, monkeypatch, address):
    monkeypatch.setattr(stl10.STL10, "tgz_md5", publish(tmp_path, published.stl10, "stl10_binary.tar.gz"))
    monkeypatch.setattr(stl10.STL10, "url", f"{address}/stl10_binary.tar.gz")
    assert len(load("stl10", tmp_path / "new", download=True).train_labels) == 7


def test_fashion_mnist_is_fetched_from_where_torchvision_says(tmp_path, monkeypatch, address):
    published.fashion_mnist(tmp_path)
    sums = [(file.name, md5(file)) for file in (tmp_path / "FashionMNIST" / "raw").iterdir()]
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "mirrors", [f"{address}/FashionMNIST/raw/"])
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "resources", sums)
    assert len(load("fashion_mnist", tmp_path / "new", channels=1, download=True).train_labels) == 30


def test_a_set_of_medmnist_is_fetched_in_its_size_from_where_the_package_says(tmp_path, monkeypatch, address):
    published.medmnist(tmp_path / "any.npz", 64, 3, 8)
    facts = {"url_64": f"{address}/any.npz", "MD5_64": md5(tmp_path / "any.npz")}
    monkeypatch.setitem(medmnist.INFO, "bloodmnist", medmnist.INFO["bloodmnist"] | facts)
    assert len(load("bloodmnist", tmp_path / "new", size=64, download=True).train_labels) == 24
