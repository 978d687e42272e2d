#!/usr/bin/env python3
"""Renders chat templates with Jinja2, set up as transformers sets it up, and writes digests of what comes out.

    expect.py FOLDER                  writes expected.json for FOLDER's templates (Jinja2 3.1.6)
    expect.py FOLDER TEMPLATE CASE    prints one rendering, to compare it with another

README.md beside this file says how it is used.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 3, 7, 5, 9, 1)
BOS, EOS = "<bos>", "<eos>"


class Refused(Exception):
    """The template refused the conversation."""


class Generation(Extension):
    """Marks what the model said, for training. What is inside is rendered as it is, as a call block: in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

    def said(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda text: NOW.strftime(text)
    return made


def seen(message):
    """A message as Turnmill gives it to templates."""
    said = {"role": message["role"], "content": message.get("content") or ""}
    if "reasoning" in message:
        said["reasoning_content"] = said["thinking"] = message["reasoning"]
    return said | {key: message[key] for key in ("tool_calls", "tool_call_id", "name") if key in message}


def render(source, case, tools):
    values = {
        "messages": [seen(message) for message in case["messages"]],
        "tools": [tools[name] for name in case["tools"]] if "tools" in case else None,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": BOS,
        "eos_token": EOS,
        "date_string": NOW.strftime("%d %b %Y"),
    }
    values |= {key: case[key] for key in ("enable_thinking", "reasoning_effort") if key in case}
    if "enable_thinking" in case:
        values["thinking"] = case["enable_thinking"]
    return environment().from_string(source).render(values)


def outcome(source, case, tools):
    try:
        text = render(source, case, tools)
    except Refused:
        return "refused"
    except Exception:
        return "failed"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main():
    folder, *one = sys.argv[1:]
    cases = json.loads((HERE / "conversations.json").read_text())
    tools = {tool["function"]["name"]: tool for tool in json.loads((HERE / "tools.json").read_text())}
    sources = {path.stem: path.read_text() for path in sorted(pathlib.Path(folder).glob("*.jinja"))}
    if one:
        sys.stdout.write(render(sources[one[0]], cases[one[1]], tools))
        return
    found = {
        name: {case: outcome(source, cases[case], tools) for case in cases} for name, source in sources.items()
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    (HERE / "expected.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    if jinja2.__version__ != "3.1.6":
        sys.exit(f"expectations are those of Jinja2 3.1.6; this is {jinja2.__version__}")
    main()
