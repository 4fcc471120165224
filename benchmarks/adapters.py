"""Adapters beside training all weights: what a model costs and comes to when it is fine-tuned on pairs.

    python benchmarks/adapters.py --out runs/adapters --source pairs.jsonl [--init builtin] [--ranks 0 2 8 32]
        [--rates 0.001 0.002 0.004 0.008] [--seeds 0] [--steps 150]

Every rank at every rate, rank 0 being all weights; all by AdamW, on the same batches in the same order. The loss is
that of the run's last validation, of the answers and what fills their block, ± over its texts, which are the same for
all. A run that is there goes on, or is not trained again.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import unmask
from unmask.data import prepare_pairs
from unmask.files import read_lines
from unmask.objectives import AnyOrder, NextToken
from unmask.train import Optimiser, TrainConfig, train
from unmask.transformer import TransformerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--init", default="builtin")
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 2, 8, 32])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    model = unmask.load(options.init)
    model.tokenizer.save(options.out / "tokenizer.json")
    data = prepare_pairs(options.source, options.out / "data", tokenizer=str(options.out / "tokenizer.json")).folder
    network = model.network.config
    assert isinstance(network, TransformerConfig)
    common = TrainConfig(
        network=network,
        data=str(data),
        init=options.init,
        objective=NextToken() if network.causal else AnyOrder(importance=0.5),
        length=options.length,
        batch=16,
        steps=options.steps,
        validate_every=options.steps,
        validation_sequences=256,
        save_every=options.steps,
    )
    for rank, rate, seed in product(options.ranks, options.rates, options.seeds):
        optimiser = Optimiser(rate, warmup=max(1, options.steps // 20))
        config = replace(common, lora=rank, optimiser=optimiser, seed=seed)
        run = train(config, options.out / f"{Path(options.init).name}-{options.steps}-{rank}-{rate:g}-{seed}")
        rows = read_lines(run / "metrics.jsonl")
        row, last = (next(row for row in rows[::-1] if row["kind"] == kind) for kind in ("validation", "train"))
        size = max(file.stat().st_size for file in (run / "checkpoints").rglob("*.safetensors"))
        trained = config.adapters() or sum(weight.numel() for weight in model.network.parameters())
        print(
            f"{f'rank {rank}' if rank else 'all weights'}, rate {rate:g}, seed {seed}: {row['nats_per_token']:.4f} "
            f"± {row['stderr_texts']:.4f} nats a position (maskings ± {row['stderr']:.4f}), {trained:,} parameters "
            f"trained, {last['seconds']:.0f} s, a checkpoint's largest file {size / 1e6:.2f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
