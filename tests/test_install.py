"""The project as an installed package: what a wheel holds, and that it works away from the
repository."""

import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from helpers import ROOT
from packaging.requirements import Requirement

import eqdiff
from eqdiff.settings.places import assets_of

pytest.importorskip("hatchling", reason="what builds the package is not installed")
# an installed package alone, in another folder: it imports, finds its assets, loads its base, knows
# it as ours
USER = """
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS, BUNDLED_BASE, is_bundled
from eqdiff.settings.presets import parse, resolve
from eqdiff.settings.train import TrainConfig

EqDiffPipeline.from_pretrained(str(BUNDLED_BASE))
config = resolve(parse(TrainConfig, []))
assert is_bundled(config.instance_data_dir) and config.preset == "toybox"
print(ASSETS)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    done = subprocess.run(
        [*command, "--directory", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(files.read(name))


def requirements(name: str) -> set[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {Requirement(line) for line in lines if line and not line.startswith("-r")}


def files_of(*folders: str) -> set[str]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_a_wheel_is_the_package_with_its_assets_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
    assets = {f"eqdiff/{name}" for name in files_of("assets") - files_of("assets/pictures")}
    assert {
        "eqdiff/assets/toybox/base/model_index.json",
        "eqdiff/assets/prompts/style.txt",
    } < assets
    assert names == assets | files_of("eqdiff")


def test_version_and_requirements_each_have_one_place(metadata: Message) -> None:
    assert metadata["Version"] == eqdiff.__version__
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {need for need in needs if not need.marker} == requirements("requirements.txt")
    extra = {f"{need.name} {need.specifier}" for need in needs if need.marker}
    files = [f"requirements-{name}.txt" for name in ("dev", "app", "ray")]
    assert extra == {f"{need.name} {need.specifier}" for f in files for need in requirements(f)}


def test_assets_are_found_beside_the_package_and_within_it(tmp_path: Path) -> None:
    package = tmp_path / "eqdiff"
    package.mkdir()
    assert assets_of(package) == tmp_path / "assets"
    (package / "assets").mkdir()
    assert assets_of(package) == package / "assets"


def test_no_file_makes_its_own_way_to_the_repository() -> None:
    folders = ("eqdiff", "toybox", "tests", "assets", "scripts", ".ci")
    paths = [*ROOT.glob("*.py"), *(ROOT / name for name in files_of(*folders))]
    sources = {
        path: path.read_text(encoding="utf-8") for path in paths if path.suffix in (".py", ".sh")
    }
    for hack in ("sys.path" + ".insert", "sys.path" + ".append", "E4" + "02"):
        assert not [
            str(path.relative_to(ROOT)) for path, text in sources.items() if hack in text
        ], hack


@pytest.mark.long
def test_what_a_wheel_holds_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    here = {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    how = dict(cwd=tmp_path / "elsewhere", env=here, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", USER], **how)
    assert done.stdout.split() == [str(tmp_path / "site" / "eqdiff" / "assets")], done.stderr[
        -2000:
    ]


def borrowing(folder: Path) -> Path:
    """The Python of a fresh environment with pip, which sees the packages that this one has, for
    want of a network."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    where = subprocess.run(command, capture_output=True, text=True)
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(where.stdout.strip()) / "borrowed.pth").write_text("\n".join(packages))
    return python


@pytest.mark.long
@pytest.mark.parametrize("editable", [False, True], ids=["pip install .", "pip install -e ."])
def test_pip_installs_it(editable: bool, tmp_path: Path) -> None:
    python = borrowing(tmp_path / "environment")
    what = ["-e", str(ROOT)] if editable else [str(ROOT)]
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        *what,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = USER + ("import benchmarks.common, studies, toybox\n" if editable else "")
    how = dict(cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    done = subprocess.run([python, "-c", code], **how)
    assert done.returncode == 0, done.stderr[-2000:]
    found = Path(done.stdout.strip())
    assert found == ROOT / "assets" if editable else found.is_relative_to(tmp_path / "environment")
