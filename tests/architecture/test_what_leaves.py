"""No metric, count, loss, norm or exception text leaves a site: sources are scanned, each rule is planted.

The wire schema refuses at run time what these rules refuse to be written in the first place.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture.test_wire_gate import ROOT, dotted, name_of, sources

RECORDS = {"MetricRecord", "RecordDict", "ConfigRecord", "ArrayRecord", "Array"}
WIRE = "fednas/wire.py"
APP = "client/app.py"
SEES_RECORDS = (
    "fednas/site/site.py",
    "fednas/site/datasets.py",
    "fednas/evaluation.py",
    "fednas/privacy/entropy.py",
    "fednas/privacy/grid.py",
    "fednas/privacy/streams.py",
    "fednas/supernet/chunks.py",
    "fednas/supernet/features.py",
    "fednas/training/alphas.py",
    "fednas/training/engine.py",
    "fednas/training/weights.py",
)
OPENERS = {"PrivacyLedger.open", "Site.open"}  # of a ledger, by name
# What the text of an error may be made of, in a module that sees records: all of it is public.
PUBLIC_WORDS = {
    "fednas/site/site.py": {"architecture", "space", "reason", "task", "self._config"},
    "fednas/site/datasets.py": {"config", "schema", "path", "advice", "expected", "reason"},
    "fednas/privacy/entropy.py": {"sigma", "probability", "size"},  # a size is printed only below zero
    "fednas/privacy/grid.py": {"size", "clip_norm", "MIN_CLIP_NORM"},  # of the network, not of the records
    "fednas/privacy/streams.py": {"STREAMS", "stream", "len(key)", "_MIN_KEY_BYTES"},
}

Rule = Callable[[ast.Module, str], Iterator[str]]


def called(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Calls with the last part of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, last(node.func)


def last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name, attribute, keyword, argument, alias and constant text of a module."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.keyword | ast.arg):
            yield line, node.arg or ""
        elif isinstance(node, ast.alias):
            yield line, node.name
            yield line, node.asname or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield line, node.value


def no_metrics(tree: ast.Module, _: str) -> Iterator[str]:
    """Flower's metrics are un-noised numbers; `num_examples` is the number of records."""
    for line, word in words(tree):
        if word == "MetricRecord" or word.replace("-", "_").replace(".", "_") == "num_examples":
            yield f"line {line}: {word}"


def no_flower_errors(tree: ast.Module, _: str) -> Iterator[str]:
    """An `Error` carries a text; a failure leaves as a refusal with a constant code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            yield from (
                f"line {node.lineno}: imports Flower's Error"
                for alias in node.names
                if alias.name in ("Error", "*")
            )
    for call, name in called(tree):
        if name in ("create_error_reply", "Error"):
            yield f"line {call.lineno}: makes an Error"


def messages_only_in_the_app(tree: ast.Module, module: str) -> Iterator[str]:
    """One function answers; nothing else makes a message or replaces the content of one."""
    allowed = 1 if module == APP else 0
    found = [call for call, name in called(tree) if name in ("Message", "create_reply", "create_message")]
    yield from (f"line {call.lineno}: makes a message" for call in found[allowed:])
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr in ("content", "error", "state"):
                yield f"line {node.lineno}: replaces what a message or a context holds"


def records_only_in_the_wire(tree: ast.Module, module: str) -> Iterator[str]:
    """What is packed is packed where it is reviewed; `RecordDict` is a type elsewhere, never a call."""
    if module == WIRE:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            names = {alias.name for alias in node.names} & (RECORDS - {"RecordDict"} | {"*"})
            if names or any(alias.asname for alias in node.names):
                yield f"line {node.lineno}: imports {', '.join(sorted(names)) or 'under another name'}"
        elif isinstance(node, ast.Import) and any(a.name.split(".")[0] == "flwr" for a in node.names):
            yield f"line {node.lineno}: imports all of Flower"
    for call, name in called(tree):
        if name in RECORDS:
            yield f"line {call.lineno}: makes a {name}"


def nothing_printed_where_records_are(tree: ast.Module, module: str) -> Iterator[str]:
    """A module that sees records has no way to show one: no log, no print, no warning, no file."""
    if module not in SEES_RECORDS:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            roots = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", None) or "").split(".")[0]
            }
            if roots & {"logging", "sys", "traceback", "pdb", "rich", "typer", "subprocess", "socket"}:
                yield f"line {node.lineno}: imports a way to show records"
    for call, name in called(tree):
        if dotted(call.func) in OPENERS:
            continue
        shown = name in ("print", "breakpoint", "open", "warn", "write", "write_text", "write_bytes")
        if shown or name in ("save", "savez", "savetxt", "dump", "tofile", "set_trace"):
            yield f"line {call.lineno}: calls {name}"


def no_exception_in_a_reply(tree: ast.Module, module: str) -> Iterator[str]:
    """What an exception says is compared with classes and reported on the site, and goes nowhere else.

    `report_refusal` decides what may be said of it: a log that formats an exception says all of it.
    """
    if module not in (APP, WIRE):
        return
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
        kept: set[int] = set()
        for node in ast.walk(handler):
            if isinstance(node, ast.Raise):
                kept.add(id(node.cause))
            elif isinstance(node, ast.Call) and (
                last(node.func) in ("isinstance", "type")
                or (module == APP and dotted(node.func) == "report_refusal")
            ):
                kept |= {id(argument) for argument in node.args}
        for node in ast.walk(handler):
            if isinstance(node, ast.Name) and node.id == handler.name and id(node) not in kept:
                yield f"line {node.lineno}: an exception is used for more than its class"
    for call, name in called(tree):
        argument = call.args[0] if call.args else None
        if name == "encode_refusal" and not (isinstance(argument, ast.Name) and argument.id == "code"):
            yield f"line {call.lineno}: a refusal of something else than a code"


def no_record_in_an_error(tree: ast.Module, module: str) -> Iterator[str]:
    """The text of an error about data is made of the configuration and the schema."""
    if module not in SEES_RECORDS:
        return
    for call, name in called(tree):
        if not (name.endswith("Error") or name == "_refuse"):
            continue
        for node in (inner for argument in call.args for inner in ast.walk(argument)):
            if isinstance(node, ast.FormattedValue):
                yield from (f"line {node.lineno}: {root}" for root in roots(node.value, module))
            elif isinstance(node, ast.Call) and last(node.func) in ("str", "repr", "format"):
                yield f"line {node.lineno}: formats a value by hand"
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
                yield f"line {node.lineno}: adds a value to a text"


def roots(expression: ast.expr, module: str) -> Iterator[str]:
    """Names in an expression that are neither public nor asked for their type alone."""
    public = PUBLIC_WORDS.get(module, set())
    if (isinstance(expression, ast.Attribute) and expression.attr == "dtype") or (
        ast.unparse(expression) in public
    ):
        return
    if isinstance(expression, ast.Name) and expression.id not in public | {"len", "type"}:
        yield expression.id
    for child in ast.iter_child_nodes(expression):
        if isinstance(child, ast.expr):
            yield from roots(child, module)


RULES: tuple[Rule, ...] = (
    no_metrics,
    no_flower_errors,
    messages_only_in_the_app,
    records_only_in_the_wire,
    nothing_printed_where_records_are,
    no_exception_in_a_reply,
    no_record_in_an_error,
)


def violations(source: str, module: str) -> list[str]:
    tree = ast.parse(source)
    return [f"{rule.__name__}: {found}" for rule in RULES for found in rule(tree, module)]


@pytest.mark.parametrize("path", sources("client", "fednas"), ids=name_of)
def test_nothing_is_written_that_could_let_a_record_leave(path: Path) -> None:
    assert violations(path.read_text(), name_of(path)) == []


def test_every_module_that_sees_records_is_watched() -> None:
    """A module that takes the records of a site, or says how they are noised, is one of those above."""
    seers = set()
    for path in sources("client", "fednas"):
        if name_of(path).startswith("fednas/audit/"):  # the records of an audit are made up
            continue
        names = {word for _, word in words(ast.parse(path.read_text()))}
        if path.name != "__init__.py" and names & {"StreamedRecords", "Dataset", "noised_sum"}:
            seers.add(name_of(path))
    assert len(seers) > 5
    assert seers <= set(SEES_RECORDS), "a new module sees records: put it under watch in SEES_RECORDS"
    assert all((ROOT / module).exists() for module in SEES_RECORDS)


PLANTED: list[tuple[str, str, str]] = [
    ("no_metrics", "client/app.py", "from flwr.app import MetricRecord"),
    ("no_metrics", "client/app.py", "record = flwr.app.MetricRecord({'loss': loss})"),
    ("no_metrics", "fednas/site/site.py", "reply = {'num-examples': len(x)}"),
    ("no_metrics", "fednas/wire.py", "manifest = dict(num_examples=n)"),
    ("no_metrics", "fednas/wire.py", "manifest['num_examples'] = n"),
    ("no_metrics", "fednas/evaluation.py", "def fit(num_examples): return num_examples"),
    ("no_flower_errors", "client/app.py", "from flwr.app import Error"),
    ("no_flower_errors", "client/app.py", "reply = Message(flwr.app.Error(0, str(e)), reply_to=m)"),
    ("no_flower_errors", "client/app.py", "return message.create_error_reply(problem)"),
    ("messages_only_in_the_app", "fednas/site/site.py", "Message(content, reply_to=message)"),
    ("messages_only_in_the_app", "fednas/site/site.py", "message.create_reply(content)"),
    ("messages_only_in_the_app", "fednas/wire.py", "flwr.app.Message(content, 1, 'train')"),
    ("messages_only_in_the_app", "client/app.py", "Message(a, reply_to=m)\nMessage(b, reply_to=m)"),
    ("messages_only_in_the_app", "client/app.py", "message.content = RecordDict(x)"),
    ("records_only_in_the_wire", "client/app.py", "content = RecordDict({'loss': x})"),
    ("records_only_in_the_wire", "client/app.py", "from flwr.app import ConfigRecord"),
    ("records_only_in_the_wire", "client/app.py", "from flwr.app import RecordDict as R"),
    ("records_only_in_the_wire", "client/app.py", "import flwr.app"),
    ("records_only_in_the_wire", "fednas/site/site.py", "from flwr.app import *"),
    ("records_only_in_the_wire", "fednas/site/site.py", "from flwr.common import ArrayRecord"),
    ("nothing_printed_where_records_are", "fednas/site/site.py", "import logging"),
    ("nothing_printed_where_records_are", "fednas/site/datasets.py", "print(x)"),
    ("nothing_printed_where_records_are", "fednas/training/weights.py", "from logging import getLogger"),
    ("nothing_printed_where_records_are", "fednas/training/engine.py", "warnings.warn(f'norm {norm}')"),
    ("nothing_printed_where_records_are", "fednas/evaluation.py", "open('/tmp/counts', 'w').write(str(n))"),
    ("nothing_printed_where_records_are", "fednas/privacy/streams.py", "np.save('x.npy', x)"),
    ("nothing_printed_where_records_are", "fednas/privacy/grid.py", "sys.stderr.write(str(total))"),
    ("nothing_printed_where_records_are", "fednas/training/alphas.py", "def f():\n    import sys"),
    ("no_exception_in_a_reply", "client/app.py", "try: f()\nexcept Exception as e: content = str(e)"),
    ("no_exception_in_a_reply", "client/app.py", "try: f()\nexcept Exception as e: g(f'failed: {e}')"),
    ("no_exception_in_a_reply", "client/app.py", "try: f()\nexcept Exception as e: g(e.args)"),
    ("no_exception_in_a_reply", "client/app.py", "try: f()\nexcept Exception as e: encode_refusal(e)"),
    ("no_exception_in_a_reply", "client/app.py", "try: f()\nexcept Exception as e: last = e"),
    ("no_exception_in_a_reply", "client/app.py", "try: f()\nexcept Exception as e: _log.error('%s', e)"),
    ("no_exception_in_a_reply", "client/app.py", "encode_refusal(f'{name} has {n} records')"),
    ("no_exception_in_a_reply", "client/app.py", "encode_refusal(type(error).__name__)"),
    ("no_exception_in_a_reply", "fednas/wire.py", "try: f()\nexcept E as e: raise ExchangeError(str(e))"),
    ("no_record_in_an_error", "fednas/site/datasets.py", "raise DatasetError(f'row {row} is NaN')"),
    ("no_record_in_an_error", "fednas/site/datasets.py", "raise _refuse(config, f'{len(x)} records')"),
    ("no_record_in_an_error", "fednas/site/datasets.py", "raise _refuse(config, f'label {y[0]} is unknown')"),
    ("no_record_in_an_error", "fednas/site/datasets.py", "raise _refuse(config, 'label %d' % y[0])"),
    ("no_record_in_an_error", "fednas/site/datasets.py", "raise _refuse(config, 'label ' + str(y[0]))"),
    ("no_record_in_an_error", "fednas/site/datasets.py", "raise _refuse(config, 'label {}'.format(y[0]))"),
    ("no_record_in_an_error", "fednas/privacy/streams.py", "raise StreamViolationError(f'index {i}')"),
    ("no_record_in_an_error", "fednas/privacy/streams.py", "raise ConfigurationError(f'key {key}')"),
    ("no_record_in_an_error", "fednas/site/site.py", "raise PrivacyError(f'{self._records}')"),
    ("no_record_in_an_error", "fednas/training/engine.py", "raise ValueError(f'norm {norm} > {clip_norm}')"),
    ("no_record_in_an_error", "fednas/evaluation.py", "raise PrivacyError(f'{x.shape} and {x.dtype}')"),
]


@pytest.mark.parametrize(("rule", "module", "source"), PLANTED)
def test_each_planted_leak_is_found(rule: str, module: str, source: str) -> None:
    assert [found for found in violations(source, module) if found.startswith(f"{rule}:")]


def test_every_rule_is_planted() -> None:
    assert {rule for rule, _, _ in PLANTED} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("client/app.py", "from flwr.app import Context, Message, RecordDict\nMessage(content, reply_to=m)"),
        ("client/app.py", "try: f()\nexcept Exception as e: report_refusal(_log, 'CODE', e)"),
        ("client/app.py", "try: f()\nexcept Exception as e: code = isinstance(e, PrivacyError)"),
        ("fednas/wire.py", "try: f()\nexcept KeyError as e: raise ExchangeError('malformed') from e"),
        ("fednas/wire.py", "RecordDict({'a': ConfigRecord({})})"),
        ("fednas/site/datasets.py", "raise _refuse(config, f'expected {schema.num_classes} classes')"),
        ("fednas/privacy/streams.py", "raise DatasetError(f'expected float32, got {x.dtype}')"),
        ("fednas/cli.py", "print(statement)"),
    ],
)
def test_the_rules_let_honest_code_alone(module: str, source: str) -> None:
    assert violations(source, module) == []
