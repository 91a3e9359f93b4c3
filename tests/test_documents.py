"""What the documents say is so: their programs run, their commands too, their sentences are those that are printed."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
RESULTS = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")} - {"latest"}
# What adding-an-operator.md adds is built and tested by test_adding_an_operator.py.
PAGES = [ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if page.name != "adding-an-operator.md")]
PROGRAMS = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.stem)
def test_programs_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict[str, object] = {}
    for block in BLOCK.finditer(text):
        if why_not := block[1].strip():  # such as ```python needs a GPU
            assert why_not.startswith("needs "), f"{page.name}: {why_not}"
            continue
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[2], str(page), "exec"), names)  # errors then name the page's line


def test_pages_with_programs_were_found():
    assert {"README", "index", "operators", "backends", "model"} <= {page.stem for page in PROGRAMS}


def test_commands_for_own_data_run(tmp_path, monkeypatch):
    pytest.importorskip("tyro", reason="the command line is not installed")
    from hsta.cli import main
    from hsta.data.video import write_video
    from hsta.generated.writer import generate_dataset

    monkeypatch.chdir(tmp_path)
    emotions = ("happy", "surprise")
    generate_dataset(Path("mydata"), 3, 2, 0, format="folder", image_size=48, emotions=emotions, progress=False)
    from skimage.data import astronaut

    write_video("clip.mp4", [astronaut()] * 8, 30.0)
    small = "--image-size 32 --num-frames 2 --depth 1 1 --epochs 1 --warmup-epochs 0 --batch-size 2 --accelerator cpu"
    options = {"train": small, "tune": f"{small} --trials 1 --inner-folds 2", "evaluate": small}
    blocks = re.findall(r"^```sh\n((?:.*\n)*?)^```$", (DOCS / "own-data.md").read_text(), re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("#")]
    lines = [line for line in lines if "--launcher ray" not in line]  # of a cluster; tests/frontend/test_ray.py has one
    if importlib.util.find_spec("optuna") is None:  # of the extra `tune`
        lines = [line for line in lines if "hsta tune" not in line and "--tuned" not in line]
    job = "$SLURM_ARRAY_TASK_ID"
    commands = [
        shlex.split(line.replace(job, number).replace("--folds 5", "--folds 3"))[1:]
        for line in lines
        for number in (("1", "2", "3") if job in line else ("",))
    ]
    expected = ["check", "evaluate", "evaluate", "train", "predict", "evaluate", "evaluate", "evaluate", "collect"]
    expected += ["tune", "evaluate", "tune", "train"] if any("hsta tune" in line for line in lines) else []
    assert [command[0] for command in commands] == expected
    for command in commands:
        assert main([*command, *options.get(command[0], "").split()]) == 0, command


def test_every_environment_variable_is_told():
    sources = [ROOT / "setup.py"]
    for folder in ("hsta_kernels", "python", "csrc", "benchmarks", "tools", "tests"):
        sources += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".h", ".cuh", ".cu"}]
    asked = re.compile(r'(?:environ(?:\.\w+)?[\[(]|getenv\()"([A-Z_]+)"|"(HSTA_[A-Z]+(?:_[A-Z]+)*)"')
    used = {name for path in sources for names in asked.findall(path.read_text()) for name in names if name}
    told = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`(?=[^|\n]*\|)", (DOCS / "environment.md").read_text()))
    assert used - {"PATH"} <= told
    assert {name for name in told if name.startswith("HSTA_")} <= used


def test_pictures_are_what_their_script_draws():
    pictures = runpy.run_path(str(DOCS / "pictures" / "draw.py"))["PICTURES"]
    drawn_by_a_tool = {"roofline.svg"}  # with the page beside it: python -m tools.roofline
    assert {path.name for path in (DOCS / "pictures").glob("*.svg")} == set(pictures) | drawn_by_a_tool
    for name, draw in pictures.items():
        assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == draw(), f"run docs/pictures/draw.py: {name}"


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PATH": ""}, id="no compiler"),
        pytest.param({"CXX": "false", "HSTA_BUILD_CUDA": "0"}, id="a compiler that refuses"),
        pytest.param({"PATH": "", "HSTA_BUILD_CUDA": "1"}, id="no nvcc"),
    ],
)
def test_a_failed_installation_says_the_sentence_of_the_page(environment, tmp_path):
    pytest.importorskip("pybind11", reason="the build cannot be started without pybind11")
    for file in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "hsta_kernels/__init__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    tools = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = [sys.executable, "setup.py", "build_ext"]
    done = subprocess.run(command, cwd=tmp_path, env=tools | environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"\n> {done.stderr.splitlines()[-1]}\n" in (DOCS / "installation.md").read_text()


def test_an_old_pytorch_is_refused_with_the_sentence_of_the_page():
    code = "import torch; torch.__version__ = torch.torch_version.TorchVersion('2.5.1'); import hsta_kernels"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    sentence = done.stderr.splitlines()[-1].removeprefix("ImportError: ")
    assert f"\n> {sentence}\n" in (DOCS / "installation.md").read_text()


def test_a_build_without_openmp_says_the_sentence_of_the_page():
    (sentence,) = re.findall(r'message\(WARNING "(.*)"\)', (ROOT / "CMakeLists.txt").read_text())
    assert f"\n> {sentence}\n" in (DOCS / "installation.md").read_text()


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(package, reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--nitpicky", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = (tmp_path / "measured.html").read_text()
    assert RESULTS and all(f"<strong>{name}</strong>" in measured for name in RESULTS)
