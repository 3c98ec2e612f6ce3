import fperr
import torchattacks

rescaled = fperr.Rescaled(model)  # for code whose loss cannot be reached
adversarial = torchattacks.PGD(rescaled, eps=0.05, alpha=0.01, steps=20)(x, y)
