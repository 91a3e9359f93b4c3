"""The operators. Each works on its own, without the HSTA model."""

from hsta_kernels.ops.add_layer_norm import add_layer_norm
from hsta_kernels.ops.bias_gelu import bias_gelu
from hsta_kernels.ops.cross_modal_attention import cross_modal_attention
from hsta_kernels.ops.space_time_attention import QKNorm, space_time_attention

__all__ = ["QKNorm", "add_layer_norm", "bias_gelu", "cross_modal_attention", "space_time_attention"]
