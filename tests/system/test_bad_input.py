"""Wrong requests are refused with a status, a code and one sentence, and leave nothing on disk."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clips import cut_short
from processes import Service, at_rest, eventually
from talk import Answer, Api, assert_problem, assert_sentence, half_an_upload
from waiting import WAIT_S

TEXT = b"This is a text and nothing else. " * 100
URL_ = "http://127.0.0.1:9/clip"


pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.mark.parametrize(
    ("status", "code", "fields"),
    [
        (400, "missing_video", {"video": None}),
        (400, "missing_image", {"image": None}),
        (400, "duplicate_video", {"video_url": URL_}),
        (400, "duplicate_image", {"image_url": URL_}),
        (400, "empty_video", {"video": b""}),
        (400, "empty_image", {"image": b""}),
        (415, "not_a_video", {"video": TEXT}),
        (415, "not_an_image", {"image": TEXT}),
        (400, "unknown_option", {"options": {"colour": "red"}}),
        (400, "invalid_option", {"options": {"crf": 52}}),
        (400, "invalid_option", {"options": {"frame_rate": 0.5}}),
        (400, "invalid_option", {"options": {"priority": 11}}),
        (400, "invalid_option", {"options": {"face_restore_visibility": 1.5}}),
        (400, "invalid_option", {"options": {"face_boost": "yes"}}),
        (400, "invalid_option", {"options": {"detect_gender": "other"}}),
        (400, "invalid_option", {"options": {"face_index": "-1"}}),
        (400, "invalid_option", {"options": {"swap_model": "../model"}}),
        (400, "malformed_json", {"options": [1, 2]}),
        (400, "malformed_json", {"options": "{"}),
        (400, "unknown_workflow", {"options": {"workflow": "none-of-this-name"}}),
        (400, "unknown_field", {"colour": "red"}),
        (400, "invalid_output_name", {"output_name": "../x"}),
        (400, "invalid_output_name", {"output_name": "x" * 300}),
        (400, "invalid_output_name", {"output_name": "a\x00b"}),
        (400, "invalid_output_name", {"output_name": "a\x1b[2Jb"}),
        (400, "invalid_output_name", {"output_name": ".hidden"}),
        (400, "invalid_output_name", {"output_name": "a/b"}),
        (400, "invalid_output_name", {"output_name": "ärger"}),
        (400, "invalid_flag", {"return_prompt_id_only": "perhaps"}),
        (400, "invalid_url", {"video": None, "video_url": "ftp://example.org/clip.mp4"}),
        (400, "invalid_url", {"image": None, "image_url": "not an address"}),
        (400, "invalid_url", {"image": None, "image_url": "http://xn--/"}),
        (422, "url_unreachable", {"video": None, "video_url": "http://127.0.0.1:1024/nobody"}),
        (422, "url_not_allowed", {"video": None, "video_url": "http://10.0.0.1/private"}),
        (400, "invalid_url", {"webhook_url": "example.org/hook"}),
        (422, "url_not_allowed", {"result_put_url": "http://10.0.0.1/private"}),
    ],
)
async def test_a_wrong_field_is_refused(api: Api, status: int, code: str, fields: dict[str, Any]) -> None:
    assert_problem(await api.swap(**fields), status, code)


async def test_a_text_is_no_video(api: Api) -> None:
    assert_problem(await api.swap(video=b"a text"), 415, "not_a_video")


async def test_a_video_is_no_picture(api: Api) -> None:
    assert_problem(await api.swap(image=api.media.video), 415, "not_an_image")


async def test_a_truncated_video_is_refused(api: Api, tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(api.media.video)
    cut = cut_short(whole, tmp_path / "cut.mp4", 0.5).read_bytes()
    answer = await api.swap(video=cut)
    assert answer.status in (415, 422)
    assert_problem(answer, answer.status, answer.json["code"])


async def test_more_than_the_upload_limit_is_refused_before_all_of_it_was_sent(api: Api) -> None:
    assert_problem(await api.swap(video=bytes(3 << 20)), 413, "too_large")


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("malformed_json", b"{"),
        ("malformed_json", b"[1]"),
        ("malformed_json", b"\xff\xfe"),
        ("malformed_json", b"[" * 10_000),
        ("duplicate_field", b'{"video_url": "http://a.example", "video_url": "http://b.example"}'),
        ("missing_video", b"{}"),
        ("invalid_video", b'{"video": "clip.mp4"}'),
        ("unknown_field", b'{"videos": 1}'),
        ("invalid_output_name", b'{"output_name": "\\ud800"}'),
    ],
)
async def test_a_wrong_json_request_is_refused(api: Api, code: str, body: bytes) -> None:
    answer = await api.post("/face-swap", data=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 400, code)


@pytest.mark.parametrize(
    ("status", "code", "headers"),
    [
        (415, "unsupported_content_type", {"Content-Type": "text/plain"}),
        (415, "unsupported_content_encoding", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        (400, "malformed_multipart", {"Content-Type": "multipart/form-data"}),
        (400, "incomplete_body", {"Content-Type": "multipart/form-data; boundary=b"}),
    ],
)
async def test_a_request_of_another_kind_is_refused(api: Api, status: int, code: str, headers: dict[str, str]) -> None:
    body = gzip.compress(TEXT) if "Content-Encoding" in headers else TEXT
    assert_problem(await api.post("/face-swap", data=body, headers=headers), status, code)


async def test_a_multipart_request_without_its_end_is_refused(api: Api) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n' + api.media.video
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_problem(await api.post("/face-swap", data=body, headers=headers), 400, "incomplete_body")


async def test_an_upload_that_is_cut_off_leaves_nothing(api: Api, service: Service) -> None:
    before = await at_rest(service.files)
    _, writer = await api.raw()
    writer.write(half_an_upload(api.media))
    await writer.drain()

    async def has_begun() -> bool:
        return service.files() != before

    await eventually(has_begun)
    writer.close()


async def first_line(api: Api, *headers: str) -> bytes:
    """Send only the head of a request and return the first line of the answer."""
    reader, writer = await api.raw()
    lines = ["POST /face-swap HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=b", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    async with asyncio.timeout(WAIT_S):
        line = await reader.readline()
    writer.close()
    return line


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
async def test_what_the_head_of_a_request_tells_is_refused_before_its_body(api: Api, expect: tuple[str, ...]) -> None:
    for headers in (("Content-Length: 1000000", "Idempotency-Key: " + "x" * 256), ("Content-Length: 999000000000",)):
        assert (await first_line(api, *expect, *headers)).split()[1] in (b"400", b"413")


async def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(api: Api) -> None:
    line = await first_line(api, "Content-Length: 1000000", "Expect: 100-continue")
    assert line == b"HTTP/1.1 100 Continue\r\n"


async def test_no_answer_tells_what_the_server_is_made_of(api: Api) -> None:
    for path in ("/health", "/nothing", f"/status/{UNKNOWN}"):
        assert (await api.get(path)).headers["Server"] == "faceswap"


UNKNOWN = "7d0c0a5e-6d5f-4b8e-9b3e-000000000000"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status/{}"),
        ("GET", "/status/{}?wait=1"),
        ("GET", "/events/{}"),
        ("GET", "/preview/{}"),
        ("POST", "/jobs/{}/cancel"),
        ("POST", "/jobs/{}/retry"),
        ("DELETE", "/jobs/{}"),
    ],
)
@pytest.mark.parametrize("prompt_id", [UNKNOWN, "x", "%00", "%ff", "%ed%a0%80", "%2e%2e", "x" * 4000])
async def test_an_unknown_prompt_id_is_404_everywhere(api: Api, method: str, path: str, prompt_id: str) -> None:
    assert_problem(await api.call(method, path.format(prompt_id)), 404, "unknown_prompt_id")


@pytest.mark.parametrize(
    "name",
    [
        "nothing.mp4",
        "%2e%2e%2ffaceswap.db",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%252e%252e%252ffaceswap.db",
        "..%5c..%5cfaceswap.db",
        "%2fetc%2fpasswd",
        "%00",
        "%ff",
        "faceswap.db",
    ],
)
async def test_a_file_that_is_no_result_is_404(api: Api, name: str) -> None:
    assert_problem(await api.get(f"/download/{name}"), 404, "unknown_file")


@pytest.mark.parametrize("path", ["/download/../faceswap.db", "/download/", "/download/a/b", "/nothing", "/status/"])
async def test_a_path_that_is_no_route_is_404(api: Api, path: str) -> None:
    raw = await raw_get(api, path)
    assert raw.startswith(b"HTTP/1.1 404 ") and b"application/problem+json" in raw
    assert_sentence(json.loads(raw.partition(b"\r\n\r\n")[2])["detail"])


async def raw_get(api: Api, path: str, *headers: str) -> bytes:
    """Return the answer to a path that no client library has normalised."""
    reader, writer = await api.raw()
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    async with asyncio.timeout(WAIT_S):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("invalid_status", "/jobs?status=RUNNING"),
        ("invalid_limit", "/jobs?limit=0"),
        ("invalid_limit", "/jobs?limit=many"),
        ("invalid_limit", f"/jobs?limit={'9' * 5000}"),
        ("invalid_cursor", "/jobs?cursor=here"),
        ("invalid_cursor", f"/jobs?cursor={'9' * 5000}-x"),
        ("invalid_wait", f"/status/{UNKNOWN}?wait=61"),
        ("invalid_wait", f"/status/{UNKNOWN}?wait=-1"),
        ("invalid_wait", f"/status/{UNKNOWN}?wait=nan"),
        ("invalid_wait", f"/status/{UNKNOWN}?wait=soon"),
        ("invalid_wait", f"/status/{UNKNOWN}?wait=1_0"),
        ("invalid_wait", f"/status/{UNKNOWN}?wait=%D9%A3"),
        ("invalid_limit", "/jobs?limit=%D9%A3"),
    ],
)
async def test_a_wrong_query_is_refused(api: Api, code: str, path: str) -> None:
    assert_problem(await api.get(path), 400, code)


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 40, "\N{ARABIC-INDIC DIGIT THREE}"])
async def test_a_last_event_id_that_no_event_has_is_refused(api: Api, service: Service, value: str) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    for request in ({"headers": {"Last-Event-ID": value}}, {"params": {"last_event_id": value}}):
        async with api.session.get(f"{api.url}/events/{prompt_id}", **request) as response:
            assert_problem(
                Answer(response.status, response.headers, await response.read()), 400, "invalid_last_event_id"
            )
    assert (await api.call("DELETE", f"/jobs/{prompt_id}")).status == 204


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "\udcff"])
async def test_a_wrong_idempotency_key_is_refused(api: Api, key: str) -> None:
    assert_problem(await api.swap(headers={"Idempotency-Key": key}), 400, "invalid_idempotency_key")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/face-swap", "POST"),
        ("DELETE", "/health", "GET,HEAD"),
        ("POST", f"/status/{UNKNOWN}", "GET,HEAD"),
        ("GET", f"/jobs/{UNKNOWN}", "DELETE,PATCH"),
        ("HEAD", f"/events/{UNKNOWN}", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(api: Api, method: str, path: str, allowed: str) -> None:
    answer = await api.call(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert_problem(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://["])
async def test_a_browser_on_another_site_is_refused(api: Api, origin: str) -> None:
    for method, path in (("GET", "/jobs"), ("POST", "/face-swap"), ("GET", "/face-swap-ws"), ("OPTIONS", "/jobs")):
        assert_problem(await api.call(method, path, headers={"Origin": origin}), 403, "foreign_origin")


async def test_the_services_own_page_may_call(api: Api) -> None:
    answer = await api.get("/jobs", headers={"Origin": api.url})
    assert answer.status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "a b"])
async def test_a_page_whose_own_name_leads_to_this_machine_is_refused(api: Api, host: str) -> None:
    for origin in ({}, {"Origin": f"http://{host}"}):
        assert_problem(await api.get("/jobs", headers={"Host": host, **origin}), 403, "foreign_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"])
async def test_every_name_of_this_machine_is_ours(api: Api, host: str) -> None:
    assert (await api.get("/jobs", headers={"Host": host})).status == 200


async def test_a_listed_origin_may_call(folder_service: Callable[..., Any], api_of: Callable[[Service], Api]) -> None:
    async with folder_service(cors_origins="https://friend.example") as service:
        api = api_of(service)
        friend = {"Origin": "https://friend.example"}
        answer = await api.get("/jobs", headers=friend)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://friend.example")
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
        answer = await api.call("OPTIONS", "/face-swap", headers={**friend, **asked})
        assert (answer.status, answer.headers["Access-Control-Allow-Headers"]) == (204, "idempotency-key")
        assert_problem(await api.get("/jobs", headers={"Origin": "https://evil.example"}), 403, "foreign_origin")


async def test_a_full_queue_is_told_with_when_to_come_again(
    folder_service: Callable[..., Any], api_of: Callable[[Service], Api]
) -> None:
    async with folder_service(queue_limit=1) as service:
        api = api_of(service)
        await api.submit()
        before = service.files()
        answer = await api.swap()
        assert_problem(answer, 503, "queue_full")
        assert int(answer.headers["Retry-After"]) > 0
        assert service.files() == before
        assert (await api.get("/readyz")).json["checks"]["queue"] is False


async def test_a_disk_that_is_low_is_told_with_when_to_come_again(
    folder_service: Callable[..., Any], api_of: Callable[[Service], Api]
) -> None:
    async with folder_service(min_free_mb=1_000_000_000) as service:
        api = api_of(service)
        answer = await api.swap()
        assert_problem(answer, 503, "disk_low")
        assert int(answer.headers["Retry-After"]) > 0
        assert service.files() == []
        assert (await api.get("/readyz")).json["checks"]["disk"] is False
        assert (await api.get("/health")).json["status"] == "degraded"


async def test_no_answer_of_all_these_tests_told_of_an_error_inside(service: Service) -> None:
    assert "Traceback" not in service.log()
