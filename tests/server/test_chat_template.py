"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from engine.build import demo_model_path
from engine.errors import ConfigError, InvalidRequestError
from server.chat_template import ChatTemplate

NOW = 1_700_000_000.0
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hi <b>you</b> & 'them'"}],
    [
        {"role": "system", "content": "  Be brief. \n"},
        {"role": "user", "content": "猫 😀"},
        {"role": "assistant", "content": "  Miau  "},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
    ],
    [{"role": "user", "content": "Tell"}, {"role": "assistant", "content": "Once  \n"}],
)
TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "trimming": "{{ bos_token }}{% for message in messages %}\n"
        "    {% if message.role == 'user' %}\n        {{ message.content | trim }}\n"
        "    {% else %}\n    [{{ message.content | trim }}]{{ eos_token }}\n    {% endif %}\n"
        "{% endfor %}\n",
        "json and dates": "{{ messages | tojson(indent=2) }}{{ strftime_now('%d %b %Y') }}"
        "{{ tools is none }}{{ documents is none }}{{ missing is defined }}",
        "loop controls": "{% for m in messages %}"
        "{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index0 }}"
        "{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
        "generation": "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "namespace": "{% set ns = namespace(last='') %}{% for m in messages %}"
        "{% set ns.last = m.role %}{% endfor %}{{ ns.last }}:{{ messages[-1].content }}",
        "demo": (demo_model_path() / "chat_template.jinja").read_text(encoding="utf-8"),
    }
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL_TOKENS, clock=lambda: NOW)


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def theirs(source: str, chat: list[dict[str, str]], **options: Any) -> str:
    """What transformers makes of it, on the same day."""
    oracle = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL_TOKENS)
    source = source.replace(
        "strftime_now('%d %b %Y')", repr(f"{datetime.fromtimestamp(NOW):%d %b %Y}")
    )
    rendered = oracle.apply_chat_template([chat], chat_template=source, tokenize=False, **options)
    assert isinstance(rendered, list)
    return str(rendered[0])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: chat[-1]["content"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(
    name: str, chat: list[dict[str, str]], add_generation_prompt: bool
) -> None:
    source = TEMPLATES[name]
    rendered = template(source).render(chat, add_generation_prompt=add_generation_prompt)
    assert rendered == theirs(source, chat, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("name", ["chatml", "trimming", "generation", "demo"])
@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: chat[-1]["content"])
def test_an_open_end_is_transformers_own(name: str, chat: list[dict[str, str]]) -> None:
    source = TEMPLATES[name]
    rendered = template(source).render(
        chat, add_generation_prompt=False, continue_final_message=True
    )
    assert rendered == theirs(source, chat, continue_final_message=True)
    assert rendered.rstrip().endswith(chat[-1]["content"].strip())


def test_variables_are_added_and_may_replace_special_tokens() -> None:
    rendered = template("{{ bos_token }}{{ eos_token }}{{ mood }}").render(
        user("hi"), variables={"mood": "good", "eos_token": "!"}
    )
    assert rendered == "<s>!good"


@pytest.mark.parametrize(
    "source", ["{{ messages[0].role }}", "{{ 'developer' if 0 }}{{ messages[0].role }}"]
)
def test_developers_are_the_system_to_templates_that_know_none(source: str) -> None:
    rendered = template(source).render([{"role": "developer", "content": "hi"}])
    assert rendered == ("developer" if "developer" in source else "system")


def test_the_messages_of_the_caller_stay_as_they_are() -> None:
    chat = user("hi")
    template("{{ messages[0].content }}").render(chat, continue_final_message=True)
    assert chat == user("hi")


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Only users may speak') }}", "Only users may speak"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ raise_exception('x' * 10000) }}", "xxx"),
    ],
)
def test_what_cannot_be_rendered_is_the_clients_error(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template") as caught:
        template(source).render(user("hi"))
    assert reason in str(caught.value) and caught.value.param == "messages"
    assert len(str(caught.value)) < 500


def test_a_final_message_that_is_left_out_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequestError, match="leaves the final message out") as caught:
        template("nothing").render(user("hi"), continue_final_message=True)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% unknown %}", "{{ x | nofilter }}"])
def test_a_broken_template_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(ConfigError, match=r"the model's chat template is not a usable .*line 1"):
        template(source)


def test_json_is_plain() -> None:
    chat = user("<&'é\"")
    assert json.loads(template("{{ messages | tojson }}").render(chat)) == chat
    assert "<&'é" in template("{{ messages | tojson }}").render(chat)
