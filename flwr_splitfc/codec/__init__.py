"""The cut codec: features and gradients in a fraction of a bit per entry."""

from .all_columns import AllColumns
from .catalogue import codec_names, cut_codec, register_codec
from .cut import CutCodec
from .errors import BudgetError, PayloadError
from .feature_dropout import FeatureDropout
from .feature_quant import FeatureQuant
from .float16 import Float16
from .float32 import Float32
from .labels import pack_labels, unpack_labels
from .link import Link
from .quantiser import Quantiser
from .selector import Selector

__all__ = [
    "AllColumns",
    "BudgetError",
    "CutCodec",
    "FeatureDropout",
    "FeatureQuant",
    "Float16",
    "Float32",
    "Link",
    "PayloadError",
    "Quantiser",
    "Selector",
    "codec_names",
    "cut_codec",
    "pack_labels",
    "register_codec",
    "unpack_labels",
]
