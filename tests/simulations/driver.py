"""`python -m tests.simulations.driver RUN [--resume]`: the tiny study, for tests that kill it."""

import sys
from pathlib import Path

from simulations import runner
from tests.simulations import tiny

STUDY = tiny.study(schedule={"spare_rounds": 12})


def main() -> None:
    path, resume = Path(sys.argv[1]), "--resume" in sys.argv
    if resume:
        runner.resume(path, tiny.TEST_NOISE, scenario="tiny")
    else:
        runner.start(tiny.scenario(), STUDY, path, tiny.TEST_NOISE)


if __name__ == "__main__":
    main()
