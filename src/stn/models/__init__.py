"""The networks of the literature, by name, each with an equal-parameter control that has no transformer.

A control is the same kind of classifier, widened until it has at least as many parameters as the network with its
transformer: what the transformer is worth can only be told beside it.

A group of networks is one file here, with its own `NETWORKS`, and a line in `registry.py`.
"""

from .any_size import compact
from .base import Network, TransformerClassifier
from .base import Shape as Shape
from .colocalizer import Colocalizer
from .foreign import OWN
from .house_numbers import TRANSFORMERS, SequenceClassifier, svhn
from .house_numbers import Transformers as Transformers
from .labelled import LabelledClassifier
from .paper import PAPER_PARAMETERS, paper_cnn, paper_fcn
from .posed import behind_pose
from .pretrained import pretrained_names
from .registry import NETWORKS, create, names
from .shared import SharedClassifier
from .tutorial import lenet

__all__ = [
    "NETWORKS",
    "OWN",
    "PAPER_PARAMETERS",
    "TRANSFORMERS",
    "Colocalizer",
    "LabelledClassifier",
    "Network",
    "SequenceClassifier",
    "SharedClassifier",
    "TransformerClassifier",
    "behind_pose",
    "compact",
    "create",
    "lenet",
    "names",
    "paper_cnn",
    "paper_fcn",
    "pretrained_names",
    "svhn",
]
