"""What a runtime asks: the environment and standard input of one call."""

from __future__ import annotations

import json

import pytest

from cni_bridge.cni.errors import Code
from cni_bridge.cni.request import (
    STDIN_LIMIT,
    Command,
    parse_args,
    parse_environment,
    parse_request,
    version_asked,
)
from cni_bridge.cni.versions import Version
from tests.support.calls import ENVIRONMENT, OWNER, refusal, request

ALL = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
CONF = b'{"cniVersion": "1.1.0", "name": "net1"}'


@pytest.mark.parametrize(
    ("command", "required"),
    [
        ("ADD", ALL),
        ("CHECK", ALL),
        ("DEL", ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH")),
        ("GC", ("CNI_PATH",)),
        ("STATUS", ("CNI_PATH",)),
    ],
)
def test_missing_variables_are_named_together_and_in_order(command: str, required: tuple[str, ...]) -> None:
    expected = f"required env variables [{','.join(required)}] missing"
    for environ in ({"CNI_COMMAND": command}, {"CNI_COMMAND": command, **dict.fromkeys(ALL, "")}):
        error = refusal(parse_environment, environ)
        assert (error.code, error.msg) == (Code.INVALID_ENVIRONMENT, expected)
    full = {"CNI_COMMAND": command, **{each: ENVIRONMENT[each] for each in required}}
    parse_environment(full)
    for each in required:
        error = refusal(parse_environment, {**full, each: ""})
        assert error.msg == f"required env variables [{each}] missing"


@pytest.mark.parametrize("command", ["VERSION", "MAKE_COFFEE"])
def test_other_commands_need_no_variable(command: str) -> None:
    parse_environment({"CNI_COMMAND": command})


@pytest.mark.parametrize(
    ("variable", "value", "msg"),
    [
        ("CNI_CONTAINERID", "../escape", "invalid characters in containerID"),
        ("CNI_CONTAINERID", "-leading", "invalid characters in containerID"),
        ("CNI_CONTAINERID", "a/b", "invalid characters in containerID"),
        ("CNI_CONTAINERID", "c1\n", "invalid characters in containerID"),
        ("CNI_CONTAINERID", "ä", "invalid characters in containerID"),
        ("CNI_CONTAINERID", "c\udcff", "invalid characters in containerID"),
        ("CNI_IFNAME", "sixteen-bytes-00", "interface name is too long"),
        ("CNI_IFNAME", "ääääääää", "interface name is too long"),
        ("CNI_IFNAME", ".", "interface name is . or .."),
        ("CNI_IFNAME", "..", "interface name is . or .."),
        ("CNI_IFNAME", "a/b", "interface name contains / or : or whitespace characters"),
        ("CNI_IFNAME", "eth0:1", "interface name contains / or : or whitespace characters"),
        ("CNI_IFNAME", "eth 0", "interface name contains / or : or whitespace characters"),
        ("CNI_IFNAME", "eth\u20030", "interface name contains / or : or whitespace characters"),
        ("CNI_IFNAME", "eth%d", "interface name contains %"),
    ],
)
def test_bad_values_are_refused_before_missing_ones(variable: str, value: str, msg: str) -> None:
    error = refusal(parse_environment, {"CNI_COMMAND": "ADD", variable: value})
    assert (error.code, error.msg) == (Code.INVALID_ENVIRONMENT, msg)
    assert f"{variable} is {value}" in error.details


# os.environ holds bytes that are not UTF-8 as lone surrogates
@pytest.mark.parametrize("value", ["eth\udcff", "eth0\n", "\teth0", "eth\x1b[2J", "eth\x7f", "eth\x9b"])
def test_an_interface_name_has_no_control_characters_and_is_utf8(value: str) -> None:
    error = refusal(parse_environment, {**ENVIRONMENT, "CNI_IFNAME": value})
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "CNI_IFNAME" in error.details
    assert value not in error.details  # it would reach a terminal


def test_values_that_a_command_does_not_need_are_not_looked_at() -> None:
    parse_environment({"CNI_COMMAND": "GC", "CNI_PATH": "/x", "CNI_CONTAINERID": "../x", "CNI_IFNAME": "a/b"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_CONTAINERID", "a"),
        ("CNI_CONTAINERID", "Ab.c_d-9"),
        ("CNI_CONTAINERID", "c" * 500),
        ("CNI_IFNAME", "fifteen-bytes-0"),
        ("CNI_IFNAME", "eth0.100"),
    ],
)
def test_good_values_pass(variable: str, value: str) -> None:
    parse_environment({**ENVIRONMENT, variable: value})


@pytest.mark.parametrize(
    "stdin",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"name": "net1"', id="truncated"),
        pytest.param(CONF + b"x", id="trailing bytes"),
        pytest.param(CONF + CONF, id="two documents"),
        pytest.param(b"\xef\xbb\xbf" + CONF, id="BOM"),
        pytest.param(CONF.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"name": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"name": "net1", "mtu": NaN}', id="NaN"),
        pytest.param(b'{"name": "net1", "mtu": -Infinity}', id="Infinity"),
        pytest.param(b'{"name": "net1", "mtu": ' + b"9" * 5000 + b"}", id="endless number"),
        pytest.param(b"[" * 200_000, id="nested lists"),
        pytest.param(b'{"a":' * 200_000, id="nested objects"),
        pytest.param(b'{"name": "net1", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="complete nested lists"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"net1"', id="string"),
    ],
)
def test_stdin_that_is_no_json_object_is_a_decoding_failure(stdin: bytes) -> None:
    error = refusal(parse_request, ENVIRONMENT, stdin)
    assert error.code == Code.DECODING_FAILURE
    assert "the network configuration on stdin" in error.msg


def test_oversized_stdin_is_refused_unread() -> None:
    error = refusal(parse_request, ENVIRONMENT, b" " * (STDIN_LIMIT + 1))
    assert (error.code, error.msg) == (
        Code.DECODING_FAILURE,
        "the network configuration on stdin is larger than 16 MiB",
    )
    padded = CONF + b" " * (STDIN_LIMIT - len(CONF))
    assert parse_request(ENVIRONMENT, padded).owner == OWNER


@pytest.mark.parametrize(
    ("keys", "code", "msg"),
    [
        ({"name": ""}, Code.INVALID_CONFIG, "missing network name"),
        ({"name": None}, Code.INVALID_CONFIG, "missing network name"),
        ({"name": "../etc"}, Code.INVALID_CONFIG, "invalid characters found in network name"),
        ({"name": "a/b"}, Code.INVALID_CONFIG, "invalid characters found in network name"),
        ({"name": "net1\n"}, Code.INVALID_CONFIG, "invalid characters found in network name"),
        ({"name": "\ud800"}, Code.INVALID_CONFIG, "invalid characters found in network name"),
        ({"name": 5}, Code.DECODING_FAILURE, "name is 5, expected a string"),
        ({"cniVersion": 1.0}, Code.DECODING_FAILURE, "cniVersion is 1.0, expected a string"),
        ({"cniVersion": "1.2.0"}, Code.INCOMPATIBLE_VERSION, "incompatible CNI versions"),
        ({"cniVersion": "abc"}, Code.INCOMPATIBLE_VERSION, "incompatible CNI versions"),
    ],
)
def test_name_and_version_are_checked(keys: dict[str, object], code: Code, msg: str) -> None:
    error = refusal(lambda: request(**keys))
    assert (error.code, error.msg) == (code, msg)


def test_an_unsupported_version_is_answered_with_the_supported_ones() -> None:
    assert refusal(lambda: request(cniVersion="9.9.9")).details == (
        'config is "9.9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'
    )


def test_stdin_and_name_are_checked_before_the_command() -> None:
    environ = {**ENVIRONMENT, "CNI_COMMAND": "MAKE_COFFEE"}
    assert refusal(parse_request, environ, b"").code == Code.DECODING_FAILURE
    assert refusal(parse_request, environ, b"{}").msg == "missing network name"
    error = refusal(parse_request, environ, CONF)
    assert (error.code, error.msg) == (Code.INVALID_ENVIRONMENT, "unknown CNI_COMMAND: MAKE_COFFEE")


@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
@pytest.mark.parametrize("version", [*Version, ""])
def test_commands_need_the_version_that_brought_them(command: str, since: str, version: str) -> None:
    environ = {"CNI_COMMAND": command}
    if Version(version or "0.1.0").since(Version(since)):
        assert request(environ, cniVersion=version).command == command
        return
    error = refusal(lambda: request(environ, cniVersion=version))
    assert (error.code, error.msg) == (Code.INCOMPATIBLE_VERSION, f"config version does not allow {command}")


@pytest.mark.parametrize("keys", [{}, {"cniVersion": None}, {"cniVersion": ""}])
def test_no_version_means_the_oldest(keys: dict[str, object]) -> None:
    stdin = json.dumps({"name": "net1", **keys}).encode()
    assert parse_request(ENVIRONMENT, stdin).version is Version.V0_1_0


def test_a_request_holds_what_was_sent() -> None:
    made = request({"CNI_ARGS": "IP=10.0.0.5;MAC=02:00:00:00:00:01"}, mtu=1400)
    assert made.command is Command.ADD
    assert made.owner == OWNER
    assert made.netns == "/run/netns/c1"
    assert made.path == ("/opt/cni/bin", "/usr/lib/cni")
    assert made.args == {"IP": "10.0.0.5", "MAC": "02:00:00:00:00:01"}
    assert json.loads(made.stdin)["mtu"] == 1400


def test_keys_match_whatever_their_case() -> None:
    stdin = b'{"CNIVersion": "0.4.0", "NAME": "net1"}'
    made = parse_request(ENVIRONMENT, stdin)
    assert (made.owner.network, made.version) == ("net1", Version.V0_4_0)


@pytest.mark.parametrize(
    ("value", "own"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("", False), ("yes", False)]
)
def test_netns_override(value: str, own: bool) -> None:
    assert request({"CNI_NETNS_OVERRIDE": value}).netns_may_be_own is own


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("IP=10.0.0.5", {"IP": "10.0.0.5"}),
        ("IP=", {"IP": ""}),
        ("MAC=a;MAC=b", {"MAC": "b"}),
        ("GATEWAY=10.0.0.1;STICKY=db", {"GATEWAY": "10.0.0.1", "STICKY": "db"}),
        ("IgnoreUnknown=1;K8S_POD_NAME=web-0", {"IgnoreUnknown": "1", "K8S_POD_NAME": "web-0"}),
        ("K8S_POD_NAME=web-0;IgnoreUnknown=TRUE", {"IgnoreUnknown": "TRUE", "K8S_POD_NAME": "web-0"}),
        ("IgnoreUnknown=true;mac=a", {"IgnoreUnknown": "true", "mac": "a"}),
        *((f"IgnoreUnknown={said};IP=10.0.0.5", {"IgnoreUnknown": said, "IP": "10.0.0.5"}) for said in ("0", "False")),
    ],
)
def test_args(text: str, pairs: dict[str, str]) -> None:
    assert parse_args(text) == pairs


@pytest.mark.parametrize(
    ("text", "msg"),
    [
        ("IP", 'CNI_ARGS: invalid pair "IP"'),
        ("IP=10.0.0.5;", 'CNI_ARGS: invalid pair ""'),
        ("IP=a=b", 'CNI_ARGS: invalid pair "IP=a=b"'),
        (";", 'CNI_ARGS: invalid pair ""'),
        ("mac=x", 'CNI_ARGS: unknown args ["mac=x"]'),
        ("A=1;IP=10.0.0.5;B=2", 'CNI_ARGS: unknown args ["A=1", "B=2"]'),
        ("A=1;IgnoreUnknown=0", 'CNI_ARGS: unknown args ["A=1"]'),
        ("A=1;IgnoreUnknown=False", 'CNI_ARGS: unknown args ["A=1"]'),
        ("A=1;ignoreunknown=1", 'CNI_ARGS: unknown args ["A=1", "ignoreunknown=1"]'),
        ("IgnoreUnknown=1;A", 'CNI_ARGS: invalid pair "A"'),
        *(
            (text.format(said), f'CNI_ARGS: IgnoreUnknown "{said}" is not true or false')
            for said in ("maybe", "", "yes", "2")
            for text in ("IgnoreUnknown={}", "IP=10.0.0.5;IgnoreUnknown={}", "IgnoreUnknown={};A=1")
        ),
    ],
)
def test_bad_args_are_refused(text: str, msg: str) -> None:
    error = refusal(parse_args, text)
    assert (error.code, error.msg) == (Code.INVALID_ENVIRONMENT, msg)


@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS"])
def test_bad_args_hinder_no_cleanup(command: str) -> None:
    assert request({"CNI_COMMAND": command, "CNI_ARGS": "nonsense"}).args == {}


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "9.9.9"}', "9.9.9"),
        (b'{"cniVersion": ""}', "1.1.0"),
        (b"{}", "1.1.0"),
        (b'{"cniVersion": 4}', "1.1.0"),
        (b"nonsense", "1.1.0"),
        (b"", "1.1.0"),
    ],
)
def test_version_echoes_what_it_was_asked_with(stdin: bytes, version: str) -> None:
    assert version_asked(stdin) == version
