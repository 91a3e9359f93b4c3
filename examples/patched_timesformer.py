"""Fine-tunes a TimeSformer of Hugging Face transformers on these kernels: one line more than without them.

The model is small and its weights are random, so that this takes seconds; with
``TimesformerForVideoClassification.from_pretrained(...)`` the rest stays as it is.
"""

import torch
from transformers import TimesformerConfig, TimesformerForVideoClassification

import hsta_kernels

torch.manual_seed(0)
config = TimesformerConfig(
    image_size=32, patch_size=8, num_frames=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=128, num_labels=2,
)  # fmt: skip
model = TimesformerForVideoClassification(config)
print(hsta_kernels.patch(model))

# Clips that get brighter or darker: told apart by time alone.
slope = torch.linspace(-1, 1, 8)[None, :, None, None, None]
labels = torch.arange(16) % 2
clips = torch.randn(16, 8, 3, 32, 32) * 0.3 + slope * (2 * labels[:, None, None, None, None] - 1)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(12):
    loss = model(pixel_values=clips, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 3 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    right = (model(pixel_values=clips).logits.argmax(-1) == labels).float().mean().item()
print(f"{right:.0%} of the clips are told right")
assert right > 0.9
