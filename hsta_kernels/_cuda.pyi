"""The CUDA kernels. What each tensor must be, csrc/operators.h says; another one is a ValueError that names it.

`allocate` gives a float32 tensor of so many elements, for working memory; `stream` is a cudaStream_t.
"""

from collections.abc import Callable

from torch import Tensor

def absorbed_attention_forward(
    u: Tensor,
    query_token: Tensor,
    tokens: Tensor,
    eps: float,
    dropout_rate: float,
    seed: int,
    z: Tensor,
    stats: Tensor,
    allocate: Callable[[int], Tensor],
    stream: int,
    /,
) -> None: ...
def absorbed_attention_backward(
    u: Tensor,
    query_token: Tensor,
    tokens: Tensor,
    eps: float,
    dropout_rate: float,
    seed: int,
    z: Tensor,
    stats: Tensor,
    grad_z: Tensor,
    grad_s: Tensor,
    grad_u: Tensor,
    grad_query_token: Tensor,
    grad_tokens: Tensor,
    allocate: Callable[[int], Tensor],
    stream: int,
    /,
) -> None: ...
def add_layer_norm_forward(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sum: Tensor,
    norm: Tensor,
    allocate: Callable[[int], Tensor],
    stream: int,
    /,
) -> None: ...
def add_layer_norm_backward(
    sum: Tensor,
    weight: Tensor,
    eps: float,
    grad_norm: Tensor,
    grad_sum: Tensor,
    grad_residual: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    allocate: Callable[[int], Tensor],
    stream: int,
    /,
) -> None: ...
def space_time_attention_forward(
    axis: int,
    token_order: int,
    prefix: int,
    num_prefix_tokens: int,
    num_frames: int,
    num_patches: int,
    scale: float,
    dropout_rate: float,
    seed: int,
    rotary_pairs: int,
    qkv: Tensor | tuple[Tensor, ...],
    cos: Tensor | None,
    sin: Tensor | None,
    out: Tensor,
    stats: Tensor,
    allocate: Callable[[int], Tensor],
    stream: int,
    /,
) -> None: ...
def space_time_attention_backward(
    axis: int,
    token_order: int,
    prefix: int,
    num_prefix_tokens: int,
    num_frames: int,
    num_patches: int,
    scale: float,
    dropout_rate: float,
    seed: int,
    rotary_pairs: int,
    qkv: Tensor | tuple[Tensor, ...],
    cos: Tensor | None,
    sin: Tensor | None,
    out: Tensor,
    stats: Tensor,
    grad_out: Tensor,
    grad_qkv: Tensor | tuple[Tensor, ...],
    allocate: Callable[[int], Tensor],
    stream: int,
    /,
) -> None: ...
