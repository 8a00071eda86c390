from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Coding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARRAY_EXACT: _ClassVar[Coding]
    ARRAY_UNIFORM: _ClassVar[Coding]
    ARRAY_LOG: _ClassVar[Coding]
    ARRAY_LEVELLED: _ClassVar[Coding]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSPECIFIED: _ClassVar[Reason]
    PROTOCOL: _ClassVar[Reason]
    TOKEN: _ClassVar[Reason]
    EXPIRED: _ClassVar[Reason]
    FEATURES: _ClassVar[Reason]
    LABELS: _ClassVar[Reason]
    STEP: _ClassVar[Reason]
    LIMIT: _ClassVar[Reason]
    CANCELLED: _ClassVar[Reason]
    GRADIENT: _ClassVar[Reason]
    STATE: _ClassVar[Reason]
ARRAY_EXACT: Coding
ARRAY_UNIFORM: Coding
ARRAY_LOG: Coding
ARRAY_LEVELLED: Coding
UNSPECIFIED: Reason
PROTOCOL: Reason
TOKEN: Reason
EXPIRED: Reason
FEATURES: Reason
LABELS: Reason
STEP: Reason
LIMIT: Reason
CANCELLED: Reason
GRADIENT: Reason
STATE: Reason

class Matrix(_message.Message):
    __slots__ = ("stype", "shape", "data")
    STYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    stype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, stype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("key", "coded", "exact", "tuple", "list", "dict", "one_way", "as_float")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CODED_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    TUPLE_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    DICT_FIELD_NUMBER: _ClassVar[int]
    ONE_WAY_FIELD_NUMBER: _ClassVar[int]
    AS_FLOAT_FIELD_NUMBER: _ClassVar[int]
    key: str
    coded: Matrix
    exact: bytes
    tuple: int
    list: int
    dict: int
    one_way: bool
    as_float: bool
    def __init__(self, key: _Optional[str] = ..., coded: _Optional[_Union[Matrix, _Mapping]] = ..., exact: _Optional[bytes] = ..., tuple: _Optional[int] = ..., list: _Optional[int] = ..., dict: _Optional[int] = ..., one_way: bool = ..., as_float: bool = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data", "coding")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CODING_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    coding: Coding
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., coding: _Optional[_Union[Coding, str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("arrays", "change_bits")
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_BITS_FIELD_NUMBER: _ClassVar[int]
    arrays: _containers.RepeatedCompositeFieldContainer[Tensor]
    change_bits: int
    def __init__(self, arrays: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., change_bits: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol", "nonce", "software")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    nonce: bytes
    software: str
    def __init__(self, protocol: _Optional[int] = ..., nonce: _Optional[bytes] = ..., software: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("features", "labels", "one_way", "parts")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ONE_WAY_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    features: Matrix
    labels: bytes
    one_way: bool
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, features: _Optional[_Union[Matrix, _Mapping]] = ..., labels: _Optional[bytes] = ..., one_way: bool = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("features", "parts", "one_way", "label_entries")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    ONE_WAY_FIELD_NUMBER: _ClassVar[int]
    LABEL_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    features: Matrix
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    one_way: bool
    label_entries: int
    def __init__(self, features: _Optional[_Union[Matrix, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., one_way: bool = ..., label_entries: _Optional[int] = ...) -> None: ...

class Backward(_message.Message):
    __slots__ = ("gradient",)
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    gradient: Matrix
    def __init__(self, gradient: _Optional[_Union[Matrix, _Mapping]] = ...) -> None: ...

class Predict(_message.Message):
    __slots__ = ("features", "parts")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    features: Matrix
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, features: _Optional[_Union[Matrix, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("optimizer", "state", "codec_seconds", "waited_seconds", "feature_error_sum", "feature_error_steps", "round_trips", "levels", "no_levels")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODEC_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_ERROR_SUM_FIELD_NUMBER: _ClassVar[int]
    FEATURE_ERROR_STEPS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    NO_LEVELS_FIELD_NUMBER: _ClassVar[int]
    optimizer: _containers.RepeatedCompositeFieldContainer[Tensor]
    state: _containers.RepeatedCompositeFieldContainer[Tensor]
    codec_seconds: float
    waited_seconds: float
    feature_error_sum: float
    feature_error_steps: int
    round_trips: int
    levels: _containers.RepeatedScalarFieldContainer[int]
    no_levels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, optimizer: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., codec_seconds: _Optional[float] = ..., waited_seconds: _Optional[float] = ..., feature_error_sum: _Optional[float] = ..., feature_error_steps: _Optional[int] = ..., round_trips: _Optional[int] = ..., levels: _Optional[_Iterable[int]] = ..., no_levels: _Optional[_Iterable[int]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceFrame(_message.Message):
    __slots__ = ("number", "open", "step", "predict", "close", "forward", "backward", "leave")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    number: int
    open: Open
    step: Step
    predict: Predict
    close: Close
    forward: Forward
    backward: Backward
    leave: Leave
    def __init__(self, number: _Optional[int] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., predict: _Optional[_Union[Predict, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., backward: _Optional[_Union[Backward, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("optimizer", "state", "levels")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    optimizer: _containers.RepeatedCompositeFieldContainer[Tensor]
    state: _containers.RepeatedCompositeFieldContainer[Tensor]
    levels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, optimizer: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., levels: _Optional[_Iterable[int]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: int
    def __init__(self, place: _Optional[int] = ...) -> None: ...

class Stepped(_message.Message):
    __slots__ = ("loss", "gradient", "gradients")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    loss: float
    gradient: Matrix
    gradients: _containers.RepeatedCompositeFieldContainer[Matrix]
    def __init__(self, loss: _Optional[float] = ..., gradient: _Optional[_Union[Matrix, _Mapping]] = ..., gradients: _Optional[_Iterable[_Union[Matrix, _Mapping]]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("output",)
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    output: Matrix
    def __init__(self, output: _Optional[_Union[Matrix, _Mapping]] = ...) -> None: ...

class Gradients(_message.Message):
    __slots__ = ("gradient", "gradients")
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    gradient: Matrix
    gradients: _containers.RepeatedCompositeFieldContainer[Matrix]
    def __init__(self, gradient: _Optional[_Union[Matrix, _Mapping]] = ..., gradients: _Optional[_Iterable[_Union[Matrix, _Mapping]]] = ...) -> None: ...

class Predicted(_message.Message):
    __slots__ = ("logits", "parts")
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    logits: Tensor
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, logits: _Optional[_Union[Tensor, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    detail: str
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("number", "opened", "stepped", "predicted", "closed", "refused", "output", "gradients", "kept", "waiting")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    STEPPED_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    number: int
    opened: Opened
    stepped: Stepped
    predicted: Predicted
    closed: Closed
    refused: Refused
    output: Output
    gradients: Gradients
    kept: Kept
    waiting: Waiting
    def __init__(self, number: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., stepped: _Optional[_Union[Stepped, _Mapping]] = ..., predicted: _Optional[_Union[Predicted, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., gradients: _Optional[_Union[Gradients, _Mapping]] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ...) -> None: ...
