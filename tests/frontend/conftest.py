"""A generated data set and a training so small that they take no time."""

import shutil

import pytest
import torch
from hsta.cli import main
from hsta.generated.writer import generate_dataset
from hypothesis import HealthCheck, settings

from tests.frontend.serving import filmed, serving, somebody, untrained

# A busy machine is no failure.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Three subjects, the first the photograph, of four clips in two classes."""
    root = tmp_path_factory.mktemp("people")
    generate_dataset(root, 3, 4, 0, image_size=48, emotions=("happy", "surprise"), progress=False)
    return root


@pytest.fixture(scope="session")
def learning(people):
    """Arguments of a training of three epochs of three steps; drop rates are the recipe's."""
    options = """
        --image-size 32 --num-frames 2 --depth 1 1
        --epochs 3 --warmup-epochs 1 --batch-size 4
        --accelerator cpu
    """
    return ["--data", str(people), *options.split()]


@pytest.fixture(scope="session")
def short(learning):
    """Arguments of an evaluation by trainings of two epochs."""
    return ["evaluate", *learning, "--epochs", "2"]  # of an option given twice the last counts


@pytest.fixture(scope="session")
def evaluated(short, tmp_path_factory):
    """The folder of that evaluation, one fold after the other in one process."""
    output = tmp_path_factory.mktemp("evaluated") / "run"
    assert main([*short, "--protocol", "loso", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def evaluated_by_one_thread(short, tmp_path_factory):
    """The same by one thread, as processes that share a machine have it: PyTorch's products round by their number."""
    output = tmp_path_factory.mktemp("by_one_thread") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*short, "--protocol", "loso", "--output", str(output)]) == 0
    finally:
        torch.set_num_threads(threads)
    return output


@pytest.fixture(scope="session")
def trained(learning, tmp_path_factory):
    """The folder of that training, never stopped."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *learning, "--output", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of a model that nobody trained."""
    return untrained(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="session")
def server(checkpoint, tmp_path_factory):
    """`hsta serve` with small limits."""
    pytest.importorskip("aiohttp", reason="hsta-kernels[serve] is not installed")
    with serving(checkpoint, tmp_path_factory.mktemp("serving")) as running:
        yield running


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Two films of unlike lengths."""
    folder = tmp_path_factory.mktemp("clips")
    return [filmed(folder / f"{seed}.mp4", somebody(seed)) for seed in (3, 4)]


@pytest.fixture(scope="module")
def browser():
    """Debian's, or whichever Chromium is installed. Its driver's event loop must not outlive the file's tests."""
    driving = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed, which drives a browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed, in which pages are tried")
    with driving.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
