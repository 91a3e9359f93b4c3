"""The fused model in place of the plain one: the same configuration, the same parameters, the same logits."""

from dataclasses import replace

import torch

import hsta_kernels

torch.manual_seed(0)
config = hsta_kernels.HSTAConfig(
    image_size=48, embed_dim=(64, 128), num_heads=(2, 2), depth=((1, 2), (1, 1)), num_frames=4, num_classes=3
)
video, special = torch.randn(2, 3, 4, 48, 48), torch.randn(2, 3, 2, 48, 48)

plain = hsta_kernels.reference.HSTA(config).eval()  # PyTorch's own operations and no kernel
fused = hsta_kernels.HSTA(config).eval()
fused.load_state_dict(plain.state_dict())  # every parameter has the same name and shape

with torch.no_grad():
    torch.testing.assert_close(fused(video, special), plain(video, special), rtol=1e-3, atol=1e-5)

# And back: what was trained with kernels runs where there are none.
plain.load_state_dict(fused.state_dict())

# A checkpoint of the authors' code, a path or a state dict, goes in the same way. It is joint attention.
joint = hsta_kernels.reference.HSTA(replace(config, attention="joint")).eval()
published = {"model": joint.state_dict()}  # as training scripts wrap it; here instead of "checkpoint.pth"
loaded = hsta_kernels.HSTA.from_official(published, image_size=48, num_frames=4, num_heads=(2, 2))
with torch.no_grad():
    torch.testing.assert_close(loaded(video, special), joint(video, special), rtol=1e-3, atol=1e-5)
print(f"{sum(p.numel() for p in fused.parameters()):,} parameters, the same logits")
