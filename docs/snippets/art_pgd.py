import fperr
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

loss = torch.nn.CrossEntropyLoss()
classifier = PyTorchClassifier(model, loss, x.shape[1:], 10, clip_values=(0.0, 1.0))
attack = ProjectedGradientDescent(classifier, eps=0.05, eps_step=0.01, max_iter=20, verbose=False)
with fperr.repaired("mifpe"):
    adversarial = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
