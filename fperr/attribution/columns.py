"""The columns of an attribution's frame: the data dictionary of `Attribution.frame`."""

from fperr.attribution.arms import EXACT, IN_FORMAT, UNLIMITED_CE
from fperr.attribution.parts import FLOOR
from fperr.report.columns import Column

ATTRIBUTION = (
    Column("sample", "int64", "number of the image, from 0"),
    Column("label", "int64", "true class of the image"),
    Column("is_judged", "bool", "every arm that ran on all images judged this one from every "
           "start; others are left out of the parts"),
    *(
        Column(arm.name, "float64", f"share of the image's starts that withstand {arm.words}; NaN "
               "where the arm was not run or could not judge")
        for arm in (*IN_FORMAT, UNLIMITED_CE, *EXACT)
    ),
    Column("never_had_gradient", "bool", "every gradient of cross-entropy in the format was "
           "exactly zero, from every start"),
    Column("autoattack_fooled", "bool", "AutoAttack fooled the image (search='autoattack')"),
    Column(FLOOR, "float64", "0 if any start of any arm, or AutoAttack, fooled the image, else 1 "
           "(with a search); NaN where it is not judged"),
)  # fmt: skip
