"""A client app that does one simple thing per message, for the tests of the grids."""

import os
import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
not_an_app = "a text"


@app.train()
def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """Reply how often this node was asked, out of its state."""
    seen = int(str(context.state.config_records["seen"]["times"])) if "seen" in context.state else 0
    context.state["seen"] = ConfigRecord({"times": seen + 1})
    return _numbers(message, times=seen + 1)


@app.query("facts")
def facts(message: Message, context: Context) -> Message:
    content = RecordDict(
        {
            "facts": ConfigRecord(
                {
                    "node": context.node_id,
                    "own": str(context.node_config["own"]),
                    "shared": str(context.run_config["shared"]),
                    "process": os.getpid(),
                    "threads": torch.get_num_threads(),
                }
            )
        }
    )
    return Message(content, reply_to=message)


@app.train("spoil")
def spoil(message: Message, context: Context) -> Message:
    """Change the received records in place and keep what is replied."""
    message.content["numbers"] = ArrayRecord()
    message.content.metric_records["metrics"]["value"] = -1.0
    reply = RecordDict({"metrics": MetricRecord({"value": 5.0})})
    context.state["kept"] = reply.metric_records["metrics"]
    return Message(reply, reply_to=message)


@app.query("kept")
def kept(message: Message, context: Context) -> Message:
    content = RecordDict({"metrics": MetricRecord({"value": context.state.metric_records["kept"]["value"]})})
    return Message(content, reply_to=message)


@app.query("raise")
def fail(message: Message, context: Context) -> Message:
    raise ValueError("the patient in bed seven")


@app.query("wrong")
def wrong(message: Message, context: Context) -> Message:
    message.metadata.__dict__["_message_id"] = "another"
    return Message(message.content, reply_to=message)


@app.query("nothing")
def nothing(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


@app.query("die")
def die(message: Message, context: Context) -> Message:
    os._exit(9)


@app.query("wait")
def wait(message: Message, context: Context) -> Message:
    time.sleep(float(str(message.content.config_records["order"]["seconds"])))
    return Message(RecordDict(), reply_to=message)


def _numbers(message: Message, **values: int) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(dict(values))}), reply_to=message)
