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
    __slots__ = ("seat", "address", "pid", "node", "fingerprint", "dtype", "held", "capacity", "offer")
    SEAT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    seat: str
    address: str
    pid: int
    node: str
    fingerprint: str
    dtype: str
    held: ExpertSet
    capacity: int
    offer: str
    def __init__(self, seat: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., fingerprint: _Optional[str] = ..., dtype: _Optional[str] = ..., held: _Optional[_Union[ExpertSet, _Mapping]] = ..., capacity: _Optional[int] = ..., offer: _Optional[str] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("lease_id", "lease_s", "incarnation")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    lease_s: float
    incarnation: int
    def __init__(self, lease_id: _Optional[int] = ..., lease_s: _Optional[float] = ..., incarnation: _Optional[int] = ...) -> None: ...

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

class FollowRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    def __init__(self, lease_id: _Optional[int] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("hold", "leave")
    HOLD_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    hold: ExpertSet
    leave: bool
    def __init__(self, hold: _Optional[_Union[ExpertSet, _Mapping]] = ..., leave: bool = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("expert_shards", "attention_workers", "replicas", "drain", "without", "drain_offer")
    EXPERT_SHARDS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_WORKERS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_OFFER_FIELD_NUMBER: _ClassVar[int]
    expert_shards: int
    attention_workers: int
    replicas: float
    drain: str
    without: _containers.RepeatedScalarFieldContainer[str]
    drain_offer: str
    def __init__(self, expert_shards: _Optional[int] = ..., attention_workers: _Optional[int] = ..., replicas: _Optional[float] = ..., drain: _Optional[str] = ..., without: _Optional[_Iterable[str]] = ..., drain_offer: _Optional[str] = ...) -> None: ...

class ScaleReply(_message.Message):
    __slots__ = ("expert_seats", "attention_seats", "replicas")
    EXPERT_SEATS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_SEATS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    expert_seats: _containers.RepeatedScalarFieldContainer[str]
    attention_seats: _containers.RepeatedScalarFieldContainer[str]
    replicas: float
    def __init__(self, expert_seats: _Optional[_Iterable[str]] = ..., attention_seats: _Optional[_Iterable[str]] = ..., replicas: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("seat",)
    SEAT_FIELD_NUMBER: _ClassVar[int]
    seat: str
    def __init__(self, seat: _Optional[str] = ...) -> None: ...

class ReadHeadsRequest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, files: _Optional[_Iterable[str]] = ...) -> None: ...

class HeadPiece(_message.Message):
    __slots__ = ("file", "file_bytes", "head_bytes", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: str
    file_bytes: int
    head_bytes: int
    data: bytes
    def __init__(self, file: _Optional[str] = ..., file_bytes: _Optional[int] = ..., head_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("seat", "address", "numerics", "held", "max_model_len")
    SEAT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    seat: str
    address: str
    numerics: str
    held: ExpertSet
    max_model_len: int
    def __init__(self, seat: _Optional[str] = ..., address: _Optional[str] = ..., numerics: _Optional[str] = ..., held: _Optional[_Union[ExpertSet, _Mapping]] = ..., max_model_len: _Optional[int] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("seat", "state", "numerics", "epoch", "held", "bytes_loaded", "bytes_total", "tokens", "metrics", "error", "min_epoch", "backend", "fingerprint", "pid", "load", "quarantined", "seconds_per_expert")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SecondsPerExpertEntry(_message.Message):
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
    LOAD_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_EXPERT_FIELD_NUMBER: _ClassVar[int]
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
    load: bytes
    quarantined: _containers.RepeatedScalarFieldContainer[str]
    seconds_per_expert: _containers.ScalarMap[str, float]
    def __init__(self, seat: _Optional[str] = ..., state: _Optional[str] = ..., numerics: _Optional[str] = ..., epoch: _Optional[_Union[EpochId, _Mapping]] = ..., held: _Optional[_Union[ExpertSet, _Mapping]] = ..., bytes_loaded: _Optional[int] = ..., bytes_total: _Optional[int] = ..., tokens: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., error: _Optional[str] = ..., min_epoch: _Optional[_Union[EpochId, _Mapping]] = ..., backend: _Optional[str] = ..., fingerprint: _Optional[str] = ..., pid: _Optional[int] = ..., load: _Optional[bytes] = ..., quarantined: _Optional[_Iterable[str]] = ..., seconds_per_expert: _Optional[_Mapping[str, float]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("seat",)
    SEAT_FIELD_NUMBER: _ClassVar[int]
    seat: str
    def __init__(self, seat: _Optional[str] = ...) -> None: ...

class FleetStatus(_message.Message):
    __slots__ = ("workers", "epoch", "ready", "missing", "settled", "replicas", "coverage", "wanted_expert_shards", "fingerprint", "dtype", "versions", "shortfall")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    WANTED_EXPERT_SHARDS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    epoch: EpochId
    ready: bool
    missing: str
    settled: bool
    replicas: float
    coverage: float
    wanted_expert_shards: int
    fingerprint: str
    dtype: str
    versions: _containers.ScalarMap[str, str]
    shortfall: str
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., epoch: _Optional[_Union[EpochId, _Mapping]] = ..., ready: bool = ..., missing: _Optional[str] = ..., settled: bool = ..., replicas: _Optional[float] = ..., coverage: _Optional[float] = ..., wanted_expert_shards: _Optional[int] = ..., fingerprint: _Optional[str] = ..., dtype: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ..., shortfall: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("role", "seat", "pid", "node", "address", "state", "report", "num_experts", "wanted", "quarantined_by", "offer", "lease_id", "held_s", "silent_s")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SEAT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BY_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    role: str
    seat: str
    pid: int
    node: str
    address: str
    state: str
    report: WorkerReport
    num_experts: int
    wanted: bool
    quarantined_by: _containers.RepeatedScalarFieldContainer[str]
    offer: str
    lease_id: int
    held_s: float
    silent_s: float
    def __init__(self, role: _Optional[str] = ..., seat: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., report: _Optional[_Union[WorkerReport, _Mapping]] = ..., num_experts: _Optional[int] = ..., wanted: bool = ..., quarantined_by: _Optional[_Iterable[str]] = ..., offer: _Optional[str] = ..., lease_id: _Optional[int] = ..., held_s: _Optional[float] = ..., silent_s: _Optional[float] = ...) -> None: ...

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
