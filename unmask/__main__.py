"""`python -m unmask` is `unmask`; under `torchrun -m unmask …` several processes do it, of which the first speaks."""

import os

from unmask.cli import main


def together() -> None:
    """`main` in each process of a job."""
    from unmask import ranks
    from unmask.log import hush

    with ranks.joined(), ranks.lost():
        if ranks.rank():
            hush()
        main()


if __name__ == "__main__":
    together() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else main()
