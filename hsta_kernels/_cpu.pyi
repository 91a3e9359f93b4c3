"""The CPU kernels. What each tensor must be, csrc/operators.h says; another one is a ValueError that names it."""

from torch import Tensor

def cpu_isa() -> str: ...
def runnable_cpu_isas() -> str: ...
def exp2(x: Tensor, y: Tensor, /) -> None: ...
def exp2_for_bfloat16(x: Tensor, y: Tensor, /) -> None: ...
def absorbed_attention_forward(
    u: Tensor,
    query_token: Tensor,
    tokens: Tensor,
    eps: float,
    dropout_rate: float,
    seed: int,
    z: Tensor,
    stats: Tensor,
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
    /,
) -> None: ...
def add_layer_norm_forward(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, sum: Tensor, norm: Tensor, /
) -> None: ...
def add_layer_norm_backward(
    sum: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    grad_norm: Tensor,
    grad_sum: Tensor,
    grad_residual: Tensor,
    grad_x: Tensor | None,
    norm: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor,
    /,
) -> None: ...
def bias_gelu_forward(x: Tensor, bias: Tensor, dropout_rate: float, seed: int, out: Tensor, /) -> None: ...
def bias_gelu_backward(
    x: Tensor, bias: Tensor, dropout_rate: float, seed: int, grad_out: Tensor, grad_x: Tensor, grad_bias: Tensor, /
) -> None: ...
def cross_modal_absorb_query(
    query_token: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    u: Tensor,
    /,
) -> None: ...
def cross_modal_project_values(
    z: Tensor, norm_weight: Tensor, norm_bias: Tensor, v_weight: Tensor, v_bias: Tensor, out: Tensor, /
) -> None: ...
def packed_product(columns: int, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, out: Tensor, /) -> None: ...
def quantize_rows(x: Tensor, most: int, integers: Tensor, scale: Tensor, /) -> None: ...
def scale_rows(y: Tensor, scale: Tensor, bias: Tensor, gelu: bool, /) -> None: ...
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
    qk_norm: int,
    qk_norm_eps: float,
    qkv: Tensor | tuple[Tensor, ...],
    cos: Tensor | None,
    sin: Tensor | None,
    affine: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    stats: Tensor,
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
    qk_norm: int,
    qk_norm_eps: float,
    qkv: Tensor | tuple[Tensor, ...],
    cos: Tensor | None,
    sin: Tensor | None,
    affine: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    stats: Tensor,
    grad_out: Tensor,
    grad_qkv: Tensor | tuple[Tensor, ...],
    grad_affine: Tensor | None,
    grad_bias: Tensor | None,
    /,
) -> None: ...
