"""Fashion-MNIST (Xiao et al. 2017), as its authors publish it."""

from __future__ import annotations

from pathlib import Path

from bench.data.cache import cached
from bench.data.downloads import Archive
from bench.data.published import idx
from bench.data.splits import Data

#: Of decoding, order, ids and splits.
VERSION = 1
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
ARCHIVES = (
    Archive(
        _FASHION + "train-images-idx3-ubyte.gz",
        "FashionMNIST/raw",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        {"train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"},
    ),
    Archive(
        _FASHION + "train-labels-idx1-ubyte.gz",
        "FashionMNIST/raw",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        {"train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"},
    ),
    Archive(
        _FASHION + "t10k-images-idx3-ubyte.gz",
        "FashionMNIST/raw",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        {"t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"},
    ),
    Archive(
        _FASHION + "t10k-labels-idx1-ubyte.gz",
        "FashionMNIST/raw",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        {"t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"},
    ),
)


def load(root: Path, download: bool) -> Data:
    """Fashion-MNIST (Xiao et al. 2017): 28×28 grey, 60,000 training and 10,000 test images."""
    return cached("fashion-mnist", [VERSION, [a.members for a in ARCHIVES]], lambda: _read(root, download))


def _read(root: Path, download: bool) -> Data:
    names = ["T-shirt/top", "trouser", "pullover", "dress", "coat"]
    names += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]
    return idx.read("fashion-mnist", names, VERSION, ARCHIVES, root, download=download)
