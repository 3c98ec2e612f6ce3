import fperr
from pyautoattack.autopgd_base import APGDAttack

attack = APGDAttack(model, n_iter=20, norm="Linf", eps=0.05, loss="ce", device="cpu")
with fperr.repaired("mifpe", value="stable_ce"):  # APGD reads values, too
    adversarial = attack.perturb(x, y)
