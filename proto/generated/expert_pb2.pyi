from expertfleet.proto.generated import membership_pb2 as _membership_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RaiseMinEpochRequest(_message.Message):
    __slots__ = ("min_epoch",)
    MIN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    min_epoch: _membership_pb2.EpochId
    def __init__(self, min_epoch: _Optional[_Union[_membership_pb2.EpochId, _Mapping]] = ...) -> None: ...

class RaiseMinEpochReply(_message.Message):
    __slots__ = ("min_epoch",)
    MIN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    min_epoch: _membership_pb2.EpochId
    def __init__(self, min_epoch: _Optional[_Union[_membership_pb2.EpochId, _Mapping]] = ...) -> None: ...

class ReadExpertRequest(_message.Message):
    __slots__ = ("fingerprint", "layer", "expert")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    layer: int
    expert: int
    def __init__(self, fingerprint: _Optional[str] = ..., layer: _Optional[int] = ..., expert: _Optional[int] = ...) -> None: ...

class ExpertPiece(_message.Message):
    __slots__ = ("tensors", "sha256", "data")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[ExpertTensor]
    sha256: bytes
    data: bytes
    def __init__(self, tensors: _Optional[_Iterable[_Union[ExpertTensor, _Mapping]]] = ..., sha256: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class ExpertTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...
