from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdminCommand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADMIN_COMMAND_UNSPECIFIED: _ClassVar[AdminCommand]
    ADMIN_COMMAND_STATUS: _ClassVar[AdminCommand]
    ADMIN_COMMAND_RELOAD: _ClassVar[AdminCommand]
    ADMIN_COMMAND_RESTART: _ClassVar[AdminCommand]
    ADMIN_COMMAND_CRASHES: _ClassVar[AdminCommand]
    ADMIN_COMMAND_METRICS: _ClassVar[AdminCommand]
ADMIN_COMMAND_UNSPECIFIED: AdminCommand
ADMIN_COMMAND_STATUS: AdminCommand
ADMIN_COMMAND_RELOAD: AdminCommand
ADMIN_COMMAND_RESTART: AdminCommand
ADMIN_COMMAND_CRASHES: AdminCommand
ADMIN_COMMAND_METRICS: AdminCommand

class AdminRequest(_message.Message):
    __slots__ = ("command", "tenant", "plugin")
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    command: AdminCommand
    tenant: str
    plugin: str
    def __init__(self, command: _Optional[_Union[AdminCommand, str]] = ..., tenant: _Optional[str] = ..., plugin: _Optional[str] = ...) -> None: ...

class AdminResponse(_message.Message):
    __slots__ = ("ok", "error", "body_json")
    OK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    error: str
    body_json: str
    def __init__(self, ok: _Optional[bool] = ..., error: _Optional[str] = ..., body_json: _Optional[str] = ...) -> None: ...
