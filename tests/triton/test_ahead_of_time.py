"""Kernels compiled for GPUs that are not here: shared memory, spills, matrix instructions, wide loads.

docs/triton-resources.md holds what every kernel takes, and is held to the limits here. It must be of the kernels and
configurations there are, and every line of it is compared with what the compiler says. A change that shows in the table
is made knowingly, by writing the document anew with `python -m tools.ahead_of_time`.
"""

from __future__ import annotations

from unittest import mock

import pytest

from hsta_kernels import backends

if not backends._triton_installed or backends.triton_interpreted:
    pytest.skip(
        "Triton's compiler is not there: not installed, or replaced by its interpreter", allow_module_level=True
    )

import torch
import triton

from hsta_kernels.ops.launch.triton import table, version
from tools import ahead_of_time
from tools.ahead_of_time import (
    AMD,
    ARCHITECTURES,
    CASES,
    DTYPES,
    OPERATORS,
    SHARED_MEMORY,
    Launch,
    Resources,
    Target,
    attention,
    compile_for,
    compile_launch,
    crossmodal,
    description,
    documented,
    everything,
    fingerprint,
    gelu,
    label,
    launches,
    norm,
)

TARGETS: dict[str, Target] = {label(target): target for target in (*ARCHITECTURES, *AMD)}
VERSION, FINGERPRINTS, DOCUMENTED = documented()
same_compiler = pytest.mark.skipif(
    triton.__version__ != VERSION,
    reason=f"docs/triton-resources.md was written by Triton {VERSION}, this is another one",
)


@same_compiler
def test_the_document_has_every_kernel():
    kernels = [description(*of, target, launch) for target in TARGETS.values() for *of, launch in everything(target)]
    assert list(DOCUMENTED) == kernels


def test_the_document_is_of_these_kernels():
    """A changed kernel is compiled anew for the document: `python -m tools.ahead_of_time --changed`."""
    assert {name: fingerprint(name) for name in OPERATORS} == FINGERPRINTS


@same_compiler
def test_every_configuration_is_compiled():
    sizes = {dtype: 2 if dtype.endswith("16") else 4 for dtype in DTYPES}
    for kernel, rows in table(version()).items():
        for (arch, size, *_), options in rows.items():
            assert any(
                launch.name == kernel and sizes[dtype] == size and options.items() <= launch.options.items()
                for _, dtype, launch in everything(arch)
            ), f"no case runs {kernel} for sm_{arch}, {size} bytes an element, with {options}"


def test_limits():
    """Shared memory, spills, matrix units and 16-byte loads of every kernel, as documented."""
    for key, resources in DOCUMENTED.items():
        _, kernel, target, dtype, *_ = key.strip("| ").split(" | ")
        assert resources.shared_memory <= SHARED_MEMORY[TARGETS[target]], key
        if target in AMD:
            continue  # no configuration was chosen for them
        assert resources.spills == 0, key
        if kernel.startswith(("time", "flash", "group", "absorb", "project", "query", "row")):
            assert (resources.matrix == "none") == (dtype == "float32"), key  # IEEE float32 has no matrix unit
        of_few_columns = kernel in ("project_values_backward", "absorb_query_backward")  # whose rows are 64 bytes
        if kernel.startswith(("time", "flash", "group", "absorb", "project", "row", "add", "bias", "normalize")):
            assert of_few_columns or not resources.wide_loads.startswith("0/"), key


@pytest.mark.parametrize(
    ("resources", "good"),
    [
        (Resources(255, 227 << 10, 0, "wgmma", "1/1"), True),
        (Resources(255, 0, 1, "wgmma", "1/1"), False),
        (Resources(32, (227 << 10) + 1, 0, "wgmma", "1/1"), False),
        (RuntimeError("ptxas died"), False),
    ],
)
def test_check_tells_what_spills_or_does_not_fit(resources, good, monkeypatch):
    """`python -m tools.ahead_of_time --check 90`, for one kernel: other versions of Triton may spill."""
    monkeypatch.setattr(ahead_of_time, "compile_launch", mock.Mock(side_effect=[resources]))
    text, found = ahead_of_time.check(90, 0)
    assert found == good
    assert text.startswith("| time T=8 D=64 | time_forward | sm_90 | bfloat16 |")


def check_against_the_document(case: str, dtype: str, target: Target, launch: Launch) -> None:
    key, resources = description(case, dtype, target, launch), compile_launch(launch, target)
    assert (key, resources) == (key, DOCUMENTED.get(key))


@pytest.mark.parametrize("arch", (80, 90, 100))
@pytest.mark.parametrize(
    "dtype",
    # float16 takes the tiles and the instructions of bfloat16.
    [pytest.param(dtype, marks=[pytest.mark.slow] * (dtype == "float16")) for dtype in DTYPES],
)
def test_every_kernel(dtype, arch):
    """The compiler says what the document says; another version's kernels must compile and fit."""
    if arch == 100 and version() < (3, 3):
        pytest.skip("Triton 3.2 does not know sm_100")
    for case, of, launch in everything(arch):
        if of == dtype and triton.__version__ == VERSION:
            check_against_the_document(case, of, arch, launch)
        elif of == dtype:
            resources = compile_launch(launch, arch)
            assert resources.shared_memory <= SHARED_MEMORY[arch], description(case, of, arch, launch)


@pytest.mark.skipif(triton.__version__ == VERSION, reason="the document has every kernel of this version")
@pytest.mark.parametrize(
    ("arch", "dtype", "case"),
    [
        (90, "bfloat16", ""),  # the first of each kernel
        (90, "float32", "D=128"),
        (80, "bfloat16", "absorbed C=768"),
        (80, "bfloat16", "space N=196 D=64"),
        (100, "bfloat16", "time T=8 D=64"),
        (100, "bfloat16", "space N=196 D=64"),
    ],
)
def test_another_version_spills_nothing(arch, dtype, case):
    """A sample, which test_older_version.py has older Tritons compile; `--check` compiles everything."""
    done = set()
    for of, its_dtype, launch in everything(arch):
        if its_dtype == dtype and case in of and launch.name not in done:
            done.add(launch.name)
            resources = compile_launch(launch, arch)
            assert resources.spills == 0, description(of, dtype, arch, launch)
            assert resources.shared_memory <= SHARED_MEMORY[arch], description(of, dtype, arch, launch)
    assert done


@pytest.mark.parametrize(
    ("arch", "run"),
    [
        *((arch, attention("space", 8, 196, 1, 64, prefix="frame_mean", token_order="patch_major"))
          for arch in (80, 90, 100)),
        (90, attention("time", 8, 196, 1, 64, prefix="none", token_order="patch_major")),
        (90, attention("joint", 8, 196, 0, 64, packed=False)),
        *((arch, attention(axis, 8, 196, 1, 64, dropout_rate=0.1)) for arch in (80, 90) for axis in ("time", "space")),
        (80, attention("space", 8, 60, 1, 160)),
        *((arch, crossmodal(588, width, heads)) for arch in (80, 100) for width, heads in ((288, 3), (384, 6))),
    ],
    ids=("TimeSformer, space, 80", "TimeSformer, space, 90", "TimeSformer, space, 100", "TimeSformer, time", "joint",
         "dropout, time, 80", "dropout, space, 80", "dropout, time, 90", "dropout, space, 90", "heads of 160, 80",
         "C=288, 80", "C=384, 80", "C=288, 100", "C=384, 100"),
)  # fmt: skip
def test_what_other_models_ask_for_spills_nothing(arch, run):
    """Of which the document has nothing: patch-major tokens, other ways with the prefix, three tensors, dropout, tiles
    wider than heads, narrow projections."""
    if arch == 100 and version() < (3, 3):
        pytest.skip("Triton 3.2 does not know sm_100")
    for launch in launches(lambda: run(torch.bfloat16), arch):
        resources = compile_launch(launch, arch)
        assert resources.spills == 0, launch.name
        assert resources.shared_memory <= SHARED_MEMORY[arch], launch.name
        assert not resources.wide_loads.startswith("0/"), launch.name


@same_compiler
@pytest.mark.parametrize("name", ("sm_89", "sm_120", "gfx950"))
def test_relatives(name):
    """GPUs that take configurations of others: the most demanding kernel of each operator, the model's size."""
    target, done = TARGETS[name], set()
    for case, dtype, launch in everything(target):
        last = ("time_backward", "flash_backward_kv", "absorbed_backward", "add_layer_norm_backward")
        if launch.name in last and launch.name not in done:
            check_against_the_document(case, dtype, target, launch)
            done.add(launch.name)
    assert len(done) == 4


@pytest.mark.parametrize("run", [attention("time", 1, 1, 1, 8, 1), crossmodal(1, 8, 1, 1), norm(1, 1), gelu(1, 1, 0.5)])
def test_sizes_of_one(run):
    """The compiler takes an argument of 1 for a constant, which not everything can be done with."""
    for launch in launches(lambda: run(torch.bfloat16), 90):
        compile_launch(launch, 90)


@pytest.mark.parametrize(
    "case",
    [
        "time T=8 D=64",
        "space N=196 D=64",
        "joint N=588 D=64",
        "normalized and rotated D=64",
        "crossmodal C=768 H=12",
        "add_layer_norm C=768",
        "bias_gelu and dropout C=3072",
    ],
)
def test_amd(case):
    """Nothing in the kernels is for one vendor: they compile for an AMD GPU and fit its 64 KiB of shared memory."""
    if version() < (3, 3):
        pytest.skip("Triton 3.2 needs ROCm's linker to compile for AMD GPUs")
    for launch in launches(lambda: CASES[case](torch.bfloat16), 80):
        compiled = compile_for(launch, "gfx942")
        assert compiled.metadata.shared <= 64 << 10
        multiplies = launch.name.startswith(("time", "flash", "absorb", "project", "query"))
        assert ("v_mfma" in compiled.asm["amdgcn"]) == multiplies
