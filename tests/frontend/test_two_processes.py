"""Two processes train as one, by DDP and by FSDP: over gloo on the CPU, from the command line."""

import csv
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hsta.cli import main
from hsta.data.registry import read_dataset
from hsta.results.evaluation import probabilities
from hsta.training.checkpoints import load_checkpoint
from hsta.training.loop import class_loss
from lightning_fabric import Fabric

from hsta_kernels import reference
from tests.frontend import two_processes
from tests.frontend.test_training import EVERYTHING, STATE, WEIGHTS, scalars
from tests.frontend.two_processes import STRATEGIES, TESTED, Spy
from tests.tolerances import assert_close_to_reference, nearby

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed"
)

# With nothing drawn for a batch or a device, a step is one of a process with a batch that is twice as large.
SAME = "--drop-rate 0 --drop-path-rate 0 --head-drop-rate 0 --balance weights --label-smoothing 0.1 --epochs 2"


@pytest.fixture(scope="module")
def pair(learning, people, trained, tmp_path_factory):
    """The folder of what two processes leave that torchrun starts, what each tells, and what both print on stderr."""
    folder = tmp_path_factory.mktemp("pair")
    given = {"learning": learning, "data": str(people), "trained": str(trained)}
    given |= {"folder": str(folder), "same": SAME.split(), "everything": EVERYTHING.split()}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = subprocess.run(
        [*torchrun, two_processes.__file__, json.dumps(given), str(folder / "told")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # processes that wait for each other would wait for ever
    )
    assert child.returncode == 0, child.stderr
    return folder, [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)], child.stderr


@pytest.fixture(scope="module")
def joined(learning, tmp_path_factory):
    """The folder and the steps of one process on the batches of both together."""
    run = tmp_path_factory.mktemp("joined") / "run"
    with Spy() as spy:
        assert main(["train", *learning, *SAME.split(), "--output", str(run)]) == 0
    return run, spy.steps


def seen(folder, name):
    """What each process saw of a training."""
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


def joint(strategy, first, second):
    """Tensors by name of two processes: both have the same, or the first the first rows and the second the others."""
    if strategy == "fsdp":
        return {name: torch.cat([rows, second[name]]) for name, rows in first.items()}
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    return first


def gradients(step, config, double):
    """Of plain PyTorch on a step's batch: in float32, or with what ``double`` makes of all inputs."""
    model = reference.HSTA(config)
    model.load_state_dict(step["weights"], strict=False)
    inputs = [step[name] for name in ("video", "special", "targets", "class weights")]
    if double:
        with torch.no_grad():
            doubled = {name: double(parameter) for name, parameter in model.named_parameters()}
        model, inputs = model.double(), [double(x) for x in inputs]
        model.load_state_dict(doubled, strict=False)
    video, special, targets, weights = inputs
    class_loss(model(video, special), targets, weights, 0.1).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_one_process_on_the_joined_batch(strategy, pair, joined):
    """In every step of the training, from the weights that it had then."""
    folder, _, _ = pair
    _, steps = joined
    config = load_checkpoint(folder / f"{strategy}-same")[0].config
    first, second = (of["steps"] for of in seen(folder, f"{strategy}-same"))
    assert len(first) == len(second) == len(steps) == 6
    ours, same, exact, near = [], [], [], []
    for one, two, both in zip(first, second, steps, strict=True):
        for name in ("video", "special", "targets"):  # dealt out in turns
            assert torch.equal(torch.stack([one[name], two[name]], dim=1).flatten(0, 1), both[name])
        assert one["gradients"].keys() == two["gradients"].keys() == both["gradients"].keys()
        batch = both | {"weights": joint(strategy, one["weights"], two["weights"])}
        ours.append(joint(strategy, one["gradients"], two["gradients"]))
        same.append(gradients(batch, config, None))
        exact.append(gradients(batch, config, torch.Tensor.double))
        near.append(gradients(batch, config, nearby))
    for name in exact[0]:
        ours_, same_, exact_, near_ = (
            torch.stack([step[name] for step in steps]) for steps in (ours, same, exact, near)
        )
        assert_close_to_reference(ours_, same_, exact_, name, near_)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_rate_is_that_of_the_joined_batch(strategy, pair, joined):
    """As one process has it with batches of as many clips: of every weight in every step, warm-up and decay."""
    rates = [step["rates"] for step in joined[1]]
    assert all(min(of) > 0 for of in rates)
    for of in seen(pair[0], f"{strategy}-same"):
        assert [step["rates"] for step in of["steps"]] == rates


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_log_has_the_loss_of_all_clips_and_the_rate_of_their_number(strategy, pair, joined):
    run = pair[0] / f"{strategy}-same"
    losses = torch.tensor([[step["loss"] for step in of["steps"]] for of in seen(pair[0], run.name)])
    assert not torch.equal(losses[0], losses[1])
    _, told = zip(*scalars(run, "loss"), strict=True)
    torch.testing.assert_close(torch.tensor(told), losses.mean(0).view(2, 3).mean(1))
    assert scalars(run, "learning rate") == scalars(joined[0], "learning rate")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_clip_is_dealt_to_one_process_in_each_epoch(strategy, pair):
    first, second = (of["indices"] for of in seen(pair[0], strategy))
    assert len(first) == len(second) == 3 * 6
    for epoch in range(3):
        mine, others = (set(indices[6 * epoch : 6 * epoch + 6]) for indices in (first, second))
        assert mine | others == set(range(12))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_process_and_epoch_draws_from_a_stream_of_its_own(strategy, pair):
    """Of dropout, of mixup and of the changes on the device."""
    seeds = [[step["seed"] for step in of["steps"]] for of in seen(pair[0], strategy)]
    assert all(len(set(of[epoch : epoch + 3])) == 1 for of in seeds for epoch in (0, 3, 6))
    assert len({*seeds[0], *seeds[1]}) == 6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopped_and_resumed_ends_with_the_same_bits(strategy, pair):
    folder, told, _ = pair
    for of in told:
        assert (of[strategy], of[f"{strategy} stopped"], of[f"{strategy} resumed"]) == (0, 130, 0)
    for name in (STATE, WEIGHTS):
        assert (folder / strategy / name).read_bytes() == (folder / f"{strategy}-resumed" / name).read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_checkpoint_is_whole_and_the_average_of_the_weights(strategy, pair):
    folder, _, _ = pair
    state = safetensors.torch.load_file(folder / strategy / STATE)
    model, _ = load_checkpoint(folder / strategy)
    steps = [
        joint(strategy, one["weights"], two["weights"])
        for one, two in zip(*(of["steps"] for of in seen(folder, strategy)), strict=True)
    ]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[f"average.{name}"]), name
        # From the weights after each step: the first as they are, then halves of what was and what is.
        after = [*(weights[name] for weights in steps[1:]), state[f"weight.{name}"]]
        expected = after[0]
        for weights in after[1:]:
            expected = expected.lerp(weights, 0.5)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_clips_are_tested_once_and_by_one_process(pair, people, trained):
    folder, told, _ = pair
    model, task = load_checkpoint(trained)
    clips = read_dataset("casme3", people).clips
    alone = probabilities(model, clips[:TESTED], task, batch_size=2, fabric=Fabric(accelerator="cpu"))
    assert [of["tested here"] for of in told] == [3, 2]
    for of in told:
        torch.testing.assert_close(torch.tensor(of["rows"]), torch.tensor(alone))
    assert [of["evaluate"] for of in told] == [0, 0]
    with (folder / "evaluated" / "predictions.csv").open() as file:
        names = [(row["subject"], row["clip"]) for row in csv.DictReader(file)]
    assert sorted(names) == sorted((clip.subject, clip.name) for clip in clips)


def test_what_all_processes_refuse_is_told_by_the_first(pair):
    folder, told, said = pair
    assert [of["not asked to resume"] for of in told] == [2, 2]
    assert said.count("holds a run: --resume goes on with it") == 1
    assert [of["one clip"] for of in told] == ["1 clips are too few for 2 devices: give fewer --devices", "2"]
    assert not (folder / "few").exists()


def test_more_processes_than_devices_are_refused(pair):
    """Each would else do the whole training."""
    folder, told, said = pair
    assert [of["one device"] for of in told] == [2, 2]
    assert "torchrun started 2 processes: --devices times --num-nodes must be that" in said
    assert not (folder / "one").exists()


def test_one_command_starts_its_processes_and_the_checkpoint_is_read_by_one(learning, clips, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--devices", "2", "--strategy", "fsdp", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2"]
    child = subprocess.run(
        [sys.executable, "-m", "hsta", "train", *learning, *options, "--output", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == f"trained on 12 clips: {run / 'checkpoint'}\n"
    assert main(["predict", str(clips[0]), "--checkpoint", str(run), "--output", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in load_checkpoint(run)[1].class_names
