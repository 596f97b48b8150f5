from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatusUp(_message.Message):
    __slots__ = ("version", "worker", "agent")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    version: int
    worker: bytes
    agent: bytes
    def __init__(self, version: _Optional[int] = ..., worker: _Optional[bytes] = ..., agent: _Optional[bytes] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("version", "document", "revision", "progress", "term", "redirect", "leader")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    version: int
    document: bytes
    revision: int
    progress: bytes
    term: int
    redirect: bool
    leader: str
    def __init__(self, version: _Optional[int] = ..., document: _Optional[bytes] = ..., revision: _Optional[int] = ..., progress: _Optional[bytes] = ..., term: _Optional[int] = ..., redirect: bool = ..., leader: _Optional[str] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class InspectReply(_message.Message):
    __slots__ = ("version", "status")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    version: int
    status: bytes
    def __init__(self, version: _Optional[int] = ..., status: _Optional[bytes] = ...) -> None: ...

class CommandRequest(_message.Message):
    __slots__ = ("version", "name", "args")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    version: int
    name: str
    args: bytes
    def __init__(self, version: _Optional[int] = ..., name: _Optional[str] = ..., args: _Optional[bytes] = ...) -> None: ...

class CommandReply(_message.Message):
    __slots__ = ("version", "redirect", "leader", "error", "revision")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    version: int
    redirect: bool
    leader: str
    error: str
    revision: int
    def __init__(self, version: _Optional[int] = ..., redirect: bool = ..., leader: _Optional[str] = ..., error: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...
