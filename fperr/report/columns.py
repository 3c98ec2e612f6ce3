"""The columns of the tables, with their dtypes and meanings: the data dictionary.

Hats are what a format computes: g is the exact gradient of the loss at the input, v the one at the
logits, and ĝ and v̂ are those of the format.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its name.
        dtype: Its pandas dtype.
        meaning: What it holds, in a sentence, with its unit where it has one.
    """

    name: str
    dtype: str
    meaning: str


# Undefined numbers are NaN and undefined flags are missing (<NA>): without an exact gradient (the
# input is not finite), with an exact gradient of zero, or for a loss without T.
MEASUREMENT = (
    Column("network", "string", "name of the network"),
    Column("sample", "int64", "number of the image, from 0"),
    Column("scenario", "string", "untargeted or targeted, unsuccessful or successful, by the exact "
           "logits"),
    Column("is_sign_twin", "boolean", "copied from the opposite scenario, whose gradient is this "
           "one with its sign changed"),
    Column("format_scenario", "string", "the scenario by the format's own logits"),
    Column("loss", "string", "name of the loss, with its options"),
    Column("format", "string", "floating-point format of network and gradient"),
    Column("label", "int64", "class that the loss used: y, or the target"),
    Column("margin", "float64", "largest exact logit minus the second largest, Δ"),
    Column("T", "float64", "temperature that the loss used"),
    Column("c", "float64", "factor of the logits that the loss used, T/Δ"),
    Column("c_error", "float64", "relative difference of c to T/Δ of the exact logits"),
    Column("scale_capped", "boolean", "c is at its cap, as at ties of the two largest logits"),
    Column("scale_degenerate", "boolean", "c is zero, infinite or NaN in the format"),
    Column("log2_G", "float64", "log2 of the papers' G(T) = c(1 − p_y)"),
    Column("delta", "float64", "relative error of the gradient, ‖ĝ − g‖/‖g‖ in the Euclidean norm"),
    Column("delta_lo", "float64", "proved lower bound of delta (certify=True)"),
    Column("delta_hi", "float64", "proved upper bound of delta (certify=True)"),
    Column("delta_frozen", "float64", "delta with the exact network's decisions in the format's "
           "backward pass"),
    Column("activation_flips", "Int64", "decisions of ReLUs and other activations with kinks that "
           "differ from the exact network's; comparisons that the model makes are not counted"),
    Column("pooling_flips", "Int64", "decisions of poolings that differ from the exact network's"),
    Column("tie_flips", "Int64", "those of both kinds at numbers that are exactly equal"),
    Column("flips_by_layer", "string", "JSON: layer → [flips, at ties]"),
    Column("max_norm_delta", "float64", "relative error of the gradient in the maximum norm"),
    Column("cosine_distance", "float64", "1 − cosine of the angle between ĝ and g"),
    Column("sign_error_rate", "float64", "share of the components with g ≠ 0 whose sign is wrong: "
           "flip_rate + zero_rate"),
    Column("flip_rate", "float64", "share of them with the opposite sign"),
    Column("zero_rate", "float64", "share of them computed as 0"),
    Column("step_gain", "float64", "⟨g, sign ĝ⟩/‖g‖₁: what a step along the computed signs gains "
           "to first order, relative to the exact one"),
    Column("logit_delta", "float64", "‖v̂ − v‖₁/‖v‖₁ at the format's own logits"),
    Column("logit_delta_bound", "float64", "proved upper bound of logit_delta (cross-entropy and "
           "stable cross-entropy; not under autocast)"),
    Column("is_finite", "boolean", "logits, logit gradient and gradient are finite in the format"),
    Column("is_defined", "boolean", "the loss has a gradient there (DLR has none where its "
           "denominator is 0)"),
    Column("is_dead", "boolean", "ĝ is zero everywhere and g is not"),
    Column("truly_flat", "boolean", "g itself is exactly zero"),
    Column("p_underflow_rate", "float64", "share of the other classes whose coefficient is not "
           "zero and was computed as 0"),
    Column("common_mode_factor", "float64", "‖∇z_y‖/‖g‖: what amplifies an error that all "
           "coefficients share"),
    Column("prediction_differs", "boolean", "the format's logits predict another class"),
    Column("log2_delta_sup_logit", "float64", "log2 of the papers' u/G: a model, no bound"),
    Column("log2_delta_sup_input", "float64", "log2 of the papers' u Σ‖∇zᵢ‖/‖g‖: a model, no "
           "bound"),
    Column("stage_backward", "float64", "error that the backward pass adds, relative to ‖g‖"),
    Column("stage_loss", "float64", "error that the loss adds, relative to ‖g‖"),
    Column("stage_loss_bound", "float64", "Σ |v̂ − v|ᵢ‖∇zᵢ‖/‖g‖ with the bound of logit_delta: a "
           "bound of stage_loss (where rows of the Jacobian are computed)"),
    Column("stage_forward", "float64", "error that the forward pass adds, relative to ‖g‖"),
    Column("stage_constants", "float64", "error of operations on weights alone, relative to ‖g‖"),
    Column("stage_cast", "float64", "error of rounding weights and input, relative to ‖g‖"),
    Column("share_backward", "float64", "signed share of stage_backward in the error; the shares "
           "sum to 1"),
    Column("share_loss", "float64", "signed share of stage_loss"),
    Column("share_forward", "float64", "signed share of stage_forward"),
    Column("share_constants", "float64", "signed share of stage_constants"),
    Column("share_cast", "float64", "signed share of stage_cast"),
    Column("log2_reference_error", "float64", "log2 of the relative error of the reference g: a "
           "bound or an estimate, see certainty"),
    Column("certainty", "string", "what is known of the reference: proved, agreed, or uncertified "
           "(then the row is not measured)"),
    Column("is_certified", "boolean", "the reference has the digits that were needed"),
    Column("value_audit", "string", "PyTorch in float64 agrees with the exact network here: "
           "confirmed, or float64 cannot say"),
    Column("reason", "string", "why the row has no delta, in words; every row has one of the two"),
)  # fmt: skip

LAYERS = (
    Column("sample", "int64", "number of the image, from 0"),
    Column("position", "int64", "number of the operation in the order of computing"),
    Column("layer", "string", "module that runs the operation, e.g. layer1.0.conv2"),
    Column("operation", "string", "name of the operation in ATen"),
    Column("half", "string", "forward or backward pass"),
    Column("contribution", "float64", "norm of the vector that the operation adds to the error, "
           "relative to ‖g‖"),
    Column("share", "float64", "its signed share in the error; the shares of a sample sum to 1"),
    Column("delta_so_far", "float64", "relative error if this operation and all earlier ones run "
           "in the format and the later ones exactly"),
    Column("bits_left", "float64", "−log2 of delta_so_far"),
    Column("flips", "int64", "decisions of the operation that differ from the exact network's"),
)  # fmt: skip


def dtypes(columns: tuple[Column, ...]) -> dict[str, str]:
    """The pandas dtype of each column, by name, in order."""
    return {column.name: column.dtype for column in columns}
