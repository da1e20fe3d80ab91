"""Generation: the cache, exits, drafts from the model's own layers, batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import engine.hf
from engine.hf import linear as linear_module
from engine.hf.linear import TernaryLinear
from support.family import TERNARY, write_family
from support.reference_logits import assert_greedy, reference_logits

PROMPT = [5, 250, 17, 88, 131]
EXITS = (1, 2, 4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("model") / "m", eos_token_ids=())


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.fixture
def model(loaded: engine.hf.BitSkipForCausalLM) -> Iterator[engine.hf.BitSkipForCausalLM]:
    yield loaded
    loaded.set_exit_layer(4)


def greedy(model: engine.hf.BitSkipForCausalLM, prompt: list[int] = PROMPT, **kwargs: Any) -> Any:
    options = {"max_new_tokens": 40, "do_sample": False} | kwargs
    return model.generate(torch.tensor([prompt]), **options)


def logits_of(model: engine.hf.BitSkipForCausalLM, tokens: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, **kwargs).logits


@pytest.mark.parametrize("variant", TERNARY)
@pytest.mark.parametrize("exit_norm", [True, False])
def test_every_variant_and_exit_agrees_with_the_engine(
    variant: str, exit_norm: bool, tmp_path: Path
) -> None:
    path = write_family(tmp_path / "m", variant, eos_token_ids=(), exit_norm=exit_norm)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    for exit_layer in EXITS:
        model.set_exit_layer(exit_layer)
        tokens = greedy(model)[0]
        assert_greedy(path, tokens.tolist(), len(PROMPT), exit_layer)
        rng = np.random.default_rng(17)
        errors = []
        for _ in range(12):
            prompt = rng.integers(0, 300, 6).tolist()
            theirs = reference_logits(path, prompt, exit_layer)
            errors.append(
                np.abs(logits_of(model, torch.tensor([prompt]))[0].numpy() - theirs).max()
            )
        # A sequence in which rounding moves an activation over a quantiser's edge is further off.
        assert np.median(errors) < 2e-5, errors


@pytest.mark.parametrize("exit_layer", EXITS)
def test_a_cache_changes_nothing(model: engine.hf.BitSkipForCausalLM, exit_layer: int) -> None:
    model.set_exit_layer(exit_layer)
    assert torch.equal(greedy(model, use_cache=True), greedy(model, use_cache=False))
    assert torch.equal(greedy(model), greedy(model, cache_implementation="static"))
    assert torch.equal(greedy(model, num_beams=3), greedy(model, num_beams=3, use_cache=False))


@pytest.mark.parametrize(("exit_layer", "draft"), [(4, 1), (4, 2), (4, 3), (3, 1), (2, 4)])
def test_drafts_from_an_early_exit_change_nothing(
    model: engine.hf.BitSkipForCausalLM, exit_layer: int, draft: int
) -> None:
    model.set_exit_layer(exit_layer)
    assert torch.equal(greedy(model, assistant_early_exit=draft), greedy(model))
    assert (model.exit_layer, model.config.num_hidden_layers) == (exit_layer, 4)


def test_early_exits_run_fewer_layers(model: engine.hf.BitSkipForCausalLM) -> None:
    """Counted in linears that ran: seven a layer, in drafts too."""
    calls: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(model.model.layers)
    ]
    try:
        model.set_exit_layer(2)
        greedy(model, max_new_tokens=3)
        assert calls == [0, 1] * 3
        calls.clear()
        model.set_exit_layer(4)
        greedy(model, max_new_tokens=8, assistant_early_exit=1)
        assert calls.count(0) > calls.count(1) == calls.count(3)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("exit_layer", [0, 5, -1, True, 2.5, None])
def test_exits_that_are_not_there(model: engine.hf.BitSkipForCausalLM, exit_layer: Any) -> None:
    with pytest.raises(ValueError, match=r"exit_layer must be an integer in 1\.\.4"):
        model.set_exit_layer(exit_layer)


def test_an_exit_changes_neither_configuration_nor_parameters(
    model: engine.hf.BitSkipForCausalLM,
) -> None:
    before, names = model.config.to_dict(), list(model.state_dict())
    model.set_exit_layer(2)
    assert model.config.to_dict() == before and list(model.state_dict()) == names
    assert len(model.model.layers) == 4


@pytest.mark.parametrize(("filled", "exit_layer"), [(4, 2), (2, 4)])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_of_another_exit_is_refused(
    model: engine.hf.BitSkipForCausalLM, filled: int, exit_layer: int, kind: str
) -> None:
    tokens = torch.tensor([PROMPT])
    static = StaticCache(config=model.config, max_cache_len=16)
    cache = static if kind == "static" else DynamicCache(config=model.config)
    model.set_exit_layer(filled)
    logits_of(model, tokens, cache=cache)
    model.set_exit_layer(exit_layer)
    message = f"filled by {filled} layers and the exit is now {exit_layer}"
    with pytest.raises(ValueError, match=message):
        logits_of(model, tokens[:, :1], cache=cache)
    model.set_exit_layer(filled)
    again = logits_of(model, tokens[:, :1], cache=cache)
    whole = logits_of(model, torch.cat([tokens, tokens[:, :1]], 1))
    torch.testing.assert_close(again[0, -1], whole[0, -1], rtol=1e-3, atol=1e-3)
    cache.reset()
    model.set_exit_layer(exit_layer)
    logits_of(model, tokens, cache=cache)


def test_padding_on_the_left_changes_no_row(model: engine.hf.BitSkipForCausalLM) -> None:
    prompts = [PROMPT, PROMPT[:2], [*PROMPT, 7, 8]]
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    for exit_layer in (2, 4):
        model.set_exit_layer(exit_layer)
        batch = model.generate(
            tokens, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        for row, prompt in zip(batch, prompts, strict=True):
            alone = greedy(model, prompt, max_new_tokens=20)[0]
            assert row[width - len(prompt) :].tolist() == alone.tolist()


def test_hidden_states_end_at_the_exit(model: engine.hf.BitSkipForCausalLM) -> None:
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        full = model(tokens, output_hidden_states=True).hidden_states
        model.set_exit_layer(2)
        early = model(tokens, output_hidden_states=True).hidden_states
    assert (len(full), len(early)) == (5, 3)
    assert torch.equal(full[1], early[1])
    assert torch.equal(early[2], model.model.norm(full[2]))


def test_weights_are_held_while_generating_and_no_longer(
    model: engine.hf.BitSkipForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"ternarise": 0}
    original = linear_module.ternarise

    def counted(weight: Tensor) -> tuple[Tensor, float]:
        counts["ternarise"] += 1
        return original(weight)

    monkeypatch.setattr(linear_module, "ternarise", counted)
    model.set_exit_layer(2)
    greedy(model, assistant_early_exit=1)
    assert counts["ternarise"] == 2 * 7
    linears = [one for one in model.modules() if isinstance(one, TernaryLinear)]
    assert not any(linear.is_holding for linear in linears)
    with pytest.raises(ValueError):
        greedy(model, max_new_tokens=-1)
    assert not any(linear.is_holding for linear in linears)
