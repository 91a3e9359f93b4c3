"""Launches of the Triton kernels of crossmodal attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hsta_kernels.ops.launch import current_device
from hsta_kernels.ops.launch.triton import (
    Chain,
    configuration,
    configured,
    dropout_arguments,
    in_units,
    multiprocessors,
    new_chain,
    power_of_2,
    precision,
    registers_first,
    version,
)
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor

_MOST_RUNS = 128  # of a sample: one program a head puts them together
# Tiles of the projections, by the bytes of an element: 16 samples, as few as matrix units multiply, and BLOCK_C columns
# of a weight at a time, as many as spill no registers. A program has 128 columns of u, for each has the query's
# product anew, in float32 64, for registers; or 16 results, so that a weight's rows are enough programs.
_ABSORB_QUERY = {
    2: {"BLOCK": 16, "BLOCK_C": 128, "CHUNK": 128, "num_warps": 8, "num_stages": 3},
    4: {"BLOCK": 16, "BLOCK_C": 64, "CHUNK": 64, "num_warps": 8, "num_stages": 3},
}
_PROJECT_VALUES = {
    2: {"BLOCK": 16, "BLOCK_D": 16, "BLOCK_C": 256, "num_warps": 4, "num_stages": 3},
    4: {"BLOCK": 16, "BLOCK_D": 16, "BLOCK_C": 128, "num_warps": 4, "num_stages": 3},
}
# A third stage would take 1 to 2 % off the backward pass, and spills heads of 16 halves on sm_80.
_QUERY_BACKWARD = {
    2: {"BLOCK": 16, "BLOCK_D": 16, "BLOCK_C": 128, "num_warps": 8, "num_stages": 2},
    4: {"BLOCK": 16, "BLOCK_D": 16, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3},
}
# 32 of a weight's columns a program: more would be fewer programs, and wait.
_WEIGHT_GRADIENTS = {
    2: {"BLOCK": 16, "CHUNK": 32, "num_warps": 8, "num_stages": 2},
    4: {"BLOCK": 16, "CHUNK": 32, "num_warps": 8, "num_stages": 2},
}
# 8 heads at a time of a sample's 1,024 columns, or of 16 samples' 32.
_NORM_BACKWARD = {"BLOCK": 16, "BLOCK_C": 1024, "CHUNK": 32, "BLOCK_H": 8, "num_warps": 8, "enable_fp_fusion": False}


def refuse(tokens: torch.Tensor, num_heads: int = 1, dropout_rate: float = 0.0) -> str | None:
    return refuse_tensor("tokens", tokens, "absorbed_columns")


def forward(
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    eps: float,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
    chain: Chain | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continues the chain of launches that is given."""
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed import absorbed_forward, merge_z
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import absorbed_columns, row_scores

    batch, heads, width = u.shape
    z, stats = u.new_empty(u.shape), u.new_empty((batch, heads, 2))
    if not z.numel():
        return z, stats if seed is None else u.new_empty((batch, heads, 3))
    whole = seed is None and _whole_rows(tokens, heads)
    split = split_rows(tokens, heads, multiprocessors(tokens.device)) if whole else split_columns(tokens, heads)
    z_parts, stat_parts = z, stats
    if split.programs > 1:
        z_parts = u.new_empty((batch, split.programs, heads, width))
        stat_parts = u.new_empty((batch, split.programs, heads, 2))
    strides, unit = in_units((_distance(query_token, tokens), query_token.stride(0), *tokens.stride()[:2]))
    sizes = (*strides, tokens.shape[1], heads)
    chain = chain or new_chain(tokens.device)
    with current_device(tokens):
        factors = None if seed is None else _factors(u, tokens, dropout_rate, seed, chain)
        if whole:
            options = _whole_row_options("absorbed_forward", tokens, heads, unit)
            absorbed_forward[(batch * split.programs,)](
                u, tokens, z_parts, stat_parts, *sizes, split.programs, split.runs, split.rows, eps, **options,
                **next(chain),
            )  # fmt: skip
        else:
            scores = u.new_empty((batch, heads, 1 + tokens.shape[1]))
            rows = u.new_empty((batch, 1 + tokens.shape[1], 2))
            options = _options("row_scores", tokens, heads, unit)
            row_scores[(_blocks(tokens, options),)](u, tokens, scores, rows, *sizes, eps, **options, **next(chain))
            options = _options("absorbed_columns", tokens, heads, unit)
            absorbed_columns[(batch * split.programs * _chunks(tokens, options),)](
                tokens, scores, rows, factors, z_parts, stat_parts, *sizes, split.programs, split.rows, **options,
                **next(chain),
            )  # fmt: skip
        if split.programs > 1:
            merge_z[(batch * heads,)](
                z_parts, stat_parts, z, stats, heads, width, split.programs, split.programs_of_group,
                BLOCK_C=power_of_2(width), enable_fp_fusion=False, **next(chain),
            )  # fmt: skip
    if factors is not None:
        weights = torch.exp2(scores - stats[..., :1]) * factors
        stats = torch.cat([stats, weights.sum(-1, keepdim=True) / stats[..., 1:]], dim=-1)
    return z, stats


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
    grad_s: torch.Tensor | None = None,
    chain: Chain | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Continues the chain of launches that is given."""
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed import absorbed_backward, sum_parts
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import absorbed_columns_backward, row_gradients

    batch, heads, width = u.shape
    grad_u = u.new_empty(u.shape)
    grad_query, grad_tokens = query_token.new_empty(query_token.shape), tokens.new_empty(tokens.shape)
    if not z.numel():
        return grad_u, grad_query, grad_tokens
    whole = seed is None and _whole_rows(tokens, heads)
    split = split_rows(tokens, heads, multiprocessors(tokens.device)) if whole else split_columns(tokens, heads)
    parts = grad_u if split.programs == 1 else u.new_empty((batch, split.programs, heads, width))
    strides, unit = in_units((
        _distance(grad_query, grad_tokens), width, _distance(query_token, tokens), query_token.stride(0),
        *tokens.stride()[:2],
    ))  # fmt: skip
    sizes = (*strides, tokens.shape[1], heads)
    chain = chain or new_chain(tokens.device)
    with current_device(tokens):
        if whole:
            options = _whole_row_options("absorbed_backward", tokens, heads, unit)
            absorbed_backward[(batch * split.programs,)](
                grad_z, u, tokens, z, stats, parts, grad_tokens, *sizes, split.programs, split.runs, split.rows, eps,
                **options, **next(chain),
            )  # fmt: skip
        else:
            weights = u.new_empty((batch, 2, heads, 1 + tokens.shape[1]))
            rows = u.new_empty((batch, 1 + tokens.shape[1], 4))
            options = _options("row_gradients", tokens, heads, unit)
            factors = s = None
            if seed is not None:
                stats, s = stats[..., :2].contiguous(), stats[..., 2].contiguous()
                grad_s = torch.zeros_like(s) if grad_s is None else grad_s
                factors = _factors(u, tokens, dropout_rate, seed, chain)
            row_gradients[(_blocks(tokens, options),)](
                grad_z, u, tokens, z, stats, weights, rows, factors, grad_s, s, *sizes[2:], eps, **options,
                **next(chain),
            )  # fmt: skip
            options = _options("absorbed_columns_backward", tokens, heads, unit)
            absorbed_columns_backward[(batch * split.programs * _chunks(tokens, options),)](
                grad_z, u, tokens, weights, rows, parts, grad_tokens, *sizes, split.programs, split.rows, **options,
                **next(chain),
            )  # fmt: skip
        if split.programs > 1:
            size, block = heads * width, 1024
            sum_parts[(batch * -(-size // block),)](
                parts, grad_u, size, split.programs, split.programs_of_group, BLOCK=block, enable_fp_fusion=False,
                **next(chain),
            )  # fmt: skip
    return grad_u, grad_query, grad_tokens


def cross_modal_attention(
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    num_heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The whole operator, with its projections."""
    from hsta_kernels.ops.cross_modal_attention.triton_projections import absorb_query, project_values

    batch, width = query_token.shape
    out = query_token.new_empty((batch, width))
    u = query_token.new_empty((batch, num_heads, width), dtype=torch.float32)
    if not out.numel():
        return out, u, *forward(u, query_token, tokens, eps)
    head_dim, norm, sizes = width // num_heads, (norm_weight, norm_bias), (batch, num_heads)
    (stride,), unit = in_units((query_token.stride(0),))
    options = _query_options(_ABSORB_QUERY, tokens, head_dim) | {"BLOCK_D": _of_head(head_dim), "UNIT": unit}
    if version() < (3, 3) and tokens.element_size() == 4:
        options["BLOCK"] = 32  # of 16 samples in TF32 its compiler spills 16 to 62 registers
    chain = new_chain(tokens.device)
    with current_device(tokens):
        absorb_query[(-(-batch // options["BLOCK"]) * num_heads * _chunks(tokens, options),)](
            query_token, *norm, q_weight, q_bias, k_weight, u, stride, *sizes, eps, head_dim**-0.5, **options,
            **next(chain),
        )  # fmt: skip
    z, stats = forward(u, query_token, tokens, eps, chain=chain)
    options = _projection_options(_PROJECT_VALUES, tokens, head_dim)
    with current_device(tokens):
        project_values[(-(-batch // options["BLOCK"]) * num_heads * -(-head_dim // options["BLOCK_D"]),)](
            z, *norm, v_weight, v_bias, out, *sizes, **options, **next(chain)
        )
    return out, u, z, stats


def cross_modal_attention_backward(
    grad_out: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    u: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """The gradients of k_bias, of `query_token` and of all that follows it, with v_bias after v_weight."""
    from hsta_kernels.ops.cross_modal_attention.triton_projections_backward import (
        absorb_query_backward,
        norm_backward,
        project_values_backward,
        query_backward,
    )

    samples, heads, width = u.shape
    head_dim, scale = width // heads, (width // heads) ** -0.5
    if not z.numel():
        weights = (norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, q_bias)
        zeros = (torch.zeros_like(weight) for weight in weights)
        return torch.zeros_like(q_bias), query_token.clone(), tokens.clone(), *zeros
    grad_norm_weight, grad_norm_bias, *of_biases = (torch.empty_like(norm_weight) for _ in range(5))
    grad_q_bias, grad_k_bias, grad_v_bias = of_biases
    grad_q_weight, grad_k_weight, grad_v_weight = (torch.empty_like(q_weight) for _ in range(3))
    q, grad_q = (query_token.new_empty((samples, width)) for _ in range(2))
    moments, grad_z = u.new_empty((samples, 2)), u.new_empty(u.shape)
    # What each head adds to the gradients of the norm's bias and weight, and of the normalized query rows.
    norm_parts, grad_y_parts = u.new_empty((2, heads, width)), u.new_empty((heads, samples, width))
    (stride,), unit = in_units((query_token.stride(0),))
    norm, sizes, of_query = (norm_weight, norm_bias), (samples, heads), {"UNIT": unit}
    of_head, sample_blocks = {"BLOCK_D": _of_head(head_dim)}, -(-samples // 16)
    options = _projection_options(_WEIGHT_GRADIENTS, tokens, head_dim) | of_head
    chain = new_chain(tokens.device)
    with current_device(tokens):
        project_values_backward[(heads * _chunks(tokens, options),)](
            grad_out, z, *norm, v_weight, grad_z, grad_v_weight, grad_v_bias, norm_parts, *sizes, **options,
            **next(chain),
        )  # fmt: skip
    grad_u, grad_query, grad_tokens = backward(grad_z, u, query_token, tokens, z, stats, eps, chain=chain)
    with current_device(tokens):
        options = _query_options(_QUERY_BACKWARD, tokens, head_dim) | of_query
        query_backward[(sample_blocks * heads * -(-head_dim // options["BLOCK_D"]),)](
            grad_u, query_token, *norm, q_weight, q_bias, k_weight, q, grad_q, moments, stride, *sizes, eps, scale,
            **options, **next(chain),
        )  # fmt: skip
        options = _projection_options(_WEIGHT_GRADIENTS, tokens, head_dim) | of_head | of_query
        absorb_query_backward[(heads * _chunks(tokens, options),)](
            grad_u, query_token, *norm, q_weight, k_weight, q, grad_q, moments, grad_q_weight, grad_q_bias,
            grad_k_weight, grad_k_bias, grad_y_parts, norm_parts, stride, *sizes, scale, **options,
            **next(chain),
        )  # fmt: skip
        options = _NORM_BACKWARD | {"C": width} | of_query
        norm_backward[(samples + _chunks(tokens, options),)](
            query_token, norm_weight, moments, grad_y_parts, norm_parts, grad_query, grad_norm_weight, grad_norm_bias,
            stride, *sizes, **options, **next(chain),
        )  # fmt: skip
    return (
        grad_k_bias, grad_query, grad_tokens, grad_norm_weight, grad_norm_bias, grad_q_weight, grad_q_bias,
        grad_k_weight, grad_v_weight, grad_v_bias,
    )  # fmt: skip


def _of_head(head_dim: int) -> int:
    """How many of a head's features are multiplied at a time."""
    return min(64, max(16, power_of_2(head_dim)))


def _projection_options(of_size: dict[int, dict[str, int]], tokens: torch.Tensor, head_dim: int) -> dict[str, Any]:
    """Everything about a launch that is constant to its kernel; what they have in common: see `configuration`."""
    constants = {"C": tokens.shape[-1], "D": head_dim, "PRECISION": precision(tokens.dtype), "enable_fp_fusion": False}
    return constants | of_size[tokens.element_size()] | ({"num_stages": 1} if version() < (3, 3) else {})


def _query_options(of_size: dict[int, dict[str, int]], tokens: torch.Tensor, head_dim: int) -> dict[str, Any]:
    """Of the kernels that make the query's product. Before Triton 3.7 they spill a few registers as the others are."""
    options = _projection_options(of_size, tokens, head_dim)
    if version() < (3, 7):
        warps = 4 if tokens.element_size() == 2 else 8
        options |= {"num_warps": warps, "num_stages": min(options["num_stages"], 2)} | registers_first()
    return options


def _factors(
    u: torch.Tensor, tokens: torch.Tensor, dropout_rate: float, seed: torch.Tensor, chain: Chain
) -> torch.Tensor:
    """What dropout multiplies probabilities with, (B, H, N + 1): 0, or 1 / (1 - rate)."""
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import draw_factors

    (batch, heads), rows, block = u.shape[:2], 1 + tokens.shape[1], 128
    factors = u.new_empty((batch, heads, rows))
    draw_factors[(batch * heads * -(-rows // (4 * block)),)](
        factors, *dropout_arguments(dropout_rate, seed), heads, rows - 1, BLOCK=block, **next(chain)
    )
    return factors


class Split(NamedTuple):
    """How the rows of a sample are dealt out: `programs` take `runs` runs of `rows` rows each.

    A program sums up a run block by block and adds up its runs one after the other; the results of `programs_of_group`
    programs are added up the same way, then those of the groups.
    """

    programs: int
    runs: int
    rows: int
    programs_of_group: int


def split_rows(tokens: torch.Tensor, heads: int, multiprocessors: int) -> Split:
    """One or two groups of runs, with a program for each run where that gets the GPU done sooner, else for each group.

    Runs and groups depend on the numbers of tokens and heads alone, and runs are added up in the same order with the
    same rounding in a program and after it: neither the batch nor the number of multiprocessors has a say in results.
    A program's result is as large as two (float32) or four `heads` tokens, written and read: so few tokens have one
    group.
    """
    batch, rows = tokens.shape[0], tokens.shape[1] + 1
    rows_of_run = 16 * max(3, -(-rows // (16 * _MOST_RUNS)))  # whole tiles of rows
    runs = -(-rows // rows_of_run)
    of_group = runs if rows <= 36 * heads else -(-runs // 2)
    groups = -(-runs // of_group)

    def time(programs: int, runs: int) -> int:
        """Of the busiest multiprocessor, in rows; a program's beginning and end take as long as a tile."""
        return -(-batch * programs // multiprocessors) * (runs * rows_of_run + 16)

    if time(runs, 1) < time(groups, of_group):
        return Split(runs, 1, rows_of_run, of_group)
    return Split(groups, of_group, rows_of_run, 1)


def split_columns(tokens: torch.Tensor, heads: int) -> Split:
    """A run a program: chunks of columns make enough of them.

    A run's result is as large as `heads` tokens and is written and read: at 18 tokens a head it adds a ninth to the
    traffic.
    """
    rows = tokens.shape[1] + 1
    a_run = -(-rows // max(1, tokens.shape[1] // (18 * heads)))
    return Split(-(-rows // a_run), 1, a_run, 1)


def _distance(query_token: torch.Tensor, tokens: torch.Tensor) -> int:
    """How many elements the query row lies from the tokens: the kernels take it as one of their rows."""
    return (query_token.data_ptr() - tokens.data_ptr()) // tokens.element_size()


def _whole_rows(tokens: torch.Tensor, heads: int) -> bool:
    """Whether a GPU's registers hold rows this wide, with all heads' z; else columns come in chunks.

    Half types multiply batches of matrices, which Triton 3.2 cannot and Triton 3.3 spills registers at; before
    Triton 3.8 a float32 row of 768 columns spills.
    """
    since = (3, 8) if tokens.dtype == torch.float32 else (3, 4)
    return version() >= since and heads <= 16 and configured("absorbed_backward", tokens, tokens.shape[-1])


def _blocks(tokens: torch.Tensor, options: dict[str, Any]) -> int:
    return tokens.shape[0] * -(-(1 + tokens.shape[1]) // options["BLOCK"])


def _chunks(tokens: torch.Tensor, options: dict[str, Any]) -> int:
    return -(-tokens.shape[2] // options["CHUNK"])


def _options(kernel: str, tokens: torch.Tensor, heads: int, unit: int) -> dict[str, Any]:
    """Everything about a launch that is constant to its kernel."""
    constants = {"C": tokens.shape[-1], "BLOCK_H": max(16, power_of_2(heads)), "UNIT": unit}
    return constants | {"PRECISION": precision(tokens.dtype)} | configuration(kernel, tokens, tokens.shape[-1])


def _whole_row_options(kernel: str, tokens: torch.Tensor, heads: int, unit: int) -> dict[str, Any]:
    """Those of a kernel that holds rows in two pieces of A and B columns.

    The narrower piece is wide enough for as many shares as the other one: with fewer, registers spill. Loops without
    matrix products are pipelined on demand only.
    """
    options = _options(kernel, tokens, heads, unit)
    a = max(16, power_of_2(tokens.shape[-1]) // 2)
    b = max(16, power_of_2(tokens.shape[-1] - a), a // 4)
    options |= {"A": a, "B": b, "STAGES": None}
    if options["BLOCK"] > 1:
        split = min(options.get("SPLIT_A", options["num_warps"]), b // 16)
        return options | {"SPLIT_A": split, "SPLIT_B": split}
    share = min(128, b)
    options |= {"SPLIT_A": a // share, "SPLIT_B": b // share, "STAGES": options["num_stages"]}
    return options | {"BLOCK_H": power_of_2(heads), "PRECISION": "ieee"}
