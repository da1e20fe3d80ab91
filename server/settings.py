"""Every option of the server: its environment variable, its help text and its default.

Environment is read here and nowhere else; the command line passes what was given on it, which
comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FilePath, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.config import EngineConfig
from engine.errors import ConfigError

ENV_PREFIX = "BITSKIP_"


class ServerSettings(BaseSettings):
    """How one server runs; the descriptions are the command line's help texts."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    model: str | None = Field(
        default=None, description="Directory of the model, packed or not; absent: the bundled demo."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one."
    )
    served_model_name: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Name that requests use for the model, repeatable; the first is the one "
        "that answers show. Default: the name of the model's directory; bitskip-demo for the demo.",
    )
    backend: str = Field(
        default="auto",
        description="What computes the model: auto takes the best that can run here.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads that compute. Default: one per core."
    )
    head_dtype: Literal["auto", "fp32", "bf16", "int8"] = Field(
        default="auto",
        description="What the LM head is held in: fp32, bf16 or int8; auto: int8 if native.",
    )
    kv_dtype: Literal["auto", "fp32", "fp16", "int8"] = Field(
        default="auto",
        description="What K/V is cached in: fp16 or int8, on the reference backend fp32 or fp16.",
    )
    chat_template: FilePath | None = Field(
        default=None,
        description="File with the Jinja template that turns messages into a prompt. Default: "
        "the model's own.",
    )
    max_model_len: int | None = Field(
        default=None,
        description="Longest prompt plus completion, in tokens. Default: the trained context.",
    )
    max_num_seqs: int = Field(default=256, description="Choices that may run at once.")
    kv_cache_tokens: int | None = Field(
        default=None,
        description="Positions that the K/V cache holds. Default: four contexts, 16384 at least.",
    )
    block_size: int = Field(default=16, description="Positions per K/V block.")
    prefill_budget_ms: float = Field(
        default=100.0,
        gt=0,
        allow_inf_nan=False,
        description="Predicted time that prompts may add to a step while others are answered.",
    )
    speculative: bool = Field(
        default=True,
        description="Draft and verify for requests that do not say; never changes tokens.",
    )
    draft_exit_layer: int | None = Field(
        default=None,
        description="Layers that draft. Default: as the checkpoint says, or a quarter of them.",
    )
    num_speculations: int | None = Field(
        default=None,
        description="Drafts per step for requests that do not say, 0 to 16. Default: what pays.",
    )
    draft_vocab_size: int = Field(
        default=8192, description="Most frequent tokens that drafts choose from."
    )
    prefix_caching: bool = Field(
        default=True, description="Reuse the K/V of prompts that begin alike."
    )
    shutdown_timeout: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that running requests get to finish after SIGTERM.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages to log: debug, info, warning or error."
    )
    vllm_metrics: bool = Field(
        default=True, description="Export the speculation counters under vLLM's names too."
    )
    ping_interval: float = Field(
        default=15.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of silence after which a stream gets a comment.",
    )
    web_concurrency: int = Field(default=1, validation_alias="WEB_CONCURRENCY")

    @field_validator("served_model_name", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("web_concurrency")
    @classmethod
    def _refuse_workers(cls, value: int) -> int:
        if value > 1:
            raise ValueError(
                "more than one worker is refused: each would load its own engine, split the "
                "batch and the prefix cache, and hide behind one metrics address; start several "
                "servers instead"
            )
        return value

    @property
    def default_model_name(self) -> str:
        """The name to serve the model under when none was chosen."""
        return Path(self.model).resolve().name if self.model else "bitskip-demo"

    def engine_config(self) -> EngineConfig:
        """The engine's part of the options, still to be resolved for a model."""
        return EngineConfig(
            block_size=self.block_size,
            head_dtype=self.head_dtype,
            kv_dtype=self.kv_dtype,
            kv_cache_tokens=self.kv_cache_tokens,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            prefill_budget_s=self.prefill_budget_ms / 1000.0,
            enable_prefix_caching=self.prefix_caching,
            speculative=self.speculative,
            draft_exit_layer=self.draft_exit_layer,
            num_speculations=self.num_speculations,
            draft_vocab_size=self.draft_vocab_size,
        )


def env_name(field: str) -> str:
    """The environment variable of a setting."""
    alias = ServerSettings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{ENV_PREFIX}{field.upper()}"


def load_settings(**given: Any) -> ServerSettings:
    """Settings from what was given, then the environment, then the defaults.

    None means not given. Raises `ConfigError` naming the first option at fault.
    """
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}: {message}") from None
