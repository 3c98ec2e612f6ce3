import torch
from fperr import losses

adversarial = x + torch.empty_like(x).uniform_(-0.05, 0.05)
for _ in range(20):
    point = adversarial.clamp(0, 1).requires_grad_()
    losses.tmifpe(model(point), y, reduction="sum").backward()
    adversarial = point.detach() + 0.01 * point.grad.sign()
    adversarial = adversarial.clamp(x - 0.05, x + 0.05)
adversarial = adversarial.clamp(0, 1)
