from nodeproxy.proto import workload_pb2 as _workload_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodePod(_message.Message):
    __slots__ = ("namespace", "name", "pod_uid", "membership", "workload", "probe_ports")
    class Membership(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNLABELLED: _ClassVar[NodePod.Membership]
        NAMESPACE_LABEL: _ClassVar[NodePod.Membership]
        POD_LABEL: _ClassVar[NodePod.Membership]
        OPTED_OUT: _ClassVar[NodePod.Membership]
        HOST_NETWORK: _ClassVar[NodePod.Membership]
        SIDECAR: _ClassVar[NodePod.Membership]
    UNLABELLED: NodePod.Membership
    NAMESPACE_LABEL: NodePod.Membership
    POD_LABEL: NodePod.Membership
    OPTED_OUT: NodePod.Membership
    HOST_NETWORK: NodePod.Membership
    SIDECAR: NodePod.Membership
    class Ports(_message.Message):
        __slots__ = ("ports",)
        PORTS_FIELD_NUMBER: _ClassVar[int]
        ports: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, ports: _Optional[_Iterable[int]] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROBE_PORTS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    pod_uid: str
    membership: NodePod.Membership
    workload: _workload_pb2.Workload
    probe_ports: NodePod.Ports
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., pod_uid: _Optional[str] = ..., membership: _Optional[_Union[NodePod.Membership, str]] = ..., workload: _Optional[_Union[_workload_pb2.Workload, _Mapping]] = ..., probe_ports: _Optional[_Union[NodePod.Ports, _Mapping]] = ...) -> None: ...

class MeshNamespace(_message.Message):
    __slots__ = ("name", "labelled")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    labelled: bool
    def __init__(self, name: _Optional[str] = ..., labelled: _Optional[bool] = ...) -> None: ...
