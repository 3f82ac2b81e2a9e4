"""The HTTP API against what a Toxiproxy 2.12.0 was recorded to answer: codes, content types and bodies."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from chaos.toxiproxy.launcher import Toxiproxy
from tests.chaos.toxiproxy.conftest import launch_kind

RECORDED = Path(__file__).parent / "data" / "http-2.12.0.jsonl"
TIMEOUT_S = 5.0


@pytest.fixture(params=["embedded", "real"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Toxiproxy]:
    """A server nobody has talked to: the recording starts with an empty one."""
    with launch_kind(request.param, tmp_path) as toxiproxy:
        yield toxiproxy


@pytest.fixture
def places(fresh: Toxiproxy) -> dict[str, str]:
    """What the recording's placeholders stand for in this run."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    names = ("{port_a}", "{port_b}", "{port_c}")
    return dict(zip(names, ports, strict=True)) | {"{api}": fresh.url.removeprefix("http://")}


def test_every_recorded_request_is_answered_as_recorded(fresh: Toxiproxy, places: dict[str, str]) -> None:
    exchanges = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert len(exchanges) >= 60
    differing = [said for each in exchanges if (said := difference(fresh, places, each))]
    assert not differing, "\n\n".join(differing)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("null", "missing required field: name"),
        ("tru", "bad request body: unexpected EOF"),
        ("trux", "bad request body: invalid character 'x' in literal true (expecting 'e')"),
        ("x", "bad request body: invalid character 'x' looking for beginning of value"),
        ('{"a" 1}', "bad request body: invalid character '1' after object key"),
        ('{"a":1 "b"}', "bad request body: invalid character '\"' after object key:value pair"),
        ("[1 2]", "bad request body: invalid character '2' after array element"),
        ('{"a":1,}', "bad request body: invalid character '}' looking for beginning of object key string"),
        ('{"a":"\\q"}', "bad request body: invalid character 'q' in string escape code"),
        ('{"a":"x\ty"}', "bad request body: invalid character '\\t' in string literal"),
        ('{"a":01}', "bad request body: invalid character '1' after object key:value pair"),
        ('{"a":1.}', "bad request body: invalid character '}' after decimal point in numeric literal"),
        ('{"a":-}', "bad request body: invalid character '}' in numeric literal"),
        ('"s"', "bad request body: json: cannot unmarshal string into Go value of type toxiproxy.Proxy"),
        (
            '{"name":"a","enabled":"x","upstream":5}',
            "bad request body: json: cannot unmarshal string into Go struct field Proxy.enabled of type bool",
        ),
        ('{"name":"a","listen":"1.2.3.4:99999","upstream":"a:1"}', "listen tcp: address 99999: invalid port"),
        (
            '{"name":"a","listen":"a:b:c","upstream":"a:1"}',
            "listen tcp: address a:b:c: too many colons in address",
        ),
        (
            '{"name":"a","listen":"192.0.2.1:1234","upstream":"a:1"}',
            "listen tcp 192.0.2.1:1234: bind: cannot assign requested address",
        ),
    ],
)
def test_a_bad_body_is_explained_in_the_decoders_words(server: Toxiproxy, body: str, said: str) -> None:
    answer = requests.post(f"{server.url}/proxies", data=body.encode(), timeout=TIMEOUT_S)
    assert answer.json()["error"] == said
    assert answer.status_code == answer.json()["status"]


def test_what_follows_the_first_json_value_is_ignored(client: Any) -> None:
    body = '{"name":"p","listen":"127.0.0.1:0","upstream":"a:1"} and more'
    answer = requests.post(f"{client.url}/proxies", data=body, timeout=TIMEOUT_S)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("written", "shown"),
    [("0.123456789", "0.12345679"), ("123456", "123456"), ("-1", "-1"), ("0.1", "0.1")],
)
def test_toxicity_is_a_32_bit_float_in_its_shortest_form(client: Any, written: str, shown: str) -> None:
    client.create("p", "127.0.0.1:0", "a:1")
    url, body = f"{client.url}/proxies/p/toxics", f'{{"type":"noop","toxicity":{written}}}'
    answer = requests.post(url, data=body, timeout=TIMEOUT_S)
    assert answer.text.endswith(f'"toxicity":{shown}}}')


def test_names_are_escaped_as_go_escapes_them(client: Any) -> None:
    body = '{"name":"<&>é\\u2028","listen":"127.0.0.1:0","upstream":"a:1"}'
    answer = requests.post(f"{client.url}/proxies", data=body.encode(), timeout=TIMEOUT_S)
    assert answer.content.decode().startswith('{"name":"\\u003c\\u0026\\u003eé\\u2028",')


def test_toxicity_beyond_32_bits_and_attributes_that_are_no_object_are_refused(client: Any) -> None:
    client.create("p", "127.0.0.1:0", "a:1")
    url = f"{client.url}/proxies/p/toxics"
    huge = requests.post(url, data='{"type":"noop","toxicity":1e39}', timeout=TIMEOUT_S)
    assert (
        "cannot unmarshal number 1e39 into Go struct field ToxicWrapper.toxicity of type float32" in huge.text
    )
    bare = requests.post(url, data='{"type":"noop","attributes":5}', timeout=TIMEOUT_S)
    assert "Go struct field ToxicWrapper.attributes of type toxics.NoopToxic" in bare.text


def difference(server: Toxiproxy, places: dict[str, str], recorded: dict[str, Any]) -> str:
    """Send a recorded request; what differs in the answer, or nothing."""
    body = filled(recorded.get("body", ""), places).encode() if "body" in recorded else None
    headers = {"User-Agent": recorded.get("user_agent", "curl/8")}
    url = f"{server.url}{recorded['path']}"
    answer = requests.request(recorded["method"], url, data=body, headers=headers, timeout=TIMEOUT_S)
    wanted = pattern(recorded["answer"], places)
    if recorded["content_type"].startswith("text/plain") or recorded["path"] == "/version":
        wanted += "\n" * bool(recorded["answer"])
    said = answer.content.decode()
    got = (answer.status_code, answer.headers.get("Content-Type", ""))
    if got == (recorded["status"], recorded["content_type"]) and re.fullmatch(wanted, said):
        return ""
    return f"{recorded['method']} {recorded['path']} {body!r}\n  wanted {recorded}\n  got    {got} {said!r}"


def filled(text: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        text = text.replace(name, value)
    return text


def pattern(answer: str, places: dict[str, str]) -> str:
    """The recorded answer as a regular expression."""
    text = re.escape(filled(answer, places))
    text = text.replace(re.escape("{any_port}"), r"\d+").replace(
        re.escape("{any_host}"), r"(\[::\]|0\.0\.0\.0)"
    )
    # Whether a reset that failed got as far as this proxy: the original goes through them in random order.
    text = text.replace(re.escape("{any_bool}"), "(true|false)")
    text = text.replace(re.escape('"2.12.0"'), r'"(2\.12\.0|git)"')  # "git": built without its version set
    # Go's releases differ in whether the struct's name is part of a field's.
    return text.replace(re.escape("struct field .attributes"), r"struct field \w*\.attributes")
