"""`python -m tests.fuzz.guided`: replies changed so as to reach more of the code, by libFuzzer.

Half of them come as they are, half are signed by the site's own ledger, so that a signature hides nothing of
what is behind it. What is taken of the latter must be possible: finite, of the task's form, within bounds.
"""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["fednas.wire", "server"]):
    from fednas.wire import Answer
    from tests.fuzz.replies import AlteredReplyError, Server

_LONGEST = 4096


def _possible(server: Server, name: str, arrays: dict[str, Any]) -> bool:
    expected = server.conversations[name].answer.arrays
    return arrays.keys() == expected.keys() and all(
        array.dtype == expected[key].dtype
        and array.shape == expected[key].shape
        and bool(np.all(np.abs(array[~np.isnan(array)] if key == "alphas" else array) < 1e6))
        for key, array in arrays.items()
    )


def main() -> None:
    """Fuzz until `-runs` are done; a failure ends with a trace and another status than 0."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        names = [n for n, c in server.conversations.items() if len(c.wire) < _LONGEST]
        corpus = Path(sys.argv[-1])
        for index, name in enumerate(names):
            conversation = server.conversations[name]
            flat = conversation.content.array_records["data"]["flat"]
            (corpus / f"wire-{name}").write_bytes(bytes([index]) + conversation.wire)
            (corpus / f"signed-{name}").write_bytes(bytes([128 + index]) + flat.data[128:])

        def judge(data: bytes) -> None:
            if not data:
                return
            name = names[data[0] % 128 % len(names)]
            if data[0] < 128:
                server.judge(name, data[1:])
                return
            signed = server.sign(server.conversations[name].task, data[1:])
            try:
                server.examine(name, signed)
            except AlteredReplyError:
                from fednas.wire import decode

                answer = decode(signed)
                if not isinstance(answer, Answer) or not _possible(server, name, dict(answer.arrays)):
                    raise

        atheris.Setup([sys.argv[0], f"-max_len={_LONGEST}", "-print_final_stats=1", *sys.argv[1:]], judge)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
