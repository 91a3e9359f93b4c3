"""The CUDA kernels. What each tensor must be, csrc/operators.h says; another one is a ValueError that names it.

`stream` is a cudaStream_t.
"""

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
    stream: int,
    /,
) -> None: ...
