"""What is chosen for a launch, and how little Python it takes; no kernel runs and no GPU is needed."""

from __future__ import annotations

import copy
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed on this machine")

from hsta_kernels import backends

if backends.triton_interpreted:
    pytest.skip("Triton's launcher is replaced by its interpreter", allow_module_level=True)

from hsta_kernels.ops.add_layer_norm import triton as norm_launch
from hsta_kernels.ops.cross_modal_attention import autograd as crossmodal_autograd
from hsta_kernels.ops.cross_modal_attention import triton as absorbed_launch
from hsta_kernels.ops.launch import triton as launching
from hsta_kernels.ops.launch.triton_table import SINCE, TABLE
from hsta_kernels.ops.space_time_attention import triton as attention_launch
from hsta_kernels.ops.space_time_attention.grid import Grid
from tests.triton.test_gpu import OUR_KERNELS
from tools import tune
from tools.ahead_of_time import (
    ARCHITECTURES,
    absorbed_attention,
    attention,
    crossmodal,
    float32_products,
    gelu,
    launches,
    norm,
)

OPERATORS = {
    "time": attention("time", 8, 196, 1, 64),
    "space": attention("space", 8, 196, 1, 64),
    "absorbed_attention": absorbed_attention(588, 768),
    "crossmodal": crossmodal(588, 768),
    "norm": norm(1000, 768),
    "gelu": gelu(1000, 768, 0.1),
}


@pytest.fixture(autouse=True)
def forgotten():
    """What the table said for another version of Triton."""
    yield
    launching._row.cache_clear()


@pytest.mark.parametrize("name", OPERATORS)
def test_launches_take_little_python(name):
    """From the second call on, the table is not searched again and few functions of ours run, both passes together."""
    package, calls = str(Path(launching.__file__).parents[2]), 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(package)

    def run():
        return launches(lambda: OPERATORS[name](torch.bfloat16), 90)

    run()
    searched = launching._row.cache_info().misses
    sys.setprofile(count)
    try:
        noted = run()
    finally:
        sys.setprofile(None)
    assert launching._row.cache_info().misses == searched
    assert calls <= 11 * len(noted)


@pytest.mark.parametrize(
    ("capability", "rows"),
    [((8, 0), 80), ((8, 6), 89), ((8, 9), 89), ((9, 0), 90), ((10, 0), 100), ((10, 3), 100), ((11, 0), 80),
     ((12, 0), 120), ((12, 1), 120)],
)  # fmt: skip
def test_every_gpu_has_configurations(capability, rows, monkeypatch):
    monkeypatch.setattr(launching, "_capability", lambda device: capability)
    assert launching.architecture(torch.device("cuda:0")) == rows


def test_old_gpus_are_refused(monkeypatch):
    """The reason names the argument; the GPU is asked for its capability once."""
    asked = []
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (7, 5))
    launching._capability.cache_clear()
    for _ in range(3):
        assert launching._capability(torch.device("cuda:0")) == (7, 5)
    assert len(asked) == 1
    launching._capability.cache_clear()
    monkeypatch.setattr(launching, "_capability", lambda device: (7, 5))
    monkeypatch.setattr(backends, "triton_interpreted", True)
    assert launching.refuse("x", torch.zeros(2, 8), "bias_gelu_forward") == "x is on a GPU older than sm_80"


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_heads_of_up_to_256_elements(arch, dtype, monkeypatch):
    """On every GPU and in every dtype, over time as over space; what is wider is refused by name."""
    monkeypatch.setattr(backends, "triton_interpreted", True)
    monkeypatch.setattr(launching, "architecture", lambda device: arch)
    grid = Grid(1, 2, "joint", 0, 1.0)
    for head_dim in (129, 160, 256):
        assert attention_launch.refuse([torch.empty(2, 8, head_dim, dtype=dtype)], grid) is None
        for axis in ("time", "space"):
            run = attention(axis, 16, 196, 1, head_dim)
            names = {launch.name for launch in launches(lambda run=run: run(dtype), arch)}
            assert names >= {"merge_prefix", "sum_prefix"}
    reason = attention_launch.refuse([torch.empty(2, 8, 257, dtype=dtype)], grid)
    assert reason == f"qkv has rows of 257 {dtype}; the kernels do not go so wide"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert attention_launch.refuse([torch.empty(2, 8, 128, dtype=dtype)], grid) is None
    assert "on AMD's GPUs" in attention_launch.refuse([torch.empty(2, 8, 129, dtype=dtype)], grid)


@pytest.mark.parametrize(
    ("change", "rows"),
    # groups of 5, 64, 65, 197 and 256 rows with the prefix, and one of 257; over all tokens and over many frames, too
    [({"patches": 4}, 64), ({"patches": 63}, 64), ({"patches": 64}, 128), ({}, 256), ({"patches": 255}, 256),
     ({"patches": 256}, None), ({"head_dim": 40}, 256), ({"prefix": "none"}, 256), ({"packed": False}, 256),
     ({"axis": "joint", "frames": 1}, 256), ({"axis": "time", "frames": 130, "patches": 4}, 256),
     ({"arch": 80}, None), ({"arch": 100}, None), ({"dtype": torch.float32}, None), ({"head_dim": 32}, None),
     ({"head_dim": 80}, None), ({"prefix": "frame_mean"}, None), ({"dropout_rate": 0.1}, None),
     ({"version": (3, 6)}, 256), ({"version": (3, 5)}, None)],
)  # fmt: skip
def test_what_takes_one_kernel_backward(change, rows, monkeypatch):
    """Groups that a program of an H100 holds whole; all else two kernels."""
    case = {"axis": "space", "frames": 8, "patches": 196, "num_prefix_tokens": 1, "head_dim": 64, "batch": 1}
    choices = {"arch": 90, "dtype": torch.bfloat16, "version": (3, 9)} | change
    arch, dtype, release = (choices.pop(key) for key in ("arch", "dtype", "version"))
    monkeypatch.setattr(launching, "version", lambda: release)
    launching._row.cache_clear()
    noted = {launch.name: launch for launch in launches(lambda: attention(**case | choices)(dtype), arch)}
    launching._row.cache_clear()
    assert ("group_backward" in noted) == (rows is not None)
    assert {"flash_backward_q", "flash_backward_kv"} & noted.keys() == (
        set() if rows else {"flash_backward_q", "flash_backward_kv"}
    )
    if rows:
        assert noted["group_backward"].options["ROWS"] == rows
        groups = noted["group_backward"].arguments[16]
        assert noted["group_backward"].programs == groups * 12  # a program for each group of each head


@pytest.mark.parametrize(
    ("patches", "tail", "tiles"),
    # what is left of full tiles of 64 fills a small tail, or would fill two of them
    [(49, 64, 1), (63, 64, 1), (72, None, 2), (100, 64, 2), (144, None, 3), (196, 128, 2), (255, 128, 2)],
)
def test_short_groups_are_all_tail(patches, tail, tiles):
    """Forward, a group's queries with its prefix token, on an H100."""
    noted = launches(lambda: attention("space", 8, patches, 1, 64, batch=1)(torch.bfloat16), 90)
    forward = next(launch for launch in noted if launch.name == "flash_forward")
    assert (forward.options["BLOCK_M"] == 0) == (tail is not None)
    assert forward.options["TAIL_M"] == tail or tail is None
    assert forward.programs == 8 * 12 * tiles


@pytest.mark.parametrize("arch", (80, 90, 100))
def test_few_frames_take_small_tiles(arch):
    """Of 16 rows, in which there are as many sequences beside the prefix as there is room for."""
    tiles = {}
    for frames in (3, 7, 8):
        for launch in launches(lambda frames=frames: attention("time", frames, 196, 1, 64)(torch.bfloat16), arch):
            if launch.name in ("time_forward", "time_backward") and launch.options["ROWS"] == 16:
                tiles[frames, launch.name] = launch.options["PACK"]
    assert tiles == {(3, "time_forward"): 5, (3, "time_backward"): 5, (7, "time_backward"): 2}


@pytest.mark.parametrize("arch", (80, 90, 100))
def test_without_a_prefix_up_to_16_frames_take_small_tiles(arch):
    tiles = {}
    for frames in (8, 9, 16, 17):
        for launch in launches(lambda frames=frames: attention("time", frames, 196, 0, 64)(torch.bfloat16), arch):
            tiles.setdefault(frames, set()).add((launch.options["ROWS"] == 16, launch.options["PACK"]))
    assert tiles[8] == {(True, 2)} and tiles[9] == tiles[16] == {(True, 1)}
    assert not any(small for small, _ in tiles[17])


@pytest.mark.parametrize("axis", ("time", "space"))
def test_any_number_of_sequences(axis):
    """Grids have one dimension (`launches` sees to it), which takes 2³¹ - 1 programs."""
    run = attention("time", 4, 200_000, 0, 32, 1) if axis == "time" else attention("space", 200_000, 4, 0, 32, 1)
    assert all(2**16 < launch.programs < 2**31 for launch in launches(lambda: run(torch.bfloat16), 90))


@pytest.mark.parametrize("name", OPERATORS)
def test_compute_sanitizer_looks_at_every_kernel(name):
    """tests/triton/test_gpu.py has it look at kernels of these names alone."""
    for launch in launches(lambda: OPERATORS[name](torch.bfloat16), 90):
        assert re.search(OUR_KERNELS, launch.name), launch.name


def test_nothing_is_added_up_in_the_order_of_arrival():
    paths = list(Path(launching.__file__).parents[1].glob("*/triton_*.py"))
    assert len(paths) >= 8
    for path in paths:
        assert "atomic" not in path.read_text(), path


def test_tuning_finds_the_table_again(monkeypatch, tmp_path):
    """`python -m tools.tune --compile-only`, for one kernel; what it writes is the table as it is."""
    monkeypatch.setattr(tune, "FILE", tmp_path / "table.py")
    monkeypatch.setattr("sys.argv", ["tune", "--compile-only", "--only", "bias_gelu_forward"])
    monkeypatch.setattr(tune, "ARCHITECTURES", (90,))
    tune.main()
    assert (tmp_path / "table.py").read_text() == Path(launching.__file__).with_name("triton_table.py").read_text()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tuning_knows_every_row_of_the_table(arch):
    """And tries it first: without a GPU it stays, unless it spills."""
    first: dict[tuple, dict[str, int]] = {}
    for row in tune.rows((arch,), ""):
        key, config = row.candidates[0]
        first[row.kernel, key] = config
    for kernel, rows in launching.table(launching.version()).items():
        for key, config in rows.items():
            assert key[0] != arch or first[kernel, key] == config, (kernel, key)


def test_rows_that_amd_takes_have_no_option_of_nvidia():
    """AMD's GPUs take the rows of sm_80; their compiler has no `maxnreg`."""
    for release in ((0, 0), *SINCE):
        for kernel, rows in launching.table(release).items():
            for key, config in rows.items():
                assert key[0] != 80 or "maxnreg" not in config, (release, kernel, key)


def test_tuning_keeps_a_row_that_is_none_of_its_candidates(monkeypatch):
    row = tune.rows((90,), "flash_forward")[0]
    key, config = row.candidates[0]
    more = {**config, "maxnreg": 255}
    monkeypatch.setattr(launching, "table", lambda installed: {row.kernel: {key: more}})
    assert row.candidates[0] == (key, more)
    assert (key, config) in row.candidates


def test_tuning_runs_the_kernel_that_it_tunes():
    """Also where the table has another that would take its place."""
    for row in tune.rows((90,), "backward"):
        (key, config), dtype = row.candidates[0], torch.bfloat16 if row.size == 2 else torch.float32
        with tune.only(row.kernel, key, config):
            noted = launches(lambda row=row, dtype=dtype: row.case(dtype), 90)
        assert row.kernel in {launch.name for launch in noted}, row


def test_tuning_leaves_what_it_had_no_time_for(monkeypatch, tmp_path, capsys):
    first, *_ = rows = tune.rows((90,), "bias_gelu")
    assert [row.size for row in rows] == [2, 2, 4, 4]  # half types first
    key, config = first.candidates[1]
    changed = tune.merged(TABLE, rows, {first: (key, config)})
    assert TABLE[first.kernel][key] != config == changed[first.kernel][key]
    assert changed | {first.kernel: TABLE[first.kernel]} == TABLE
    assert key not in tune.merged(TABLE, rows, {first: None})[first.kernel]
    none_fits = tune.merged(TABLE, rows, dict.fromkeys(rows))
    assert none_fits[first.kernel].keys() == {other for other in TABLE[first.kernel] if other[0] != 90}

    monkeypatch.setattr("sys.argv", ["tune", "--compile-only", "--only", "bias_gelu", "--minutes", "0"])
    monkeypatch.setattr(tune, "FILE", tmp_path / "table.py")
    assert tune.main() == 1
    assert capsys.readouterr().out.count("as it was: bias_gelu") == 20
    assert not tune.FILE.exists()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_old_versions_of_triton_get_what_they_can_compile(dtype, monkeypatch):
    """3.2 fails to pipeline some loops, 3.2 and 3.3 to multiply batches of matrices well."""
    for module in (launching, absorbed_launch):
        monkeypatch.setattr(module, "version", lambda: (3, 2))
    for run in OPERATORS.values():
        assert all(launch.options.get("num_stages", 1) == 1 for launch in launches(lambda run=run: run(dtype), 90))
    for release, expected in (((3, 3), "row_scores"), ((3, 4), "absorbed_forward")):
        monkeypatch.setattr(absorbed_launch, "version", lambda release=release: release)
        first = launches(lambda: OPERATORS["absorbed_attention"](torch.bfloat16), 90)[0]
        assert first.name == expected


def test_a_version_takes_the_newest_rows_that_are_not_newer_than_it(monkeypatch):
    """A row that a newer version adds, replaces or takes away is no row of an older one."""
    wide, narrow, longer = (90, 2, 512, 9), (90, 2, 64, 9), (90, 2, 512, 99)
    monkeypatch.setattr(launching, "TABLE", {"kernel": {wide: {"BLOCK": 1}, narrow: {"BLOCK": 2}}, "other": {}})
    newest, newer = {narrow: {"BLOCK": 3}, wide: {}}, {longer: {"BLOCK": 4}, wide: {"BLOCK": 5}}
    monkeypatch.setattr(launching, "SINCE", {(3, 10): {"kernel": newest}, (3, 9): {"kernel": newer}})
    table = launching.table.__wrapped__
    first = {wide: {"BLOCK": 1}, narrow: {"BLOCK": 2}}
    second = {wide: {"BLOCK": 5}, narrow: {"BLOCK": 2}, longer: {"BLOCK": 4}}
    assert [table(version)["kernel"] for version in ((3, 2), (3, 8), (3, 9))] == [first, first, second]
    assert table((3, 10)) == table((4, 0)) == {"kernel": {narrow: {"BLOCK": 3}, longer: {"BLOCK": 4}}, "other": {}}
    assert table((3, 2))["kernel"] == first


@pytest.mark.parametrize("version", ((3, 6), (3, 9)))
def test_tuning_leaves_the_rows_of_other_versions(version, monkeypatch, tmp_path):
    """What tuning writes is read back as what was chosen for this version; older and newer ones keep theirs."""
    releases = ((3, 2), (3, 5), (3, 6), (3, 8), (3, 9))
    before = {release: launching.table(release) for release in releases}
    chosen = copy.deepcopy(before[version])
    chosen["bias_gelu_forward"][90, 2, tune.ANY, tune.ANY]["BLOCK"] = 64
    del chosen["bias_gelu_backward"][90, 2, tune.ANY, tune.ANY]
    monkeypatch.setattr(tune, "FILE", tmp_path / "table.py")
    monkeypatch.setattr(launching, "version", lambda: version)
    tune.write(chosen, tune.FILE)
    written = runpy.run_path(str(tune.FILE))
    monkeypatch.setattr(launching, "TABLE", written["TABLE"])
    monkeypatch.setattr(launching, "SINCE", written["SINCE"])
    table = launching.table.__wrapped__
    assert table(version) == chosen
    assert all(table(release) == before[release] for release in releases if release < version)


@pytest.mark.parametrize(
    ("width", "dtype", "whole"),
    [
        (768, torch.bfloat16, True),
        (768, torch.float32, False),
        (1536, torch.bfloat16, False),
        (96, torch.float32, False),
    ],
)
def test_no_row_is_too_wide_for_crossmodal_attention(width, dtype, whole, monkeypatch):
    monkeypatch.setattr(backends, "triton_interpreted", True)
    monkeypatch.setattr(absorbed_launch, "version", lambda: (3, 4))
    assert (
        backends.OPERATORS["cross_modal_attention"].refusal("triton", torch.zeros(1, 5, width, dtype=dtype), 12) is None
    )
    names = {launch.name for launch in launches(lambda: absorbed_attention(588, width)(dtype), 90)}
    assert ("absorbed_forward" in names, "absorbed_columns" in names) == (whole, not whole)


@pytest.mark.parametrize(
    ("batch", "tokens", "multiprocessors", "programs"),
    # each multiprocessor one program where that is possible, whole waves where it is not
    [(1, 588, 132, 13), (8, 588, 132, 13), (32, 588, 132, 13), (64, 588, 132, 2), (64, 588, 600, 13),
     (64, 1568, 132, 2), (8, 1568, 132, 33), (1, 100_000, 132, 128),
     (64, 100_000, 132, 2), (64, 200, 1, 1), (3, 0, 132, 1)],
)  # fmt: skip
def test_runs_of_crossmodal_attention(batch, tokens, multiprocessors, programs):
    """All rows are dealt out, none twice, and no program goes away empty; runs do not depend on batch or GPU."""
    rows = torch.empty(batch, tokens, 768, device="meta")
    split = absorbed_launch.split_rows(rows, 12, multiprocessors)
    assert split.programs == programs
    assert split.rows % 16 == 0
    assert (programs - 1) * split.runs * split.rows < tokens + 1 <= programs * split.runs * split.rows
    other = absorbed_launch.split_rows(rows[:1], 12, 1)
    assert split.rows == other.rows
    assert split.runs * split.programs_of_group == other.runs * other.programs_of_group


class Computing(TorchDispatchMode):
    """Notes PyTorch's operations, but for those that compute nothing."""

    VIEWS = frozenset((
        "_unsafe_view", "detach", "empty_like", "expand", "new_empty", "permute", "slice", "t", "transpose", "unbind",
        "unsqueeze", "view",
    ))  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ not in self.VIEWS:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_crossmodal_attention_is_four_launches_and_six():
    """The whole operator, forward and backward, in the model's sizes: PyTorch computes nothing."""
    shapes = (8, 589, 768), (768, 768), (768,)
    rows, matrix, vector = (torch.empty(s, dtype=torch.bfloat16, device="meta", requires_grad=True) for s in shapes)
    arguments = rows[:, 0], rows[:, 1:], vector, vector, matrix, vector, matrix, matrix, vector, 12, 1e-6, "triton"
    forward, backward, outs = Computing(), Computing(), []

    def run():
        with forward:
            outs.append(crossmodal_autograd.CrossModalAttention.apply(vector, *arguments))

    def run_backward():
        with backward:
            outs[0].grad_fn.apply(torch.empty_like(outs[0]))

    # The dispatcher would ask for shapes alone of tensors without data.
    with mock.patch.object(crossmodal_autograd, "call", lambda op, *arguments: op._init_fn(*arguments)):
        names = [launch.name for launch in launches(run, 90)]
        of_backward = [launch.name for launch in launches(run_backward, 90)]
    assert names == ["absorb_query", "absorbed_forward", "merge_z", "project_values"]
    assert forward.names == []
    assert of_backward == [
        "project_values_backward", "absorbed_backward", "sum_parts", "query_backward", "absorb_query_backward",
        "norm_backward",
    ]  # fmt: skip
    assert backward.names == []


def test_the_weights_of_add_layer_norm_cost_one_launch_more():
    """Half-precision weights are read as they are, and one sum takes both gradients out of the programs' parts."""
    rows, weight = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((1000, 768), (768,)))

    def run():
        norm_launch.forward(rows, rows, weight, weight, 1e-6, rows.dtype)
        assert norm_launch.backward(rows, rows, rows, weight, weight, 1e-6, False)[2].dtype == torch.float32

    with Computing() as computing:
        noted = launches(run, 90)
    assert [launch.name for launch in noted] == ["add_layer_norm_forward", "add_layer_norm_backward"]
    assert computing.names == ["aten.sum.dim_IntList"]


def test_float32_products_are_as_torch_is_set(monkeypatch):
    for setting, expected in (("float32", "ieee"), ("tf32", "tf32")):
        with float32_products(setting):
            assert launching.precision(torch.float32) == expected
            assert launching.precision(torch.bfloat16) == "ieee"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with float32_products("tf32"):
        assert launching.precision(torch.float32) == "ieee"
