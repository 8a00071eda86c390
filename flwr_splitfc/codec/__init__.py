"""The cut codec: features and gradients in a fraction of a bit per entry.

`catalogue` makes a codec by its name, `cut` is its front, `selectors` and `quantisers`
are its parts, `format` the bytes of their payloads.
"""

from flwr_splitfc.codec.catalogue import (
    CodecEntry,
    codec_names,
    codec_settings,
    codec_table,
    cut_codec,
    register_codec,
)
from flwr_splitfc.codec.cut import CutCodec
from flwr_splitfc.codec.errors import BudgetError, PayloadError
from flwr_splitfc.codec.labels import pack_labels, unpack_labels
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.matrices import CodedMatrix
from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.codec.quantisers.entry.easy_quant import EasyQuant
from flwr_splitfc.codec.quantisers.entry.noisy_quant import NoisyQuant
from flwr_splitfc.codec.quantisers.entry.power_quant import PowerQuant
from flwr_splitfc.codec.quantisers.entry.uniform import Uniform
from flwr_splitfc.codec.quantisers.feature.feature_quant import FeatureQuant
from flwr_splitfc.codec.quantisers.float16 import Float16
from flwr_splitfc.codec.quantisers.float32 import Float32
from flwr_splitfc.codec.quantisers.int8 import Int8
from flwr_splitfc.codec.quantisers.mask.mask_encoded import MaskEncoded
from flwr_splitfc.codec.quantisers.product.product_quant import ProductQuant
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.selectors.all_columns import AllColumns
from flwr_splitfc.codec.selectors.feature_dropout import FeatureDropout
from flwr_splitfc.codec.selectors.random_top_entries import RandomTopEntries
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.selectors.top_entries import TopEntries

__all__ = [
    "AllColumns",
    "BudgetError",
    "CodecEntry",
    "CodedMatrix",
    "CutCodec",
    "EasyQuant",
    "FeatureDropout",
    "FeatureQuant",
    "Float16",
    "Float32",
    "Int8",
    "Link",
    "MaskEncoded",
    "ModelCodec",
    "NoisyQuant",
    "PayloadError",
    "PowerQuant",
    "ProductQuant",
    "Quantiser",
    "RandomTopEntries",
    "Selector",
    "TopEntries",
    "Uniform",
    "codec_names",
    "codec_settings",
    "codec_table",
    "cut_codec",
    "pack_labels",
    "register_codec",
    "unpack_labels",
]
