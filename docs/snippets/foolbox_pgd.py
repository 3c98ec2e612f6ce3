import foolbox
import fperr

attack = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=0.01)
with fperr.repaired("mifpe"):
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    adversarial = attack(wrapped, x, y, epsilons=0.05)[1]
