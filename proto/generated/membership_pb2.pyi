from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EpochId(_message.Message):
    __slots__ = ("incarnation", "counter")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    counter: int
    def __init__(self, incarnation: _Optional[int] = ..., counter: _Optional[int] = ...) -> None: ...

class ExpertSet(_message.Message):
    __slots__ = ("num_layers", "num_experts", "bits")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_experts: int
    bits: bytes
    def __init__(self, num_layers: _Optional[int] = ..., num_experts: _Optional[int] = ..., bits: _Optional[bytes] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("seat", "address", "pid", "node", "fingerprint", "dtype", "held")
    SEAT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    seat: str
    address: str
    pid: int
    node: str
    fingerprint: str
    dtype: str
    held: ExpertSet
    def __init__(self, seat: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., fingerprint: _Optional[str] = ..., dtype: _Optional[str] = ..., held: _Optional[_Union[ExpertSet, _Mapping]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("lease_id", "lease_s", "assignment")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    lease_s: float
    assignment: ExpertSet
    def __init__(self, lease_id: _Optional[int] = ..., lease_s: _Optional[float] = ..., assignment: _Optional[_Union[ExpertSet, _Mapping]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("lease_id", "report")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    report: WorkerReport
    def __init__(self, lease_id: _Optional[int] = ..., report: _Optional[_Union[WorkerReport, _Mapping]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: bool = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("seat",)
    SEAT_FIELD_NUMBER: _ClassVar[int]
    seat: str
    def __init__(self, seat: _Optional[str] = ...) -> None: ...

class Epoch(_message.Message):
    __slots__ = ("id", "fingerprint", "dtype", "experts", "attention", "complete")
    ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    id: EpochId
    fingerprint: str
    dtype: str
    experts: _containers.RepeatedCompositeFieldContainer[Member]
    attention: _containers.RepeatedCompositeFieldContainer[Member]
    complete: bool
    def __init__(self, id: _Optional[_Union[EpochId, _Mapping]] = ..., fingerprint: _Optional[str] = ..., dtype: _Optional[str] = ..., experts: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., attention: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., complete: bool = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("seat", "address", "numerics", "held")
    SEAT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    seat: str
    address: str
    numerics: str
    held: ExpertSet
    def __init__(self, seat: _Optional[str] = ..., address: _Optional[str] = ..., numerics: _Optional[str] = ..., held: _Optional[_Union[ExpertSet, _Mapping]] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("seat", "state", "numerics", "epoch", "held", "bytes_loaded", "bytes_total", "tokens", "metrics", "error", "min_epoch", "backend", "fingerprint", "pid")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SEAT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    BYTES_LOADED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MIN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    seat: str
    state: str
    numerics: str
    epoch: EpochId
    held: ExpertSet
    bytes_loaded: int
    bytes_total: int
    tokens: int
    metrics: _containers.ScalarMap[str, float]
    error: str
    min_epoch: EpochId
    backend: str
    fingerprint: str
    pid: int
    def __init__(self, seat: _Optional[str] = ..., state: _Optional[str] = ..., numerics: _Optional[str] = ..., epoch: _Optional[_Union[EpochId, _Mapping]] = ..., held: _Optional[_Union[ExpertSet, _Mapping]] = ..., bytes_loaded: _Optional[int] = ..., bytes_total: _Optional[int] = ..., tokens: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., error: _Optional[str] = ..., min_epoch: _Optional[_Union[EpochId, _Mapping]] = ..., backend: _Optional[str] = ..., fingerprint: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FleetStatus(_message.Message):
    __slots__ = ("workers", "epoch", "ready", "missing")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    epoch: EpochId
    ready: bool
    missing: str
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., epoch: _Optional[_Union[EpochId, _Mapping]] = ..., ready: bool = ..., missing: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("role", "seat", "pid", "node", "address", "state", "report", "num_experts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SEAT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    seat: str
    pid: int
    node: str
    address: str
    state: str
    report: WorkerReport
    num_experts: int
    def __init__(self, role: _Optional[str] = ..., seat: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., report: _Optional[_Union[WorkerReport, _Mapping]] = ..., num_experts: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_s",)
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    timeout_s: float
    def __init__(self, timeout_s: _Optional[float] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("finished",)
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    finished: bool
    def __init__(self, finished: bool = ...) -> None: ...
