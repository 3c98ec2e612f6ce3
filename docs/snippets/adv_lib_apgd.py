import fperr
from adv_lib.attacks import apgd

with fperr.repaired("mifpe", value="stable_ce"):  # APGD reads values, too
    adversarial = apgd(model, x, y, 0.05, norm=float("inf"), n_iter=20, loss_function="ce")
