"""The settings of the process: where it listens, what it writes, how it ends.

Each can be given as a flag of ``relay serve`` or in the environment with the prefix ``RELAY_``; the flag
wins. What belongs to the calls themselves stands in the policy file.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay_service.config.addresses import parse_address, parse_target
from relay_service.config.complaints import in_plain_words
from relay_service.config.problems import ConfigError, Problem, shown, without_credentials
from relay_service.fault_points import FaultAt

PREFIX = "RELAY_"
OTLP_VARIABLES = ("RELAY_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Ours first, then OpenTelemetry's own."""


def _address(value: str) -> str:
    return str(parse_address(value))


def _target(value: str) -> str:
    return str(parse_target(value))


def _endpoint(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(
            "must begin with http:// or https://, such as http://127.0.0.1:4317 (https:// means TLS)"
        )
    return value


def _webhook(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return value


def _store(value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind not in ("sqlite", "postgres", "postgresql") or not rest:
        raise ValueError("must be sqlite:PATH or postgres://USER@HOST/DATABASE")
    return value


def _fault_point(value: str) -> str:
    FaultAt(value)
    return value


ListenAddress = Annotated[str, AfterValidator(_address)]
LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """All settings with their defaults; everything listens on the loopback unless told otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=False,
    )

    listen: ListenAddress = Field(
        default="127.0.0.1:50051",
        description="Where calls come in. Port 0 takes a free one.",
    )
    admin_listen: ListenAddress = Field(
        default="127.0.0.1:50055",
        description="Where AdminService listens. Keep it private: it has no access control.",
    )
    http_listen: ListenAddress = Field(
        default="127.0.0.1:9464",
        description="Where metrics and health are served over HTTP.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of the certificate shown to callers. Unset serves them in cleartext.",
    )
    tls_key: Path | None = Field(
        default=None,
        description="PEM file of its private key.",
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign callers' certificates; then each must have one.",
    )
    upstream: Annotated[str, AfterValidator(_target)] = Field(
        default="127.0.0.1:50052",
        description="Where calls go when the policy names no upstreams.",
    )
    policy: str = Field(
        default="default",
        min_length=1,
        description="A policy file, or the name of a preset.",
    )
    store: Annotated[str, AfterValidator(_store)] | None = Field(
        default=None,
        description="Where keys, jobs and dead letters are kept: `sqlite:PATH` or `postgres://…`. Unset "
        "takes `relay.db` in the state directory as soon as the policy keeps keys, and else none.",
    )
    state_dir: Path | None = Field(
        default=None,
        description="The relay's own files. Unset takes `resilient-relay` in `$XDG_STATE_HOME` or "
        "`~/.local/state`.",
    )
    policy_poll_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds between looks at the policy file, to reload it after a change. 0 never looks.",
    )
    trace_file: Path | None = Field(
        default=None,
        description="Append spans to this file as lines of OTLP JSON. Unset writes none.",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        default=None,
        validation_alias=AliasChoices(*OTLP_VARIABLES),
        description="Send spans to this collector by OTLP/gRPC. Unset sends none.",
    )
    sample_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of calls traced in full, unless the caller decided. A failure always gets a span.",
    )
    alert_webhook: Annotated[str, AfterValidator(_webhook)] | None = Field(
        default=None,
        description="POST alerts (`relay.alerts` of the policy) to this URL as JSON. Unset only logs them.",
    )
    log_level: LogLevel = Field(
        default="info",
        description="The least severe log line that is written: debug, info, warning or error.",
    )
    shutdown_grace_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="Seconds that calls in flight get to finish at shutdown.",
    )
    seed: int | None = Field(
        default=None,
        description="Seed of everything drawn (jitter, sampling), to repeat a run. Unset takes a new one.",
    )

    fault_point: Annotated[str, AfterValidator(_fault_point)] | None = Field(
        default=None,
        description="For tests: `STEP:kill:NTH` or `STEP:stop:NTH` sends this process SIGKILL or SIGSTOP "
        "the NTH time it reaches a step.",
    )

    @property
    def state_directory(self) -> Path:
        """Where the relay's own files are."""
        if self.state_dir is not None:
            return self.state_dir
        home = os.environ.get("XDG_STATE_HOME")
        return (Path(home) if home else Path.home() / ".local" / "state") / "resilient-relay"

    def store_url(self, *, needed: bool) -> str | None:
        """The store to open: the one that is set, else a file of our own where one is ``needed``."""
        if self.store is not None:
            return self.store
        return f"sqlite:{self.state_directory / 'relay.db'}" if needed else None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What a log line may show: an endpoint's credentials never."""
        for name, value in super().__repr_args__():
            yield name, without_credentials(value) if isinstance(value, str) else value


def read_settings(flags: Mapping[str, Any]) -> Settings:
    """The settings from the flags given (by field name), then the environment, then the defaults.

    Raises `ConfigError` with every setting that is wrong.
    """
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        raise ConfigError(_problems(error, flags)) from error
    if problems := list(_half_of_tls(settings)):
        raise ConfigError(problems)
    return settings


def variable(field_name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{field_name.upper()}"


def flag(field_name: str) -> str:
    """The flag of a setting."""
    return f"--{field_name.removesuffix('_s').replace('_', '-')}"


def _half_of_tls(settings: Settings) -> Iterator[Problem]:
    """Cleartext where somebody meant TLS must not happen silently."""
    needs = {
        "tls_certificate": settings.tls_key or settings.tls_client_ca,
        "tls_key": settings.tls_certificate,
    }
    for name, because in needs.items():
        if because is not None and getattr(settings, name) is None:
            yield Problem(flag(name), "", "", f"is required for TLS, which {shown(str(because))} asks for")


def _problems(error: ValidationError, flags: Mapping[str, Any]) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        source = _source(str(detail["loc"][0]), flags)
        yield Problem(source, "", f"got {shown(detail['input'])}", in_plain_words(detail["msg"]))


def _source(name: str, flags: Mapping[str, Any]) -> str:
    """The flag or variable a value came from; pydantic names the field, or the first of its variables."""
    if name in flags:
        return flag(name)
    names = OTLP_VARIABLES if name in ("otlp_endpoint", *OTLP_VARIABLES) else (variable(name),)
    return next((candidate for candidate in names if candidate in os.environ), names[0])
