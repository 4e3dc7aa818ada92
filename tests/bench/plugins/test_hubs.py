"""Published models by name, each against a local stand-in: no file here was downloaded."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from stand_ins import run_bench, shards, write_config
from torch import nn
from torchvision.transforms.functional import to_pil_image

from bench.contracts.defense import BareModel, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.plugins.hubs import hub_model
from bench.plugins.hubs.front import Front
from bench.plugins.hubs.robustbench import RobustBenchModel
from bench.plugins.references import find
from bench.plugins.registry import ATTACKS, DEFENSES
from bench.plugins.resolve import LoadedDefense, load_defense
from bench.storing.digest import state_digest

CIFAR = DataInfo("cifar10", InputSpec((3, 32, 32)), 10)
GREY = DataInfo("digits", InputSpec((1, 8, 8)), 10)
NAME = "squeezenet1_1"  # the smallest network of torchvision


def images_of(side: int, classes: int = 1000) -> DataInfo:
    return DataInfo("photos", InputSpec((3, side, side)), classes)


def load(reference: str, info: DataInfo, **params: Any) -> LoadedDefense:
    return load_defense(DefenseSpec(reference, params), info)


def parts(loaded: LoadedDefense) -> tuple[Front, nn.Module]:
    assert isinstance(loaded.defense, BareModel)
    front, network = loaded.defense.classifier.children()
    assert isinstance(front, Front)
    return front, network


def refused(reference: str, info: DataInfo, **params: Any) -> str:
    with pytest.raises(InputError) as error:
        load(reference, info, **params)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


# -- what they share --------------------------------------------------------------------------------------------


def test_a_prefix_comes_before_a_module_and_names_defenses_alone() -> None:
    assert find("torchvision:resnet18", DEFENSES).obj.__name__ == "TorchvisionModel"  # type: ignore[attr-defined]
    assert hub_model("torchvisions:resnet18") is hub_model("torchvision") is hub_model("torchvision:") is None
    with pytest.raises(InputError, match="defines no 'resnet18'"):
        find("torchvision:resnet18", ATTACKS)


def test_the_front_scales_turns_and_normalises() -> None:
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    front = Front((0.1, 0.2, 0.3), (0.5, 0.5, 0.25), (16, 16), bgr=True)
    out = front(x)
    assert out.shape == (2, 3, 16, 16)
    flat = Front((0.1, 0.2, 0.3), (0.5, 0.5, 0.25), bgr=True)(torch.full((1, 3, 2, 2), 0.6))
    assert torch.allclose(flat[0, :, 0, 0], torch.tensor([1.0, 0.8, 1.2]))
    out.sum().backward()
    assert x.grad is not None and (x.grad != 0).all()


def test_normalisation_is_part_of_the_weights_hash() -> None:
    one, two = Front((0.5,), (0.5,)), Front((0.5,), (0.25,))
    assert state_digest(one) != state_digest(two)


# -- torchvision ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(NAME, weights=None).eval()


@pytest.fixture
def published(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of torchvision's file in torch.hub's cache, under the hash of its own content."""
    written = tmp_path / "written.pth"
    torch.save(network.state_dict(), written)
    name = f"{NAME}-{hashlib.sha256(written.read_bytes()).hexdigest()[:8]}.pth"
    path = tmp_path / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    written.rename(path)
    real = torchvision.models.get_model_weights(NAME).DEFAULT
    entry = SimpleNamespace(url=f"https://example.org/{name}", transforms=real.transforms, meta=real.meta)
    entries = SimpleNamespace(DEFAULT=entry, __members__=real.__class__.__members__)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: entries)
    return path


def test_torchvision_with_its_own_normalisation(published: Path, network: nn.Module) -> None:
    loaded = load(f"torchvision:{NAME}", images_of(224))
    x = torch.rand(2, 3, 224, 224)
    normal = torchvision.transforms.functional.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        assert torch.allclose(loaded.defense(x), network(normal), atol=1e-4)
    assert loaded.version == 1 and loaded.checkpoint is None
    assert loaded.libraries == {"torchvision": torchvision.__version__.partition("+")[0]}
    assert not any(module.training for module in loaded.defense.modules())


def test_its_file_is_checked_on_every_load(published: Path) -> None:
    load(f"torchvision:{NAME}", images_of(224))
    content = bytearray(published.read_bytes())
    content[len(content) // 2] ^= 1
    published.write_bytes(content)
    assert "is damaged: its SHA-256 is" in refused(f"torchvision:{NAME}", images_of(224))


def test_what_is_not_there_and_cannot_be_downloaded_is_one_line() -> None:
    assert "cannot be downloaded: no network in tests" in refused(f"torchvision:{NAME}", images_of(224))
    assert not list(Path(torch.hub.get_dir()).rglob("*.pth"))


@pytest.mark.parametrize(
    ("reference", "info", "params", "message"),
    [
        ("torchvision:resnet81", CIFAR, {}, "did you mean 'resnet18'?"),
        ("torchvision:resnet18.IMAGENET1K_V7", CIFAR, {}, "did you mean 'IMAGENET1K_V1'?"),
        ("torchvision:qqqqqq", CIFAR, {}, "see torchvision.models.list_models"),
        ("torchvision:resnet18", CIFAR, {}, "takes images of 3×224×224; those of cifar10 are 3×32×32: --set resize"),
        ("torchvision:resnet18", GREY, {"resize": True}, "takes images of 3×224×224; those of digits are 1×8×8"),
        ("torchvision:resnet18", CIFAR, {"resize": True}, "tells 1000 classes apart; cifar10 has 10"),
        ("torchvision:resnet18", CIFAR, {"size": 0}, "size 0 must be at least 1"),
        ("torchvision:resnet18", CIFAR, {"std": "1,0,1", "size": 32}, "std 0 must be above 0"),
        ("torchvision:resnet18", CIFAR, {"mean": "0.5,0.5"}, "must be 3 numbers, one per channel"),
        ("torchvision:resnet18", CIFAR, {"mean": "a,b,c"}, "must be 3 numbers, one per channel"),
        ("torchvision:resnet18", CIFAR, {"tag": "x"}, "no parameter 'tag'"),
        (
            "torchvision:resnet18",
            DataInfo("signed", InputSpec((3, 224, 224), low=-1.0), 1000),
            {},
            "takes images in [0, 1]; those of signed are in [-1, 1]",
        ),
        (
            "torchvision:resnet18",
            DataInfo("tones", InputSpec((1, 64), low=-1.0, kind="waveform"), 10),
            {},
            "takes images; the inputs of tones are waveforms",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(reference: str, info: DataInfo, params: dict[str, Any], message: str) -> None:
    assert message in refused(reference, info, **params)


# -- weights of one's own -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.get_model(NAME, weights=None, num_classes=10).eval()


@pytest.mark.parametrize("wrapping", ["safetensors", "plain", "state_dict", "data parallel"])
def test_own_weights_have_the_classes_of_the_data(wrapping: str, small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / ("own.safetensors" if wrapping == "safetensors" else "own.pth")
    state = small.state_dict()
    if wrapping == "safetensors":
        safetensors.torch.save_file(state, path)
    elif wrapping == "data parallel":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        torch.save(state if wrapping == "plain" else {"state_dict": state, "epoch": 3}, path)
    given = {"weights": str(path), "size": "32", "mean": "0.49,0.48,0.45", "std": [0.25, 0.24, 0.26]}
    loaded = load(f"torchvision:{NAME}", CIFAR, **given)
    x = torch.rand(2, 3, 32, 32)
    normal = torchvision.transforms.functional.normalize(x, [0.49, 0.48, 0.45], [0.25, 0.24, 0.26])
    with torch.no_grad():
        assert torch.allclose(loaded.defense(x), small(normal), atol=1e-5)


@pytest.mark.parametrize("name", ["densenet121", "mnasnet0_5", "resnet18"])
def test_files_with_names_of_older_versions(name: str, tmp_path: Path) -> None:
    own = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    state = own.state_dict()
    for key in list(state):
        old = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key)
        state[old] = state.pop(key)
        if old.endswith("num_batches_tracked") and name == "resnet18":
            del state[old]
    if name == "resnet18":
        state._metadata.clear()  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "old.pth")
    loaded = load(f"torchvision:{name}", images_of(224, 10), weights=tmp_path / "old.pth")
    assert torch.equal(list(parts(loaded)[1].parameters())[-1], list(own.parameters())[-1])


class Harm:
    """Unpickling one leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_weights_that_do_not_fit_are_one_line(small: nn.Module, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    state = dict(small.state_dict())
    first, *_, last = state
    cases = {
        "no such file": None,
        f"has no '{first}', which the network has": {k: v for k, v in state.items() if k != first},
        "has 'extra', which the network lacks": {**state, "extra": torch.zeros(1)},
        f"size mismatch for {last}": {**state, last: torch.zeros(3)},
        "holds no state dict": [1, 2],
        "cannot be read": {"x": Harm()},
    }
    for message, content in cases.items():
        if content is not None:
            torch.save(content, "own.pth")
        assert message in refused(f"torchvision:{NAME}", CIFAR, weights="own.pth", size=32), message
    assert not Path("harm").exists()


def photos(folder: Path) -> None:
    for part, count in (("train", 12), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                seed = torch.Generator().manual_seed(100 * number + index + (50 if part == "test" else 0))
                image = torch.rand(3, 40, 40, generator=seed)
                to_pil_image(image).save(folder / part / name / f"{index}.png")


def test_evaluated_from_the_command_line_with_its_library_in_the_key(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    torch.manual_seed(2)
    torch.save(torchvision.models.get_model(NAME, weights=None, num_classes=2).state_dict(), "own.pth")
    fields = {"data": "folder:photos", "examples": 2, "shard_size": 2, "reference": "none"}
    config = write_config(tmp_path / "bench.yaml", {"fgsm": {}}, **fields)
    options = ("--suite", "tiny", "--config", config, "--device", "cpu", "--set", "weights=own.pth")
    asked = ("evaluate", "--defense", f"torchvision:{NAME}", *options, "--results", tmp_path / "runs")
    ended = run_bench(*asked)
    assert ended.code == 2 and "takes images of 3×224×224; those of photos are 3×40×40" in ended.err
    assert not shards(tmp_path / "runs")
    ended = run_bench(*asked, "--set", "size=40")
    assert ended.code == 0, ended.err
    key = next(iter(shards(tmp_path / "runs").values())).key.defense
    assert key.name == f"torchvision.{NAME}(size=40,weights=own.pth)" and key.version == 1
    assert key.libraries == {"torchvision": torchvision.__version__.partition("+")[0]}


# -- timm -------------------------------------------------------------------------------------------------------

TIMM = "test_resnet"


def cached(root: Path, repo: str, contents: dict[str, bytes]) -> Path:
    """A repository in the layout of the Hugging Face cache; returns the folder of its commit."""
    top, commit = root / f"models--{repo.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    for folder in (top / "refs", top / "blobs", top / "snapshots" / commit):
        folder.mkdir(parents=True)
    (top / "refs" / "main").write_text(commit)
    for name, content in contents.items():
        blob = top / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (top / "snapshots" / commit / name).symlink_to(blob)
    return top / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra `hf` or `timm`")
    root = tmp_path / "cache"
    root.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root


def test_timm_from_the_cache_checked_and_normalised(cache: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra `timm`")
    torch.manual_seed(3)
    network, found = timm.create_model(TIMM).eval(), timm.get_pretrained_cfg(TIMM)
    folder = cached(cache, found.hf_hub_id, {"model.safetensors": safetensors.torch.save(network.state_dict())})
    side = found.input_size[1]
    loaded = load(f"timm:{TIMM}", images_of(side, found.num_classes))
    x = torch.rand(2, 3, side, side)
    normal = torchvision.transforms.functional.normalize(x, found.mean, found.std)
    with torch.no_grad():
        assert torch.allclose(loaded.defense(x), network(normal), atol=1e-5)
    assert (loaded.version, loaded.libraries) == (1, {"timm": timm.__version__})
    small = DataInfo("small", InputSpec((3, 32, 32)), found.num_classes)
    assert load(f"timm:{TIMM}", small, resize=True).defense(torch.rand(1, 3, 32, 32)).shape == (1, found.num_classes)

    blob = (folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert "is damaged: its SHA-256 is" in refused(f"timm:{TIMM}", images_of(side, found.num_classes))


def test_timm_with_own_weights_and_unknown_names(tmp_path: Path, cache: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra `timm`")
    network = timm.create_model(TIMM, num_classes=10).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "own.safetensors")
    loaded = load(f"timm:{TIMM}", CIFAR, weights=tmp_path / "own.safetensors", size=32)
    assert torch.equal(parts(loaded)[1].state_dict()["conv1.0.weight"], network.state_dict()["conv1.0.weight"])
    assert "did you mean 'resnet" in refused("timm:resnett18", CIFAR)
    assert "did you mean 'resnet18." in refused("timm:resnet18.a9_in1k", CIFAR)
    assert "is not in the cache and cannot be had" in refused(f"timm:{TIMM}", images_of(160))


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("timm", "transformers", "robustbench.model_zoo"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'worst-case-bench[timm]'" in refused("timm:resnet18", CIFAR)
    assert "pip install 'worst-case-bench[hf]'" in refused("hf:google/vit-base-patch16-224", CIFAR)
    assert "pip install 'worst-case-bench[robustbench]'" in refused("robustbench:Standard", CIFAR)


# -- Hugging Face -----------------------------------------------------------------------------------------------


def saved(folder: Path, **processor: Any) -> tuple[nn.Module, dict[str, bytes]]:
    """A tiny network as ``save_pretrained`` writes it, in half precision, and the files."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    torch.manual_seed(4)
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    network = transformers.ResNetForImageClassification(config).half().eval()
    network.save_pretrained(folder)
    facts = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        **processor,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return network.float(), {path.name: path.read_bytes() for path in folder.iterdir()}


def test_hugging_face_from_the_cache(cache: Path, tmp_path: Path) -> None:
    network, contents = saved(tmp_path / "saved")
    folder = cached(cache, "someone/net", contents)
    loaded = load("hf:someone/net", CIFAR)
    x = torch.rand(2, 3, 32, 32)
    normal = torchvision.transforms.functional.normalize(x, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    with torch.no_grad():
        logits = loaded.defense(x)
        assert logits.dtype == torch.float32 and torch.allclose(logits, network(normal).logits, atol=1e-5)
    assert set(loaded.libraries) == {"transformers"}
    assert "tells 10 classes apart; photos has 7" in refused("hf:someone/net", images_of(32, 7))
    assert "is not in the cache and cannot be had" in refused("hf:someone/other", CIFAR)
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert "is damaged: its SHA-256 is" in refused("hf:someone/net", CIFAR)


def test_hugging_face_from_a_folder(tmp_path: Path) -> None:
    network, _ = saved(tmp_path / "net", rescale_factor=1 / 127.5, rescale_offset=True, do_flip_channel_order=True)
    reference = f"hf:{tmp_path / 'net'}"
    x = torch.rand(2, 3, 32, 32)
    scaled = (255 * x).flip(1) / 127.5 - 1
    normal = torchvision.transforms.functional.normalize(scaled, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    with torch.no_grad():
        assert torch.allclose(load(reference, CIFAR).defense(x), network(normal).logits, atol=1e-4)
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "own.safetensors")
    torch.save(network.state_dict(), tmp_path / "net" / "pytorch_model.bin")
    assert "has no model.safetensors" in refused(reference, CIFAR)
    loaded = load(reference, CIFAR, weights=tmp_path / "own.safetensors")
    with torch.no_grad():
        assert torch.allclose(loaded.defense(x), network(normal).logits, atol=1e-4)
    (tmp_path / "net" / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refused(reference, CIFAR)
    assert "no such folder" in refused("hf:./nowhere", CIFAR)


# -- RobustBench ------------------------------------------------------------------------------------------------


class Zoo(Enum):
    """As the library's own keys are."""

    cifar = "cifar10"
    linf = "Linf"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for RobustBench; what it was asked for."""
    calls: list[dict[str, Any]] = []
    zoo, utils = ModuleType("robustbench.model_zoo"), ModuleType("robustbench.utils")
    zoo.model_dicts = {Zoo.cifar: {Zoo.linf: {"Mine2026": {"gdrive_id": "1"}, "Two2026": {"gdrive_id": ["1", "2"]}}}}

    def load_model(model_name: str, model_dir: Any, **options: Any) -> nn.Module:
        file = Path(model_dir, options["dataset"], options["threat_model"], f"{model_name}.pt")
        calls.append({"model_name": model_name, **options})
        layer = nn.Linear(3 * 32 * 32, 10)
        layer.load_state_dict(torch.load(file, weights_only=True))
        return nn.Sequential(nn.Flatten(), layer)

    utils.load_model = load_model
    for module in (ModuleType("robustbench"), zoo, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(RobustBenchModel, "depends", ())  # the stand-in has no version
    return calls


def test_robustbench_takes_images_as_they_are(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    layer = nn.Linear(3 * 32 * 32, 10)
    torch.save(layer.state_dict(), tmp_path / "own.pt")
    x = torch.rand(2, 3, 32, 32)
    loaded = load("robustbench:Mine2026", CIFAR, weights=str(tmp_path / "own.pt"))
    with torch.no_grad():
        assert torch.allclose(loaded.defense(x), layer(x.flatten(1)), atol=1e-5)
    (tmp_path / "cifar10" / "Linf").mkdir(parents=True)
    (tmp_path / "own.pt").rename(tmp_path / "cifar10" / "Linf" / "Mine2026.pt")
    load("robustbench:Mine2026", CIFAR, folder=str(tmp_path))
    assert {call["dataset"] + call["threat_model"] for call in asked} == {"cifar10Linf"} and len(asked) == 2


def test_robustbench_in_a_line(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert "did you mean 'Mine2026'?" in refused("robustbench:Mine2025", CIFAR)
    assert "threat 'L2' does not exist for cifar10" in refused("robustbench:Mine2026", CIFAR, threat="L2")
    assert "did you mean 'cifar10'?" in refused("robustbench:Mine2026", CIFAR, dataset="cifar1")
    assert "takes images of 3×32×32" in refused("robustbench:Mine2026", GREY)
    assert "RobustBench raised FileNotFoundError" in refused("robustbench:Mine2026", CIFAR, folder=tmp_path)
    (tmp_path / "own.pt").touch()
    assert "is an ensemble" in refused("robustbench:Two2026", CIFAR, weights=tmp_path / "own.pt")
    assert "no such file" in refused("robustbench:Mine2026", CIFAR, weights=tmp_path / "none.pt")
    assert asked == [{"model_name": "Mine2026", "dataset": "cifar10", "threat_model": "Linf"}]
