"""Every setting, once: flags > LIKEWISE_… in the environment > likewise.toml > the defaults here.

Only app.py, the commands and tuning read them; the rest of the server gets plain arguments.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 2**20


class Settings(BaseSettings):
    """What `likewise serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="LIKEWISE_", toml_file="likewise.toml", extra="ignore")

    data: Path = Field(Path("likewise-data"), description="directory of the collections and heads")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    backbone: Annotated[list[str], NoDecode] = Field(
        ["likewise-tiny"], min_length=1, description="backbones to serve; the first is the default"
    )
    device: str = Field(
        "auto",
        description="auto (GPUs, else cpu), cpu (a copy a core, at most 4), cpu:0 (one), cuda:N; several by commas",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 where the device computes it natively with auto"
    )
    compile: Literal["behind", "before", "off"] = Field(
        "behind", description="compile networks while serving them eagerly, before serving at all, or never"
    )
    decoding: Literal["scaled", "full", "nvjpeg"] = Field(
        "scaled",
        description="decode large JPEGs at a smaller scale, every pixel, or on the GPU; part of the fingerprint",
    )
    weights_dir: Path | None = Field(None, description="where weights are looked for before any download")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="port for Prometheus metrics; none by default")
    tls_cert: Path | None = Field(None, description="certificate chain in PEM; may be replaced while serving")
    tls_key: Path | None = Field(None, description="its key in PEM, unencrypted")
    tls_client_ca: Path | None = Field(None, description="authorities in PEM: clients need a certificate of theirs")
    require_tokens: bool = Field(False, description="let nobody in without a token, also while there is none")
    insecure: bool = Field(False, description="allow listening beyond this machine without TLS or tokens")
    audit_bytes: int = Field(
        64 * MIB, ge=0, description="size at which a new audit.jsonl is begun, five being kept; 0: no audit log"
    )
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level logged; calls that went well within a second are of level debug"
    )
    grace_s: float = Field(10.0, ge=0, description="seconds that accepted work gets at shutdown")
    max_batch: int = Field(32, ge=1, le=1024, description="images in one forward pass")
    decode_threads: int = Field(0, ge=0, le=256, description="threads that decode images; 0: one per core")
    decode_in: Literal["threads", "processes"] = Field(
        "threads", description="decode in this process, or in one for each thread, which a picture may crash"
    )
    decode_timeout_s: float = Field(30.0, gt=0, description="seconds that a picture may take to decode in a process")
    max_message_bytes: int = Field(64 * MIB, ge=MIB, description="largest gRPC message, either way")
    max_items: int = Field(1024, ge=1, description="images, vectors, ids or queries in one message")
    max_image_bytes: int = Field(32 * MIB, ge=1, description="largest encoded image")
    max_pixels: int = Field(64_000_000, ge=1, description="largest image, in pixels, checked before decoding")
    max_k: int = Field(10_000, ge=1, le=10_000, description="largest k of a search")
    max_hits: int = Field(200_000, ge=10_000, description="queries times k of one search, or neighbours")
    max_calls: int = Field(2048, ge=1, description="calls under way at once, streams included, over all callers")
    queue_items: int = Field(4096, ge=1, description="images admitted at once, over all callers")
    queue_bytes: int = Field(512 * MIB, ge=MIB, description="encoded bytes admitted at once, over all callers")
    queue_pixels: int = Field(4_000_000_000, ge=1, description="pixels admitted at once, by the images' headers")
    queue_interactive: int = Field(
        48, ge=1, description="images of small unary calls that are always admitted; more only if done in time"
    )
    interactive_wait_s: float = Field(
        0.1, ge=0, description="seconds of queued work beyond which further small unary calls are refused"
    )
    cache_bytes: int = Field(64 * MIB, ge=0, description="memory for vectors of pictures seen before; 0: none")
    search_gpu_bytes: int = Field(
        2048 * MIB, ge=0, description="memory of a GPU that large collections may take for search; 0: none"
    )
    stream_window: int = Field(256, ge=1, description="images in flight on one stream")

    @field_validator("backbone", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Accept "resnet50,likewise-tiny" from the environment."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("tls_cert", "tls_key", "tls_client_ca", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """Let the environment take away what the file gives: an empty text is none, not this directory."""
        return None if value == "" else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put flags before the environment before the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def is_loopback(self) -> bool:
        """Return whether only this machine can reach `host`."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
