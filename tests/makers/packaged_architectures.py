"""Networks of other packages with random weights: (model in evaluation mode, two inputs), by name.

A name begins with the package that it needs.
"""

from collections.abc import Callable

from torch import Tensor, nn

from tests.makers.packaged import of_robustbench, of_timm, of_torchvision, of_transformers

PACKAGED: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    **of_timm.NETWORKS,
    **of_torchvision.NETWORKS,
    **of_transformers.NETWORKS,
    **of_robustbench.NETWORKS,
}
# whose rows are measured, too: one of each kind
MEASURED = (
    "timm:resnet10t", "timm:convnext_atto", "timm:xcit_nano_12_p16_224", "torchvision:swin_v2",
    "torchvision:shufflenet_v2", "transformers:ViT", "transformers:Llama", "transformers:BERT",
    "robustbench:PreActResNet", "robustbench:MeanSparse",
)  # fmt: skip
