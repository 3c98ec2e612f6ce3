"""The reasons, in words, why a row of the attack's own gradient has no `delta`."""

TRAINING = "the model was in training mode, and the exact gradients are those of evaluation mode"
OTHER_LOGITS = "the network, run again at the same input, gave other logits"
NO_RERUN = "the network could not be run again as the attack ran it: dL/dx may hold other terms"
NOT_THE_NETWORK = "more than the network is in dL/dx"
OTHER_POINT = (
    "the point is no number of the model's dtype, and the exact gradient is at its rounding"
)
UNKNOWN_LOSS = "the loss is unknown: its own error is left out of network_delta"
NO_EXACT_LOSS = "the loss has no exact gradient here, or none was certified"
DIFFERENTIATED_TOGETHER = "several forward passes were differentiated together"
NOT_COMPARABLE = "the gradient is not finite, or no exact one was certified"
LOGIT_GRADIENT_NOT_FINITE = "dL/dz is not finite"
