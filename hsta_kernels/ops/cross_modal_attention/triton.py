"""Launches of the Triton kernels of absorbed attention."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels.ops.launch import current_device
from hsta_kernels.ops.launch.triton import (
    configuration,
    configured,
    in_units,
    power_of_2,
    precision,
    version,
)
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor


def refuse(tokens: torch.Tensor, *heads: Any) -> str | None:
    return refuse_tensor("tokens", tokens, "absorbed_columns")


def forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed import absorbed_forward, merge_z
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import absorbed_columns, row_scores

    batch, heads, width = u.shape
    z, stats = u.new_empty(u.shape), u.new_empty((batch, heads, 2))
    if not z.numel():
        return z, stats
    splits, rows_per_split = runs(tokens.shape[1], heads)
    z_parts, stat_parts = z, stats
    if splits > 1:
        z_parts = tokens.new_empty((batch, splits, heads, width))
        stat_parts = u.new_empty((batch, splits, heads, 2))
    strides, unit = in_units((_distance(query_token, tokens), query_token.stride(0), *tokens.stride()[:2]))
    sizes = (*strides, tokens.shape[1], heads)
    with current_device(tokens):
        if _whole_rows(tokens, heads):
            options = _whole_row_options("absorbed_forward", tokens, heads, unit)
            absorbed_forward[(batch * splits,)](
                u, tokens, z_parts, stat_parts, *sizes, splits, rows_per_split, eps, **options
            )
        else:
            scores = u.new_empty((batch, heads, 1 + tokens.shape[1]))
            rows = u.new_empty((batch, 1 + tokens.shape[1], 2))
            options = _options("row_scores", tokens, heads, unit)
            row_scores[(_blocks(tokens, options),)](u, tokens, scores, rows, *sizes, eps, **options)
            options = _options("absorbed_columns", tokens, heads, unit)
            absorbed_columns[(batch * splits * _chunks(tokens, options),)](
                tokens, scores, rows, z_parts, stat_parts, *sizes, splits, rows_per_split, **options
            )
        if splits > 1:
            merge_z[(batch * heads,)](
                z_parts, stat_parts, z, stats, heads, width, splits, BLOCK_C=power_of_2(width), enable_fp_fusion=False
            )
    return z, stats


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed import absorbed_backward, sum_splits
    from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import absorbed_columns_backward, row_gradients

    batch, heads, width = u.shape
    grad_u = u.new_empty(u.shape)
    grad_query, grad_tokens = query_token.new_empty(query_token.shape), tokens.new_empty(tokens.shape)
    if not z.numel():
        return grad_u, grad_query, grad_tokens
    splits, rows_per_split = runs(tokens.shape[1], heads)
    parts = grad_u if splits == 1 else u.new_empty((batch, splits, heads, width))
    strides, unit = in_units((
        _distance(grad_query, grad_tokens), width, _distance(query_token, tokens), query_token.stride(0),
        *tokens.stride()[:2],
    ))  # fmt: skip
    sizes = (*strides, tokens.shape[1], heads)
    with current_device(tokens):
        if _whole_rows(tokens, heads):
            options = _whole_row_options("absorbed_backward", tokens, heads, unit)
            absorbed_backward[(batch * splits,)](
                grad_z, u, tokens, z, stats, parts, grad_tokens, *sizes, splits, rows_per_split, eps, **options
            )
        else:
            weights = u.new_empty((batch, 2, heads, 1 + tokens.shape[1]))
            rows = u.new_empty((batch, 1 + tokens.shape[1], 4))
            options = _options("row_gradients", tokens, heads, unit)
            row_gradients[(_blocks(tokens, options),)](
                grad_z, u, tokens, z, stats, weights, rows, *sizes[2:], eps, **options
            )
            options = _options("absorbed_columns_backward", tokens, heads, unit)
            absorbed_columns_backward[(batch * splits * _chunks(tokens, options),)](
                grad_z, u, tokens, weights, rows, parts, grad_tokens, *sizes, splits, rows_per_split, **options
            )
        if splits > 1:
            size, block = heads * width, 1024
            sum_splits[(batch * -(-size // block),)](parts, grad_u, size, splits, BLOCK=block, enable_fp_fusion=False)
    return grad_u, grad_query, grad_tokens


def runs(num_tokens: int, heads: int) -> tuple[int, int]:
    """Into how many runs the rows of a sample are split, and the length of a run.

    Several programs share a sample so that small batches fill the GPU. A run's result is as large as `heads` tokens and
    is written and read: at 18 tokens a head it adds a ninth to the traffic. The batch has no say: results do not
    depend on it.
    """
    rows = num_tokens + 1
    rows_per_split = -(-rows // max(1, num_tokens // (18 * heads)))
    return -(-rows // rows_per_split), rows_per_split


def _distance(query_token: torch.Tensor, tokens: torch.Tensor) -> int:
    """How many elements the query row lies from the tokens: the kernels take it as one of their rows."""
    return (query_token.data_ptr() - tokens.data_ptr()) // tokens.element_size()


def _whole_rows(tokens: torch.Tensor, heads: int) -> bool:
    """Whether a GPU's registers hold rows this wide, with all heads' z; else columns come in chunks.

    Half types multiply batches of matrices, which Triton 3.2 cannot and Triton 3.3 spills registers at; before
    Triton 3.7 a float32 row of 768 columns spills.
    """
    since = (3, 7) if tokens.dtype == torch.float32 else (3, 4)
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
