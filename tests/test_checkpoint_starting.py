"""A masked diffusion model that begins as a causal one."""

from dataclasses import replace

import pytest
import torch

from unmask.checkpoint import Model, network_from, starting_from
from unmask.data import byte_tokenizer
from unmask.transformer import Transformer, TransformerConfig

ARM = TransformerConfig(vocab=258, layers=2, heads=2, width=16, causal=True)


def donor(config: TransformerConfig = ARM) -> Model:
    return Model(Transformer(config, seed=1), byte_tokenizer(), {})


def begun(config: TransformerConfig, model: Model) -> Transformer:
    network = Transformer(config, seed=None)
    network.load_state_dict(starting_from(model, config), assign=True)
    return network


def everywhere(network: Transformer, tokens: torch.Tensor, skip: int = 0) -> torch.Tensor:
    at = torch.arange(tokens.numel()).view(tokens.shape)[:, skip:].flatten()
    with torch.no_grad():
        return network(tokens, at)


@pytest.mark.parametrize("tied", [False, True])
def test_a_shifted_network_predicts_at_first_what_the_causal_one_did(tied: bool):
    """Where attention adds nothing, opening it changes nothing: position i is read from i - 1, as it was."""
    model = donor(replace(ARM, tied=tied))
    with torch.no_grad():
        for block in model.network.blocks:
            block.attention.project.weight.zero_()
    tokens = torch.randint(258, (3, 9), generator=torch.Generator().manual_seed(0))
    truth = everywhere(model.network, tokens, 1)
    shifted = begun(replace(ARM, tied=tied, causal=False, shifted=True), model)
    assert torch.equal(everywhere(shifted, tokens, 1), truth)
    unshifted = begun(replace(ARM, tied=tied, causal=False), model)
    assert not torch.allclose(everywhere(unshifted, tokens, 1), truth, atol=1e-3)


def test_attention_is_opened_and_the_mask_says_nothing_yet():
    model = donor()
    network = begun(replace(ARM, causal=False, shifted=True, dropout=0.1), model).eval()
    rows = network.embedding.weight
    assert rows.shape == (259, 16)
    torch.testing.assert_close(rows[258], model.network.embedding.weight.mean(0))
    one, other = torch.tensor([[256, 5, 258, 7]]), torch.tensor([[256, 5, 258, 9]])
    assert not torch.allclose(everywhere(network, one)[2], everywhere(network, other)[2]), "it sees what comes after"
    assert torch.equal(everywhere(model.network, one, 1)[1], everywhere(model.network, other, 1)[1])
    within = begun(replace(ARM, causal=False, mask_id=17), model)
    assert torch.equal(within.embedding.weight, model.network.embedding.weight)


def test_the_same_network_keeps_its_weights():
    for config in (ARM, replace(ARM, causal=False)):
        model = donor(config)
        state = starting_from(model, replace(config, dropout=0.2, mlp=64, neighbours=2))
        assert all(torch.equal(state[name], tensor) for name, tensor in model.network.state_dict().items())


@pytest.mark.parametrize("other", [{"width": 32}, {"layers": 1}, {"kv_heads": 1}, {"rotary_base": 5e5}, {"tied": True}])
def test_other_sizes_are_refused(other: dict[str, object]):
    with pytest.raises(ValueError, match="another network than this run's"):
        starting_from(donor(), replace(ARM, causal=False, **other))


def test_shifted_is_for_what_is_opened():
    bidirectional = replace(ARM, causal=False)
    with pytest.raises(ValueError, match="this one predicts in place"):
        network_from(bidirectional, replace(bidirectional, shifted=True))
    assert network_from(ARM, replace(bidirectional, shifted=True)).shifted


def test_a_bidirectional_donor_is_not_closed():
    with pytest.raises(ValueError, match="a bidirectional network begins no causal one"):
        starting_from(donor(replace(ARM, causal=False)), ARM)
