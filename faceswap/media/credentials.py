"""Content credentials (C2PA) of results: signed with the operator's certificate, and read. It runs in a worker process.

The package `c2pa-python` is an extra. It is kept from the network: an input may name any address for its credentials.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from .. import __version__
from ..errors import JobFailure
from .facts import Credentials, SigningFacts
from .stills import HEAD_BYTES, still_format
from .tag import SOURCE_TYPE
from .timeline import open_media

if TYPE_CHECKING:
    import c2pa

NO_NETWORK = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
    "builder": {"thumbnail": {"enabled": False}},
    "core": {"allowed_network_hosts": []},
}
"""Settings of `c2pa`. A thumbnail would show a face where nobody looks for one."""

MP4 = "video/mp4"
FORMATS = {"mov": MP4, "avi": "video/avi"}
"""Containers, as FFmpeg calls them first, whose credentials can be read."""
PICTURES = {name: f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "avif", "heif")}
"""Formats of pictures whose credentials can be read."""
AGENT = {"name": "faceswap", "version": __version__}
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class Unusable(ValueError):
    """A certificate or key that results cannot be signed with; the text is a sentence."""


def sign(unsigned: Path, signed: Path, source: Path, prompt_id: str, cert: Path, key: Path) -> None:
    """Write a copy of a result with credentials that say how it was made of `source`.

    The credentials of `source` are kept in them. Raises JobFailure (`not_signed`).
    """
    import c2pa

    try:
        _sign(unsigned, signed, source, prompt_id, _signer(cert, key))
    except (Unusable, c2pa.C2paError) as error:
        message = "The result cannot be signed; the certificate and key of FACESWAP_C2PA_CERT have to be looked at."
        raise JobFailure("not_signed", message, transient=True) from error


def check_signing(cert: Path, key: Path) -> SigningFacts:
    """Sign a small video to see if results can be signed."""
    try:
        import c2pa
    except ImportError:
        return SigningFacts("it needs c2pa-python: pip install 'faceswap[c2pa]'")
    with tempfile.TemporaryDirectory(prefix="faceswap-c2pa-") as folder:
        sample, signed = Path(folder) / "sample.mp4", Path(folder) / "signed.mp4"
        _make_sample(sample)
        try:
            _sign(sample, signed, sample, "check", _signer(cert, key))
        except (Unusable, c2pa.C2paError) as error:
            return SigningFacts(" ".join(str(error).split())[:300])
    return SigningFacts(None)


def read_credentials(path: Path) -> Credentials:
    """Return what the credentials in a file say, and whether they hold."""
    try:
        import c2pa
    except ImportError:
        return Credentials("unknown")
    kind = _format(path)
    if kind is None:
        return Credentials("none")
    try:
        with path.open("rb") as file, c2pa.Reader(kind, file, context=_context()) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
    except c2pa.C2paError.ManifestNotFound:
        return Credentials("none")
    except c2pa.C2paError:
        return Credentials("invalid")
    signature = manifest.get("signature_info", {})
    signer = signature.get("common_name") or signature.get("issuer")
    return Credentials(
        "valid" if state in ("Valid", "Trusted") else "invalid",
        signer=signer,
        source_types=tuple(dict.fromkeys(_source_types(manifest))),
        ingredients=len(manifest.get("ingredients", ())),
    )


def _source_types(manifest: dict[str, Any]) -> list[str]:
    return [
        str(action["digitalSourceType"])
        for assertion in manifest.get("assertions", ())
        if str(assertion.get("label")).startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", ())
        if "digitalSourceType" in action
    ]


def _sign(unsigned: Path, signed: Path, source: Path, prompt_id: str, signer: c2pa.Signer) -> None:
    import c2pa

    kind = _format(unsigned)
    assert kind is not None  # of a format that the service makes
    builder = c2pa.Builder({"claim_generator_info": [AGENT], "title": prompt_id, "format": kind}, context=_context())
    change: dict[str, Any] = {
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": AGENT,
        "parameters": {"description": "A face was swapped.", "prompt_id": prompt_id},
    }
    if _add_source(builder, source):
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        builder.add_action({"action": "c2pa.edited", **change})
    else:
        builder.add_action({"action": "c2pa.created", **change})
    with unsigned.open("rb") as original, signed.open("w+b") as copy:
        builder.sign(signer, kind, original, copy)


def _add_source(builder: c2pa.Builder, source: Path) -> bool:
    """Add the source with its credentials; return False for a format that has none."""
    import c2pa

    kind = _format(source)
    if kind is None:
        return False
    try:
        with source.open("rb") as file:
            builder.add_ingredient({"title": "source", "relationship": "parentOf"}, kind, file)
    except c2pa.C2paError:
        return False
    return True


def _format(path: Path) -> str | None:
    """Return the media type of a file, None for one without credentials."""
    with path.open("rb") as file:
        kind = still_format(file.read(HEAD_BYTES))
    if kind is not None:
        return PICTURES.get(kind)
    with open_media(path) as container:
        return FORMATS.get(container.format.name.split(",")[0])


def _context() -> c2pa.Context:
    import c2pa

    return c2pa.Context(c2pa.Settings.from_dict(NO_NETWORK))


def _signer(cert: Path, key: Path) -> c2pa.Signer:
    """Return the signer for a chain of certificates and a private key, both PEM. Raises Unusable and C2paError."""
    import c2pa

    try:
        chain, private_key = cert.read_bytes(), key.read_bytes()
    except OSError as error:
        raise Unusable(f"{error.filename}: {os.strerror(error.errno or 0)}") from error
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(_algorithm(private_key), chain, private_key, None))


def _algorithm(private_key: bytes) -> str:
    """Return C2PA's name of the signatures that a key makes. Raises Unusable."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private_key, None)
    except (ValueError, TypeError) as error:
        raise Unusable("the key is no PEM private key without a password") from error
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, RSAPrivateKey):
        return "ps256"
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    raise Unusable("the key is none of P-256, P-384, P-521, Ed25519 and RSA")


def _make_sample(path: Path) -> None:
    with av.open(f"file:{path}", "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for packet in [
            *stream.encode(av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), "yuv420p")),
            *stream.encode(None),
        ]:
            output.mux(packet)
