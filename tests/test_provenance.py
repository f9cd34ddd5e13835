"""Results say what they are: in their metadata, their credentials and their picture."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import av
import c2pa
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from clips import JOB, make_clip, read_numbers
from engine_rig import Rig, engine, workflow
from marked_clips import decoded, make, treat
from service_rig import EngineRig, running_service, service_and_engines
from signing import Identity, make_identity
from waiting import WAIT_S

from faceswap.app import create_app
from faceswap.config import ConfigError, Settings
from faceswap.engine.video import Encoding, encode
from faceswap.errors import JobFailure
from faceswap.label import Label
from faceswap.marks import EXTRA_DATA, Marks, payload_of
from faceswap.media import Marking, MediaWorker, Provenance, Signing
from faceswap.media.credentials import NO_NETWORK, check_signing, read_credentials, sign
from faceswap.media.examine import read_watermark
from faceswap.media.join import join
from faceswap.media.tag import BOX_ID, SOURCE_TYPE, read_tag, write_tag
from faceswap.provenance import verify

MARKS = Marks(payload_of(JOB), 0)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip with enough of movement and frames for a watermark."""
    return encoded(tmp_path_factory.mktemp("moving") / "moving.mp4")


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return make_identity(tmp_path)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with engine(tmp_path / "engine") as rig:
        yield rig


def encoded(path: Path, marks: Marks | None = None) -> Path:
    clip = make(2, sizes=[(320, 240)], frames=(72, 73))
    encode(clip, path, clip.rate, Encoding(20, "veryfast", marks), lambda number, frame: None)
    return path


def settings_of(identity: Identity) -> dict[str, Path]:
    return {"c2pa_cert": identity.cert, "c2pa_key": identity.key}


def trusted(path: Path, identity: Identity) -> tuple[str | None, dict[str, object]]:
    """Return what c2pa's own reader says of a file, for one who trusts the tests' authority."""
    trust = {"verify": {"verify_trust": True}, "trust": {"trust_anchors": identity.authority.read_text()}}
    context = c2pa.Context(c2pa.Settings.from_dict({**NO_NETWORK, **trust}))
    with path.open("rb") as file, c2pa.Reader("video/mp4", file, context=context) as reader:
        return reader.get_validation_state(), reader.get_active_manifest() or {}


# Metadata


def test_a_joined_result_says_what_it_is_and_what_made_it(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4", sounds=["aac"])
    out = tmp_path / "out.mp4"
    facts = join([source], source, out, None, JOB)
    tag = read_tag(out)
    assert tag is not None
    assert tag.source_type.endswith("/compositeWithTrainedAlgorithmicMedia")
    assert tag.software is not None and tag.software.startswith("faceswap ")
    assert tag.prompt_id == JOB
    assert facts.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert read_numbers(out) == list(range(24))


def box(content: bytes) -> bytes:
    return (8 + len(BOX_ID) + len(content)).to_bytes(4) + b"uuid" + BOX_ID + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no xml",
        b"<a/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<?xml version='1.0' encoding='nonsense'?><a/>",
        b"\xff\xfe<",
    ],
)
def test_other_metadata_is_no_tag(tmp_path: Path, content: bytes) -> None:
    path = make_clip(tmp_path / "clip.mp4", 2)
    with path.open("ab") as file:
        file.write(box(content))
    assert read_tag(path) is None


def test_a_tag_that_another_program_wrote_as_elements_is_read(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 2)
    namespaces = (
        'xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    )
    inner = f"<r:Description><i:DigitalSourceType>{SOURCE_TYPE}</i:DigitalSourceType></r:Description>"
    with path.open("ab") as file:
        file.write(box(f"<r:RDF {namespaces}>{inner}</r:RDF>".encode()))
    tag = read_tag(path)
    assert tag is not None and tag.source_type == SOURCE_TYPE


@pytest.mark.parametrize("size", [b"\x00\x00\x00\x00", b"\x00\x00\x00\x03", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01"])
def test_boxes_that_lie_about_their_size_end_the_search(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "lie.mp4"
    path.write_bytes(size + b"uuid" + BOX_ID + bytes(100))
    assert read_tag(path) is None


# Content credentials


def test_a_result_is_signed_last_and_tells_its_source(tmp_path: Path, identity: Identity) -> None:
    source, out = make_clip(tmp_path / "source.mp4", sounds=["aac"]), tmp_path / "out.mp4"
    facts = join([source], source, out, None, JOB, (identity.cert, identity.key))
    state, manifest = trusted(out, identity)
    assert state == "Trusted"
    assert manifest["title"] == JOB
    assert "compositeWithTrainedAlgorithmicMedia" in json.dumps(manifest["assertions"])
    assert [part["relationship"] for part in manifest["ingredients"]] == ["parentOf"]  # type: ignore[attr-defined]
    # The record is of the signed file, which has its tag still.
    assert facts.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert facts.bytes == out.stat().st_size
    assert read_tag(out) is not None
    assert read_numbers(out) == list(range(24))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_credentials_of_the_input_are_kept_in_those_of_the_result(tmp_path: Path, identity: Identity) -> None:
    plain, signed, out = (tmp_path / name for name in ("plain.mp4", "signed.mp4", "out.mp4"))
    make_clip(plain)
    sign(plain, signed, plain, "camera", identity.cert, identity.key)
    join([signed], signed, out, None, JOB, (identity.cert, identity.key))
    state, manifest = trusted(out, identity)
    assert state == "Trusted"
    (ingredient,) = manifest["ingredients"]  # type: ignore[misc]
    with out.open("rb") as file, c2pa.Reader("video/mp4", file) as reader:
        inner = reader.get_manifest(ingredient["active_manifest"])
    assert inner is not None and inner["title"] == "camera"


@pytest.mark.parametrize("kind", ["es256", "es384", "ps256", "ed25519"])
def test_keys_of_every_kind_can_sign(tmp_path: Path, kind: str) -> None:
    identity = make_identity(tmp_path, kind)
    assert check_signing(identity.cert, identity.key).problem is None


def test_a_source_whose_format_has_no_credentials_can_be_signed_for(tmp_path: Path, identity: Identity) -> None:
    source = make_clip(tmp_path / "source.mkv")
    out = tmp_path / "out.mp4"
    join([source], source, out, None, JOB, (identity.cert, identity.key))
    assert trusted(out, identity)[0] == "Trusted"


def test_a_signed_file_that_was_changed_does_not_hold(tmp_path: Path, identity: Identity) -> None:
    source, out = make_clip(tmp_path / "source.mp4"), tmp_path / "out.mp4"
    join([source], source, out, None, JOB, (identity.cert, identity.key))
    data = bytearray(out.read_bytes())
    at = data.index(b"mdat") + 100
    data[at] ^= 0xFF
    out.write_bytes(data)
    assert read_credentials(out).state == "invalid"
    assert verify(out, as_json=False) == 1


async def test_no_address_in_an_input_is_fetched_for_its_credentials(tmp_path: Path, identity: Identity) -> None:
    calls = []

    async def answer(request: web.Request) -> web.Response:
        calls.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, MediaWorker(Marking(signing=Signing(identity.cert, identity.key))) as media:
        source, linked, out = (tmp_path / name for name in ("source.mp4", "linked.mp4", "out.mp4"))
        make_clip(source)
        builder = c2pa.Builder({"claim_generator_info": [{"name": "camera"}], "title": "camera", "format": "video/mp4"})
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        with source.open("rb") as file:
            builder.add_ingredient({"title": "x", "relationship": "parentOf"}, "video/mp4", file)
        builder.set_no_embed()
        builder.set_remote_url(str(server.make_url("/manifest.c2pa")))
        info = c2pa.C2paSignerInfo("es256", identity.cert.read_bytes(), identity.key.read_bytes(), None)
        with source.open("rb") as file, linked.open("w+b") as copy:
            builder.sign(c2pa.Signer.from_info(info), "video/mp4", file, copy)
        assert b"/manifest.c2pa" in linked.read_bytes()
        await media.join([linked], linked, out, None, JOB)
        await media.examine(linked)
    assert calls == []
    assert trusted(out, identity)[0] == "Trusted"


async def test_a_key_that_cannot_be_used_any_more_fails_the_join_and_leaves_nothing(
    tmp_path: Path, identity: Identity
) -> None:
    source = make_clip(tmp_path / "source.mp4")
    folder = tmp_path / "out"
    folder.mkdir()
    identity.key.write_text("gone")
    async with MediaWorker(Marking(signing=Signing(identity.cert, identity.key))) as media:
        with pytest.raises(JobFailure) as failed:
            await media.join([source], source, folder / "out.mp4", None, JOB)
    assert failed.value.code == "not_signed"
    assert list(folder.iterdir()) == []


def test_a_certificate_without_a_key_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FACESWAP_C2PA_KEY"):
        create_app(Settings(tmp_path, c2pa_cert=tmp_path / "chain.pem"))


@pytest.mark.parametrize("damage", ["no key", "no certificate", "another's key", "expired"])
async def test_what_cannot_sign_stops_the_start_in_one_line(tmp_path: Path, damage: str) -> None:
    identity = make_identity(tmp_path, days=-1 if damage == "expired" else 30)
    if damage == "no key":
        identity.key.unlink()
    elif damage == "no certificate":
        identity.cert.write_text("nothing")
    elif damage == "another's key":
        other = tmp_path / "other"
        other.mkdir()
        identity.key.write_bytes(make_identity(other).key.read_bytes())
    runner = web.AppRunner(create_app(Settings(tmp_path / "data", min_free_mb=0, **settings_of(identity))))
    with pytest.raises(ConfigError) as refused:
        await runner.setup()
    await runner.cleanup()
    assert str(refused.value).startswith("FACESWAP_C2PA_CERT=")
    assert "\n" not in str(refused.value)


# The watermark and the label


async def test_the_engine_draws_the_marks_that_a_prompt_asks_for(rig: Rig, moving: Path) -> None:
    await rig.upload(moving, "in.mp4", overwrite="true")
    graph, other = workflow("in.mp4", force_rate=0), Marks(bytes(range(8)))
    for number, marks in enumerate((MARKS, other)):  # the second must not get the result of the first from the cache
        path = await rig.swap(graph, str(number), extra_data={EXTRA_DATA: marks.to_json()})
        assert read_watermark(path) == marks.payload.hex()
    assert read_watermark(await rig.swap(graph)) is None


@pytest.mark.parametrize(
    "marks",
    [
        [],
        {},
        {**MARKS.to_json(), "payload": "00"},
        {**MARKS.to_json(), "payload": "x" * 16},
        {**MARKS.to_json(), "first_frame": -1},
        {**MARKS.to_json(), "label": "x" * 101},
    ],
)
def test_marks_that_are_none_are_refused(marks: object) -> None:
    with pytest.raises(ValueError, match=r"Marks|hexadecimal"):
        Marks.from_json(marks)


@pytest.mark.parametrize("size", [(320, 240), (64, 64), (16, 16), (1920, 1080)])
def test_a_label_is_seen_in_the_lower_left_corner_only(size: tuple[int, int]) -> None:
    width, height = size
    planes = np.full((height * 3 // 2, width), 120, np.uint8)
    Label("Généré par IA 生成", size).apply(planes)
    changed = np.argwhere(planes[:height] != 120)
    assert planes[:height].max() > 180 or size == (16, 16)
    assert changed[:, 1].min() == 0 and changed[:, 0].max() == height - 1
    assert changed[:, 0].min() >= height // 2 - 22


async def test_a_job_of_the_embedded_kind_of_engine_is_tagged_marked_labelled_and_signed(
    tmp_path: Path, identity: Identity, moving: Path
) -> None:
    settings = {**settings_of(identity), "label": "AI", "segment_frames": 40}
    async with service_and_engines(tmp_path, paint=True, settings=settings) as (service, (comfyui,)):
        status = await service.ended(await service.post(moving))
        assert status["status"] == "SUCCESS", status
        result = await service.download(status, tmp_path / "result.mp4")
    assert sorted(extra[EXTRA_DATA]["first_frame"] for extra in comfyui.extra_data) == [0, 36]
    assert hashlib.sha256(result.read_bytes()).hexdigest() == status["sha256"]
    async with MediaWorker() as media:
        found = await media.examine(result)
    check(found, status["prompt_id"])
    assert found.credentials.state == "valid"
    assert found.credentials.signer == "Faceswap Tests"
    assert has_label(result) and not has_label(moving)
    # A copy without metadata and credentials is still known by its picture, and by nothing else.
    copy = treat(result, tmp_path / "copy.mp4", 1, 28)
    async with MediaWorker() as media:
        found = await media.examine(copy)
    assert (found.tag, found.credentials.state) == (None, "none")
    assert found.watermark == payload_of(status["prompt_id"]).hex()


def check(found: Provenance, prompt_id: str) -> None:
    assert found.tag is not None and found.tag.prompt_id == prompt_id
    assert found.watermark == payload_of(prompt_id).hex()


def has_label(path: Path) -> bool:
    """Return true if each frame has letters in its lower left corner: white on dark."""
    corners = [planes[planes.shape[0] * 2 // 3 - 24 : planes.shape[0] * 2 // 3, :14] for planes in decoded(path)]
    return all(corner.max() > 180 and np.median(corner) < 110 for corner in corners)


@pytest.mark.parametrize(("watermark", "label"), [(False, ""), (True, ""), (False, "AI")])
async def test_the_pictures_of_a_comfyui_are_encoded_once_more_only_where_that_is_wanted(
    tmp_path: Path, moving: Path, watermark: bool, label: str
) -> None:
    async with EngineRig(tmp_path / "comfyui", paint=True, streams=False) as comfyui:
        settings = {"watermark": watermark, "label": label, "segment_frames": 40}
        async with running_service(tmp_path / "data", comfyui, **settings) as service:
            status = await service.ended(await service.post(moving))
            assert status["status"] == "SUCCESS", status
            result = await service.download(status, tmp_path / "result.mp4")
    async with MediaWorker() as media:
        found = await media.examine(result)
    assert found.tag is not None and found.tag.prompt_id == status["prompt_id"]
    assert found.watermark == (payload_of(status["prompt_id"]).hex() if watermark or label else None)
    assert has_label(result) == bool(label)
    with av.open(result) as container:
        assert sum(1 for _ in container.decode(video=0)) == 72


async def test_a_segment_that_the_engine_marked_is_not_encoded_again(tmp_path: Path, rig: Rig, moving: Path) -> None:
    await rig.upload(moving, "in.mp4", overwrite="true")
    marks = Marks(payload_of(JOB), 0, "AI")
    path = await rig.swap(workflow("in.mp4", force_rate=0), extra_data={EXTRA_DATA: marks.to_json()})
    before = path.read_bytes()
    async with MediaWorker(Marking(always=True)) as media:
        await media.mark(path, marks, frame_count=72, crf=20)
        assert path.read_bytes() == before
        await media.mark(path, Marks(payload_of(JOB), 8, "AI"), frame_count=72, crf=20)
    assert path.read_bytes() != before


async def test_a_damaged_segment_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "segment.mp4"
    path.write_bytes(b"nothing")
    async with MediaWorker(Marking(always=True)) as media:
        with pytest.raises(JobFailure) as failed:
            await media.mark(path, MARKS, frame_count=1, crf=20)
    assert failed.value.code == "output_damaged"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"nothing"]


# faceswap verify


def run_verify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faceswap", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_verify_shows_all_that_a_result_says(tmp_path: Path, identity: Identity) -> None:
    source = encoded(tmp_path / "marked.mp4", MARKS)
    out = tmp_path / "out.mp4"
    join([source], source, out, None, JOB, (identity.cert, identity.key))
    done = run_verify(out)
    assert done.returncode == 0, done.stderr
    metadata, credentials, watermark = done.stdout.splitlines()
    assert SOURCE_TYPE in metadata and JOB in metadata
    assert "valid, signed by Faceswap Tests" in credentials
    assert MARKS.payload.hex() in watermark and JOB[:18] in watermark


def test_verify_tells_a_program_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    write_tag(path, JOB)
    assert verify(path, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tag"]["prompt_id"] == JOB
    assert (shown["credentials"]["state"], shown["watermark"]) == ("none", None)


def test_verify_says_that_a_recording_says_nothing(moving: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(moving, as_json=False) == 1
    assert capsys.readouterr().out.split() == ["metadata:", "none", "credentials:", "none", "watermark:", "none"]


@pytest.mark.parametrize("content", [None, b"", b"no video", b"#EXTM3U\nhttp://127.0.0.1:1/a.ts\n"])
def test_verify_refuses_in_one_line_what_it_cannot_read(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert verify(path, as_json=False) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("faceswap: ") and shown.err.count("\n") == 1


def test_verify_shows_no_control_characters_of_a_strangers_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    write_tag(path, "job\N{RIGHT-TO-LEFT OVERRIDE}\x9b31m")
    assert verify(path, as_json=False) == 0
    assert all(character.isprintable() or character == "\n" for character in capsys.readouterr().out)
