from expertfleet.proto.generated import membership_pb2 as _membership_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
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
