"""What a validation during training costs, and how sure it is: sequences x maskings, at about equal numbers of rows.

    python benchmarks/validation.py --checkpoint runs/mdm --data data/builtin

The error of the maskings falls with both, that of the texts with the sequences alone; between two steps of a run both
are shared, for sequences and maskings are the same every time.
"""

import argparse
import time
from pathlib import Path

import unmask
from unmask.data import Packed, batch_indices, load_split

SIZES = ((64, 8), (128, 4), (128, 2), (256, 2), (512, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    model = unmask.load(options.checkpoint)
    held_out = Packed(
        load_split(options.data, "validation"), model.config["requested"]["length"], model.tokenizer.begin
    )
    print("sequences  maskings  rows  seconds  nats/token  ± maskings  ± texts")
    for sequences, draws in SIZES:
        x_0, maskable, documents = held_out.take(batch_indices(len(held_out), sequences, seed=0, step=0))
        start = time.perf_counter()
        estimate = unmask.log_likelihood(model, x_0, maskable, draws=draws, documents=documents)
        seconds, tokens = time.perf_counter() - start, estimate.tokens
        errors = f"{estimate.stderr_mc / tokens:10.4f}  {estimate.stderr_data / tokens:7.4f}"
        said = f"{sequences:9}  {draws:8}  {estimate.evaluations:4}  {seconds:7.2f}  {estimate.nats / tokens:10.4f}"
        print(f"{said}  {errors}", flush=True)


if __name__ == "__main__":
    main()
