import fperr
import torchattacks

with fperr.repaired("mifpe"):
    adversarial = torchattacks.PGD(model, eps=0.05, alpha=0.01, steps=20)(x, y)
