"""Where the model looks: the attention of CLS to the patches, as a picture over the frame."""

import sys
from pathlib import Path

import matplotlib
import torch

import hsta_kernels

matplotlib.use("Agg")
from matplotlib import pyplot

torch.manual_seed(0)
model = hsta_kernels.create_model("hsta_tiny_224", num_classes=3)  # or HSTA.from_pretrained("run/checkpoint")
video, special = torch.rand(1, 3, 6, 224, 224), torch.rand(1, 3, 2, 224, 224)

maps = hsta_kernels.cls_attention(model, video, special)
assert maps["video"].shape == (1, 3, 3, 14, 14)  # (B, heads, moments, rows and columns of patches)
assert maps["special"].shape == (1, 3, 1, 18, 18)

heads = maps["video"][0].mean(dim=0)  # over heads: (moments, 14, 14)
print(f"the video's patches get {100 * heads.sum():.0f} % of the attention of CLS, the rest is its own")

figure, axes = pyplot.subplots(1, len(heads), figsize=(9, 3), layout="constrained")
for moment, (ax, attention) in enumerate(zip(axes, heads, strict=True)):
    ax.imshow(video[0, :, 2 * moment].permute(1, 2, 0).numpy())  # a token spans two frames
    ax.imshow(attention.numpy(), cmap="inferno", alpha=0.6, extent=(0, 224, 224, 0))
    ax.set_title(f"frames {2 * moment} and {2 * moment + 1}")
    ax.axis("off")
path = Path(sys.argv[1] if len(sys.argv) > 1 else "attention.png")
figure.savefig(path)
print(path)
