"""Every option of the server: flag, environment variable, key of the configuration file, help.

A field of `ServerSettings` is all of these at once; the command line, the README's table and the
tests read them off it. Environment and files are read here and nowhere else. What is given on
the command line comes first, then the environment, then the file, then the default.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FilePath, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.config import EngineConfig
from engine.errors import ConfigError
from server.settings_file import read_settings_file

ENV_PREFIX = "BITSKIP_"
NOT_OPTIONS = ("web_concurrency",)
"""Fields that are read only to be refused."""

_KUBERNETES_LINK = "tcp://"


def _option(
    section: str,
    description: str,
    default: Any = None,
    *,
    metavar: str | None = None,
    **limits: Any,
) -> Any:
    """A setting; `section` is where `--help` and the README show it."""
    extra = {"section": section, "metavar": metavar}
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


def _split_list(value: Any) -> Any:
    """A list written as "a,b", or as a list whose items may be written so."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        parts = [part.strip() for item in value for part in item.split(",")]
        # A list on purpose empty is one; a variable that expanded to nothing is a mistake.
        if parts and not any(parts):
            raise ValueError("is empty")
        return tuple(part for part in parts if part)
    return value


def key_digest(key: bytes) -> bytes:
    """What is kept of an API key."""
    return hashlib.sha256(key).digest()


def _hash_keys(value: Any) -> Any:
    keys = _split_list(value)
    if not isinstance(keys, tuple):
        raise ValueError("must be texts: put a key that looks like a number into quotes")
    return tuple(key_digest(key.encode(errors="surrogateescape")) for key in keys)


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]
KeyHashes = Annotated[tuple[bytes, ...], NoDecode, BeforeValidator(_hash_keys)]

MODEL, NETWORK, ACCESS = "Model", "Network", "Access"
BATCHING, SPECULATION = "Batching and memory", "Speculation"
LIMITS, REPORTS = "Limits", "Logging and metrics"


class ServerSettings(BaseSettings):
    """How one server runs; the descriptions are the command line's help texts."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    model: str | None = _option(
        MODEL,
        "Directory of the model, packed or not, or its id on the Hugging Face hub (org/name); "
        "absent: the bundled demo.",
    )
    config: str | None = _option(
        MODEL,
        "YAML file with options: max_num_seqs: 8 stands for --max-num-seqs 8. Flags and "
        "environment variables come before it.",
        metavar="FILE",
    )
    revision: str | None = _option(
        MODEL, "Branch, tag or commit of a model from the hub. Default: its main branch."
    )
    served_model_name: Names = _option(
        MODEL,
        "Name that requests use for the model, repeatable; the first is the one that answers "
        "show. Default: the name of the model's directory; bitskip-demo for the demo.",
        (),
        metavar="NAME",
    )
    max_model_len: int | None = _option(
        MODEL, "Longest prompt plus completion, in tokens. Default: the trained context."
    )
    backend: str = _option(
        MODEL, "What computes the model: auto takes the best that can run here.", "auto"
    )
    threads: int | None = _option(MODEL, "Threads that compute. Default: one per core.", ge=1)
    head_dtype: Literal["auto", "fp32", "bf16", "int8"] = _option(
        MODEL,
        "What the LM head is held in: fp32, bf16 or int8; auto: int8 if native.",
        "auto",
        metavar="DTYPE",
    )
    dense_dtype: Literal["auto", "fp32", "bf16", "int8"] = _option(
        MODEL,
        "What the linears of a model that is not ternary are held in: fp32, bf16 or int8; auto: "
        "bf16 if native. Refused for ternary models.",
        "auto",
        metavar="DTYPE",
    )
    kv_dtype: Literal["auto", "fp32", "fp16", "int8"] = _option(
        MODEL,
        "What K/V is cached in: fp16, fp32 or, on the cpu backend, int8; auto: fp16 if native.",
        "auto",
        metavar="DTYPE",
    )
    chat_template: FilePath | None = _option(
        MODEL,
        "File with the Jinja template that turns messages into a prompt. Default: the model's own.",
        metavar="FILE",
    )
    pack_cache: bool = _option(
        MODEL,
        "Pack a model that is not packed into the cache directory, once, and serve that: it "
        "loads faster and takes less memory.",
        True,
    )
    cache_dir: str | None = _option(
        MODEL,
        "Directory for packed models. Default: bitskip in XDG_CACHE_HOME or ~/.cache.",
        metavar="DIR",
    )

    host: str = _option(NETWORK, "Address to listen on.", "127.0.0.1")
    port: int = _option(NETWORK, "Port to listen on; 0 picks a free one.", 8000, ge=0, le=65535)
    uds: str | None = _option(
        NETWORK, "Unix socket to listen on, instead of address and port.", metavar="FILE"
    )
    uds_permissions: str = _option(
        NETWORK,
        "Who may connect to the Unix socket, as an octal file mode.",
        "660",
        pattern=r"^0?[0-7]{3}$",
        metavar="MODE",
    )
    ssl_certfile: str | None = _option(
        NETWORK,
        "Certificate, in PEM form, with which to serve HTTPS; the chain may follow in it.",
        metavar="FILE",
    )
    ssl_keyfile: str | None = _option(
        NETWORK, "The certificate's private key, if it is not in the same file.", metavar="FILE"
    )
    ssl_keyfile_password: SecretStr | None = _option(
        NETWORK, "Password of an encrypted private key.", metavar="TEXT"
    )
    ssl_ca_certs: str | None = _option(
        NETWORK,
        "Certificates of those who vouch for clients: clients must then show theirs.",
        metavar="FILE",
    )
    ping_interval: float = _option(
        NETWORK,
        "Seconds of silence after which a stream gets a comment.",
        15.0,
        gt=0,
        allow_inf_nan=False,
    )
    shutdown_timeout: float = _option(
        NETWORK,
        "Seconds that running requests get to finish after SIGTERM.",
        30.0,
        ge=0,
        allow_inf_nan=False,
    )

    api_key: KeyHashes = _option(
        ACCESS,
        "Key that requests must send (Authorization: Bearer KEY), repeatable or with commas. "
        "Other users of the machine see flags: better the environment or a file. Default: "
        "everybody is answered.",
        (),
        metavar="KEY",
        repr=False,
    )
    api_key_file: str | None = _option(
        ACCESS, "File with further keys, one a line; lines with # are comments.", metavar="FILE"
    )
    protect_metrics: bool = _option(ACCESS, "Ask for a key at /metrics too.", False)
    allowed_origins: Names = _option(
        ACCESS,
        "Web page origin (https://example.com) whose scripts may call this server, repeatable or "
        "with commas; * for all. Default: none but our own pages.",
        (),
        metavar="ORIGIN",
    )

    max_num_seqs: int = _option(BATCHING, "Choices that may run at once.", 256)
    kv_cache_tokens: int | None = _option(
        BATCHING,
        "Positions that the K/V cache holds. Default: four contexts, 16384 to 65536, but never "
        "less than one context.",
    )
    block_size: int = _option(BATCHING, "Positions per K/V block.", 16)
    prefix_caching: bool = _option(BATCHING, "Reuse the K/V of prompts that begin alike.", True)
    prefill_budget_ms: float = _option(
        BATCHING,
        "Predicted time that prompts may add to a step while others are answered.",
        100.0,
        gt=0,
        allow_inf_nan=False,
    )

    speculative: bool = _option(
        SPECULATION, "Draft and verify for requests that do not say; never changes tokens.", True
    )
    draft_exit_layer: int | None = _option(
        SPECULATION,
        "Layers that draft. Default: as the checkpoint says, or a quarter of them.",
    )
    num_speculations: int | None = _option(
        SPECULATION,
        "Drafts per step for requests that do not say, 0 to 16. Default: what pays.",
    )
    draft_vocab_size: int = _option(
        SPECULATION, "Most frequent tokens that drafts choose from.", 8192
    )

    max_queued_requests: int = _option(
        LIMITS,
        "Choices that may wait for a place to run; who comes then is answered 429.",
        1024,
        ge=0,
    )
    max_queued_prompt_tokens: int = _option(
        LIMITS,
        "Prompt tokens that may wait, estimated from the text's length; beyond: 429.",
        1_000_000,
        ge=1,
    )
    queue_timeout: float | None = _option(
        LIMITS,
        "Seconds that a request may wait before it is answered 408. Default: as long as it takes.",
        gt=0,
        allow_inf_nan=False,
    )
    max_body_bytes: int = _option(
        LIMITS, "Largest body of a request, in bytes; beyond: 413.", 8 << 20, ge=1
    )
    max_prompts: int = _option(LIMITS, "Prompts in one request.", 256, ge=1)
    max_n: int = _option(LIMITS, "Choices for each prompt of a request (n).", 128, ge=1, le=128)
    max_stop_strings: int = _option(LIMITS, "Stop strings in a request.", 4, ge=0)
    max_stop_length: int = _option(LIMITS, "Characters in a stop string.", 256, ge=1)

    log_level: Literal["debug", "info", "warning", "error"] = _option(
        REPORTS, "Least severe messages to log: debug, info, warning or error.", "info"
    )
    vllm_metrics: bool = _option(
        REPORTS, "Export the speculation counters under vLLM's names too.", True
    )

    web_concurrency: int = Field(default=1, validation_alias="WEB_CONCURRENCY")

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("port", mode="before")
    @classmethod
    def _explain_service_links(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_KUBERNETES_LINK):
            raise ValueError(
                f"{value} was set by Kubernetes for a service called bitskip, not by you: rename "
                "the service, or set enableServiceLinks: false in the pod"
            )
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, separator, host = origin.partition("://")
            if origin != "*" and not (scheme and separator and host and "/" not in host):
                raise ValueError(
                    f"{origin!r} is no origin: write scheme://host or scheme://host:port, "
                    "without a path or a slash at the end"
                )
        return value

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

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names under which the model is served; the first is the one that responses show."""
        return self.served_model_name or (self.default_model_name,)

    def engine_config(self) -> EngineConfig:
        """The engine's part of the options, still to be resolved for a model."""
        return EngineConfig(
            block_size=self.block_size,
            head_dtype=self.head_dtype,
            dense_dtype=self.dense_dtype,
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


def option_names() -> tuple[str, ...]:
    """Every setting that is a flag, in the order in which they are shown."""
    return tuple(name for name in ServerSettings.model_fields if name not in NOT_OPTIONS)


def env_name(field: str) -> str:
    """The environment variable of a setting."""
    alias = ServerSettings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{ENV_PREFIX}{field.upper()}"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Environment variables that look like ours and are no setting: misspelt, most likely."""
    known = {env_name(name) for name in option_names()}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def load_settings(**given: Any) -> ServerSettings:
    """Settings from what was given, the environment, the file that `config` names, the defaults.

    None means not given. Raises `ConfigError` naming the first option at fault, and where it
    was set if that was not the command line.
    """
    flags = {name: value for name, value in given.items() if value is not None}
    path = flags.get("config") or os.environ.get(env_name("config"))
    keys = [name for name in option_names() if name != "config"]
    in_file = read_settings_file(Path(path), keys) if path else {}
    from_file = {
        name: value
        for name, value in in_file.items()
        if name not in flags and not os.environ.get(env_name(name))
    }
    try:
        return ServerSettings(**flags, **from_file)
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "path_not_file":
            message = f"{failure.errors()[0]['input']} is no file"
        place = ""
        if name in from_file:
            place = f"{path}: "
        elif name not in flags and name in ServerSettings.model_fields:
            place = f"{env_name(name)}: "
        raise ConfigError(f"{place}{name}: {message}") from None
