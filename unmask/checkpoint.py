"""Run folders: a model with its tokenizer, in files that hold numbers and never code.

config.json (network, training, data), model.safetensors (the weights to use: the average where one is kept),
tokenizer.json, and state.safetensors (weights, optimiser moments, average, step: what resuming needs). Nothing is ever
unpickled.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unmask.data import Tokenizer
from unmask.files import Row, atomic, read_json
from unmask.network import Network, Reading, Then
from unmask.sampling import template
from unmask.transformer import Transformer, TransformerConfig

CONFIG, MODEL, STATE, TOKENIZER = "config.json", "model.safetensors", "state.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer; usable wherever a network is."""

    network: Transformer
    tokenizer: Tokenizer
    config: Row
    """config.json of the run it came from."""

    @property
    def vocab(self) -> int:
        return self.network.vocab

    @property
    def mask_id(self) -> int:
        return self.network.mask_id

    @property
    def causal(self) -> bool:
        return self.network.causal

    @property
    def normalised(self) -> bool:
        return self.network.normalised

    def parameters(self):
        return self.network.parameters()

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        return self.network(tokens, at, then=then, rows=rows, level=level)

    def cached(self, slots: int, length: int) -> Network:
        """See `unmask.network.remembering`."""
        return self.network.cached(slots, length)

    def canvas(self, text: str, *, seed: int = 0, sequence: int = 0) -> Int[Tensor, " L"]:
        """The canvas of a text with blanks such as `{{8}}` or `{{2..12}}`, preceded by the begin token."""
        begin = [self.tokenizer.begin]
        return template(text, self.tokenizer.encode, self.mask_id, begin=begin, seed=seed, sequence=sequence)

    def decode(self, tokens: Int[Tensor, " L"]) -> str:
        """Text of a finished sequence, special tokens left out."""
        return self.tokenizer.decode(tokens.tolist())


def device_of(name: str) -> str:
    """The device of a name; "auto" is cuda, mps or cpu, the first there is. Raises ValueError for one that is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try auto or cpu") from None
    return name


def load(path: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The model of a run folder, ready to use, its weights memory-mapped where dtype and device allow.

    Raises ValueError for a folder that is not there, is damaged or whose weights do not fit its config.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no run folder (no {CONFIG} in it); train one with `unmask train`")
    config = read_json(folder / CONFIG)
    device = device_of(device)
    network = Transformer(network_config(config, folder / CONFIG), seed=None)
    assign(network, read_tensors(folder / MODEL)[0], folder / MODEL)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab != network.vocab:
        raise ValueError(
            f"{folder / TOKENIZER}: {tokenizer.vocab} tokens, but the network has {network.vocab}: not its tokenizer"
        )
    return Model(network.to(device, dtype).eval().requires_grad_(False), tokenizer, config)


def network_config(config: Row, path: Path) -> TransformerConfig:
    """The network of a config.json. Raises ValueError where it is missing or names what this version does not know."""
    values = config.get("network")
    known = {field.name for field in fields(TransformerConfig)}
    if not isinstance(values, dict) or not set(values) <= known:
        surplus = sorted(set(values) - known) if isinstance(values, dict) else "no such entry"
        raise ValueError(f'{path}: "network" does not describe a network of this version ({surplus})')
    try:
        return TransformerConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path}: "network": {error}') from None


def assign(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Make `tensors` the network's weights, without a copy.

    Raises ValueError listing what is missing, surplus or misshapen.
    """
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [f"missing {name}" for name in wanted if name not in found]
    wrong += [f"surplus {name}" for name in found if name not in wanted]
    both = [name for name in wanted if name in found and wanted[name] != found[name]]
    wrong += [f"{name} is {found[name]}, not {wanted[name]}" for name in both]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{path}: does not fit its {CONFIG}: {'; '.join(wrong[:5])}{more}")
    network.load_state_dict(dict(tensors), assign=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, memory-mapped. Raises ValueError for a missing or damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, from any device."""
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with atomic(path, "wb") as file:
        file.write(data)


def describe(value: object) -> object:
    """A dataclass as JSON data with its class named under "type", so that a config says which of a union it holds."""
    if is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, TransformerConfig):
            return asdict(value)
        inner = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **inner}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return str(value) if isinstance(value, Path) else value
