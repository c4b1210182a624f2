"""protocol.py: any body is parsed or refused with the reason."""

import contextlib
import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, strategies as st

from plugin.errors import BadRequest
from plugin.protocol import (
    ActivateReply,
    CapabilitiesReply,
    CreateRequest,
    EmptyRequest,
    ErrorReply,
    GetReply,
    MountRequest,
    Reply,
    Request,
    VolumeInfo,
    VolumeRequest,
)

REQUESTS: tuple[type[Request], ...] = (EmptyRequest, VolumeRequest, CreateRequest, MountRequest)


@pytest.mark.parametrize(
    "body",
    [
        b'{"Name": "v"}',
        b'{"Name": "v", "Opts": null}',
        b'{"Name": "v", "Opts": {}}',
        b'{"Name":"v","Opts":{},"Later":[1]}\n',
    ],
)
def test_create_without_options_has_several_forms(body: bytes) -> None:
    request = CreateRequest.parse(body)
    assert (request.name, request.options) == ("v", {})


def test_mount_has_a_name_and_an_id() -> None:
    request = MountRequest.parse(b'{"Name":"v","ID":"0123456789abcdef"}')
    assert (request.name, request.id) == ("v", "0123456789abcdef")
    assert request.subject == "v id=0123456789ab"


@pytest.mark.parametrize("body", [b"", b"\n", b"{}", b'{"Any": 1}'])
def test_requests_without_fields_accept_any_object_and_an_empty_body(body: bytes) -> None:
    assert EmptyRequest.parse(body) == EmptyRequest()


@pytest.mark.parametrize("request_type", [VolumeRequest, CreateRequest, MountRequest])
def test_an_empty_body_is_refused_if_fields_are_needed(request_type: type[Request]) -> None:
    """If the connection breaks, the engine repeats a request with an empty body."""
    with pytest.raises(BadRequest, match=r"the request's body is empty; expected .* with Name"):
        request_type.parse(b"")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"{}", "Name"),
        (b'{"Name": 7}', "$.Name"),
        (b'{"Name": "v", "Opts": {"cache": 1}}', "$.Opts"),
        (b"\xff\xfe", "malformed"),
        (b'{"Name": "\xff"}', "utf-8"),
    ],
)
def test_a_refusal_names_the_field(body: bytes, word: str) -> None:
    with pytest.raises(BadRequest, match=r"^the request's body is not accepted: ") as refusal:
        CreateRequest.parse(body)
    assert word.lower() in str(refusal.value).lower()


@given(body=st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"Name":.*\}'))
def test_any_body_gives_a_request_or_a_refusal(body: bytes) -> None:
    for request_type in REQUESTS:
        with contextlib.suppress(BadRequest):
            assert isinstance(request_type.parse(body), request_type)


def test_replies_are_written_as_documented() -> None:
    created_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    info = VolumeInfo(name="v", created_at=created_at, status=msgspec.Raw(b"{}"))
    written = [
        reply.encode()
        for reply in (
            Reply(),
            ActivateReply(),
            CapabilitiesReply(),
            GetReply(volume=info),
            ErrorReply(err="no"),
        )
    ]
    assert [json.loads(text) for text in written] == [
        {},
        {"Implements": ["VolumeDriver"]},
        {"Capabilities": {"Scope": "local"}},
        {"Volume": {"Name": "v", "CreatedAt": "2026-01-02T03:04:05Z", "Status": {}}},
        {"Err": "no"},
    ]
