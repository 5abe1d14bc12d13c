"""The bundle comes back as it went in; one from a stranger is refused before anything is built from it."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heimdall.errors import DataError
from heimdall.tasks.ptychography.bundle import LARGEST, MANIFEST, WEIGHTS, read_bundle, write_bundle
from heimdall.tasks.ptychography.module import PtychographyModule


@pytest.fixture
def module() -> PtychographyModule:
    torch.manual_seed(0)
    made = PtychographyModule(size=64, modes=1, gridsize=1, canvas=80, margin=16, width=4, input_scale=0.1)
    made.set_probe(torch.randn(1, 64, 64) + 1j * torch.randn(1, 64, 64))
    return made


@pytest.fixture
def bundle(module: PtychographyModule, tmp_path: Path) -> Path:
    return write_bundle(module, {"gridsize": 1}, tmp_path / "wts.h5.zip")


Members = dict[str, bytes]


def rewritten(path: Path, change: Callable[[Members], Any]) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def manifest_with(**changes: Any) -> Callable[[Members], Any]:
    def change(members: Members) -> None:
        manifest = json.loads(members[MANIFEST])
        for key, value in changes.items():
            place = manifest["hyperparameters"] if key in manifest["hyperparameters"] else manifest
            place[key] = value
        members[MANIFEST] = json.dumps(manifest).encode()

    return change


def test_bundle_gives_back_the_same_module(module: PtychographyModule, bundle: Path) -> None:
    again = read_bundle(bundle)
    assert again.geometry == module.geometry
    assert not again.training
    for name, value in module.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_same_model_is_the_same_file(module: PtychographyModule, bundle: Path, tmp_path: Path) -> None:
    again = write_bundle(module, {"gridsize": 1}, tmp_path / "again.zip")
    assert again.read_bytes() == bundle.read_bytes()


def test_bundle_holds_no_pickle_and_says_its_version(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert sorted(archive.namelist()) == [MANIFEST, WEIGHTS]
        manifest = json.loads(archive.read(MANIFEST))
    assert manifest["version"] == 1
    assert b"pickle" not in bundle.read_bytes()


HOSTILE: dict[str, tuple[Callable[[Members], Any], str]] = {
    "path traversal": (lambda m: m.update({"../../evil.sh": b"rm"}), "leads out of the bundle"),
    "path traversal of another system": (lambda m: m.update({"..\\evil.bat": b"x"}), "leads out of the bundle"),
    "absolute path": (lambda m: m.update({"/etc/evil": b"x"}), "leads out of the bundle"),
    "further member": (lambda m: m.update({"model.pkl": pickle.dumps([1])}), "not a model bundle: it holds"),
    "manifest that unpacks without end": (
        lambda m: m.update({MANIFEST: b" " * (LARGEST[MANIFEST] + 10)}),
        "unpacks to more than",
    ),
    "no manifest": (lambda m: m.pop(MANIFEST), "not a model bundle"),
    "no weights": (lambda m: m.pop(WEIGHTS), "not a model bundle"),
    "manifest that is no JSON": (lambda m: m.update({MANIFEST: b"{"}), "cannot be read"),
    "manifest that is a list": (lambda m: m.update({MANIFEST: b"[]"}), "cannot be read"),
    "endlessly nested manifest": (lambda m: m.update({MANIFEST: b"[" * 100_000}), "cannot be read"),
    "another kind": (manifest_with(format="heimdall-localization-bundle"), "of kind"),
    "later version": (manifest_with(version=2), "of version 2; this program reads version 1"),
    "version that is text": (manifest_with(version="1"), "of version '1'"),
    "network too large to build": (manifest_with(width=1_000_000), "wrong at hyperparameters.width"),
    "canvas too large to build": (manifest_with(canvas=10**9), "wrong at hyperparameters.canvas"),
    "weights that do not fit": (manifest_with(width=8), "do not fit its manifest"),
    "unknown hyperparameter": (
        lambda m: m.update({MANIFEST: m[MANIFEST].replace(b'"learn_probe"', b'"run_this"')}),
        "wrong at hyperparameters",
    ),
    "weights of other bytes": (lambda m: m.update({WEIGHTS: m[WEIGHTS][:-1] + b"!"}), "damaged"),
    "pickle for weights": (lambda m: m.update({WEIGHTS: pickle.dumps({"a": 1})}), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundle_is_refused_in_one_sentence(bundle: Path, tmp_path: Path, name: str) -> None:
    change, said = HOSTILE[name]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        read_bundle(rewritten(bundle, change))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65
    assert sorted(tmp_path.rglob("*")) == before


def test_bomb_is_not_unpacked_whatever_its_directory_claims(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGEST, WEIGHTS, 1000)
    with pytest.raises(DataError, match="unpacks to more than 1000 bytes"):
        read_bundle(bundle)


def test_weights_that_are_not_numbers_are_refused(module: PtychographyModule, tmp_path: Path) -> None:
    with torch.no_grad():
        module.network.correction.last.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not all finite"):
        read_bundle(write_bundle(module, {}, tmp_path / "wts.h5.zip"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"not a zip"])
def test_file_that_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wts.h5.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a model bundle"):
        read_bundle(path)


def test_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_bundle(tmp_path / "wts.h5.zip")


def test_file_cut_short_is_refused(bundle: Path) -> None:
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        read_bundle(bundle)
