"""Jobs of several processes for the tests: forked from one that has imported torch and done nothing yet.

    python tests/processes.py FOLDER < jobs.json

`jobs` is a list of {"world", "work"}, run one after the other; "work" are names of functions of this file with their
arguments, which every process of a job calls in one group. What the first process returns goes to stdout as JSON.
"""

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path


def run(jobs: list[dict], timeout: float = 900) -> list[list]:
    """The results of every job, each a list of what its work returned."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(
        command, input=json.dumps(jobs), capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def training(out: str, config: dict) -> None:
    from settings import small

    from unmask.train import Optimiser, train

    data = Path(config.pop("data"))
    if "optimiser" in config:
        config["optimiser"] = Optimiser(**config["optimiser"])
    train(small(data, **config), Path(out))


def stopped_training(out: str, at: int, config: dict) -> None:
    """Train until the job is killed after step `at`, as far as anyone can see."""
    from unmask.train import loop

    save = loop._Run.save

    class Killed(Exception):
        pass

    def crash(self) -> None:
        save(self)
        if self.step == at:
            raise Killed

    loop._Run.save = crash
    try:
        training(out, config)
    except Killed:
        pass
    finally:
        loop._Run.save = save


def likelihood(run: str, sequences: int) -> dict:
    import torch

    from unmask import load, log_likelihood, ranks

    model = load(run)
    x_0 = torch.randint(1, 200, (sequences, 9), generator=torch.Generator().manual_seed(1))
    documents = torch.arange(sequences) // 2

    def score(rows):
        return log_likelihood(model, x_0[rows], draws=4, sequences=rows.tolist())

    estimate = ranks.likelihood(score, sequences, documents)
    return {**estimate.row(), "replicates": estimate.replicates.tolist()}


def texts(run: str, count: int) -> list[dict]:
    from unmask import load
    from unmask.evaluate import write

    return [{**record, "seconds": 0} for record in write(load(run), ["{{6}}"] * count, seed=3)]


def answers(run: str, out: str) -> list[dict]:
    from unmask import load
    from unmask.evaluate.answers import Asking, Question, answer_file

    questions = [Question(i, (f"{'x' * (i % 5)} {i}?",), False) for i in range(5)]
    records = answer_file(load(run), questions, Asking(block=12, batch=1), Path(out), name="m")
    return [record["choices"] for record in records]


def collectives() -> list:
    from unmask import ranks

    mine = [{"piece": i, "x": 1 / 3} for i in ranks.share(5)]
    refused = None
    try:
        ranks.agreed(lambda: int("x"))
    except ValueError as error:
        refused = str(error)
    return [ranks.gathered(mine, 5), ranks.total(ranks.rank(), 1), ranks.largest(ranks.rank()), refused]


def _job(world: int, work: list) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    reading, writing = os.pipe()
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _child(rank, work, writing)
        children.append(child)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    for child in children:
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"a process of {world} ended with {status}"
    return json.loads(said)


def _child(rank: int, work: list, writing: int) -> None:
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        sys.stdout = sys.stderr
        from unmask import ranks
        from unmask.log import console

        console.quiet = True
        with ranks.joined():
            results = [globals()[name](*arguments) for name, *arguments in work]
        if rank == 0:
            os.write(writing, json.dumps(results).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import torch

    import unmask.evaluate
    import unmask.train  # noqa: F401

    torch.set_num_threads(1)
    print(json.dumps([_job(job["world"], job["work"]) for job in json.load(sys.stdin)]))
