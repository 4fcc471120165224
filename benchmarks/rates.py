"""Learning rates of the experiments' networks: an MDM and an ARM of a scale's size, at rates a factor of two apart.

    python benchmarks/rates.py --out runs/rates [--scale laptop] [--rates 0.0015 0.003 0.006 0.012] [--seeds 0]

Both kinds get the same search: a comparison of two is fair where neither is at a rate that suits the other. The loss is
that of the run's last validation, ± over its texts, which are the same for all. A run that is there goes on, or is not
trained again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from unmask.data import prepare
from unmask.experiments.setting import KINDS, SETTINGS
from unmask.files import read_lines
from unmask.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=SETTINGS, default="laptop")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.5e-3, 3e-3, 6e-3, 12e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    setting = SETTINGS[options.scale]
    data = prepare("builtin", options.out / "data", tokenizer=setting.tokenizer)
    for kind, objective in KINDS.items():
        for rate in options.rates:
            for seed in options.seeds:
                config = replace(setting, rate=rate).config(str(data), objective, seed=seed)
                config = replace(config, validation_sequences=setting.sequences, validate_every=config.steps)
                run = train(config, options.out / f"{kind.lower()}-{rate:g}-{seed}")
                row = next(row for row in read_lines(run / "metrics.jsonl")[::-1] if row["kind"] == "validation")
                print(
                    f"{kind}, rate {rate:g}, seed {seed}, {row['step']} steps: {row['nats_per_token']:.4f} "
                    f"± {row['stderr_texts']:.4f} nats a token (maskings ± {row['stderr']:.4f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
