import codecs
import hashlib
import pickle

import joserfc.jwk
import joserfc.jwt
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client import protocol
from client.credentials import Key, NotAToken, Token, proof
from tests.client.scripted_gateway import NOW, b64, make_token, unb64

HTU = "https://gateway.example/ice/v1"
# RFC 7515 appendix A.3: a P-256 key and its JWK.
RFC_D = int.from_bytes(unb64("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"))
RFC_KEY = Key(ec.derive_private_key(RFC_D, ec.SECP256R1()))


# --- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: f"{text}\n",
        lambda text: f"  {text}\r\n\r\n",
        lambda text: f"\ufeff{text}\n",
        lambda text: f"{text[:40]}\n  {text[40:]}\n",
        lambda text: f"\t{text}\u00a0",
    ],
    ids=["newline", "spaces", "bom", "wrapped", "tabs"],
)
def test_a_token_survives_editors_and_mail(spoil, token):
    assert Token.from_bytes(spoil(token).encode()).reveal() == token


@pytest.mark.parametrize(
    ("bom", "encoding"), [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")]
)
def test_a_token_survives_powershell(bom, encoding, token):
    data = bom + f"{token}\r\n".encode(encoding)

    assert Token.from_bytes(data).reveal() == token, "PowerShell's > writes UTF-16"


IV, TAG = "c" * 16, "e" * 22


@pytest.mark.parametrize("characters", [1, 2, 21, 22, 23, 40, 140, 200])
def test_a_token_of_which_the_end_is_missing_is_none(characters, token):
    with pytest.raises(NotAToken):
        Token(token[:-characters])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"hello",
        b"a.b.c",
        b"a.b.c.d.e.f",
        f"a..{IV}.d.".encode(),
        f"a..{IV}.d.{TAG}=".encode(),
        f"a..{IV[1:]}/.d.{TAG}".encode(),
        f"a..{IV}.d.{TAG[1:]}\u00e9".encode(),
        f"a..{IV}.d.{TAG[1:]}".encode() + b"\xff",
        f"a..{IV}.{'d' * protocol.MAX_TOKEN}.{TAG}".encode(),
        f"a.b.{IV}.d.{TAG}".encode(),
        b"\x00" * 500,
        b"-----BEGIN PRIVATE KEY-----",
    ],
)
def test_what_is_no_token_is_refused_in_one_line_that_does_not_quote_it(data):
    with pytest.raises(NotAToken) as caught:
        Token.from_bytes(data)

    assert "not a registration token" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_longest_token_is_accepted():
    text = f"a..{IV}..{TAG}"
    text = text.replace("..e", f".{'d' * (protocol.MAX_TOKEN - len(text))}.e")

    assert Token(text).reveal() == text


def test_a_token_masks_itself(token):
    secret = Token(token)
    shown = f"{secret} {secret!r} {secret!s} {[secret]} {{'token': {secret!r}}}"

    assert token not in shown
    assert "Token(***)" in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    ("given", "stored", "newer"),
    [
        (2.0, 1.0, True),
        (1.5, 1.25, True),
        (1.0, 2.0, False),
        (1.0, 1.0, False),
        (None, 1.0, False),
        (None, None, False),
        (1.0, None, True),
        ("2", 1.0, False),
        (True, None, False),
        (2, 1, True),
    ],
)
def test_the_newer_token_is_told_by_its_header(given, stored, newer):
    given, stored = Token(make_token(given)), Token(make_token(stored))

    assert given.supersedes(stored) is newer


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"\xff", b'{"iat": 1e999}', b"[" * 500])
def test_a_token_whose_header_cannot_be_read_has_no_time(header):
    token = Token(f"{b64(header) or 'a'}..{IV}.d.{TAG}")

    assert token.issued is None


# --- keys and proofs ---------------------------------------------------------------------------


def test_a_key_comes_back_from_its_pem():
    key = Key.generate()

    assert Key.from_pem(key.to_pem()).jwk() == key.jwk()
    assert key.to_pem().startswith(b"-----BEGIN PRIVATE KEY-----"), "the key should be PKCS #8"


def test_the_public_key_is_written_as_in_rfc_7515():
    assert RFC_KEY.jwk() == {
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }


def test_a_key_does_not_show_itself():
    assert repr(Key.generate()) == "Key(***)"


@pytest.mark.parametrize("nonce", [None, "n-1"])
def test_proofs_hold_for_joserfc_and_pyjwt(nonce, token):
    key = Key.generate()
    # 40 times, since a coordinate or signature that begins with zeros is rare.
    for _ in range(40):
        text = proof(key, HTU, Token(token), now=1_700_000_000.9, nonce=nonce)
        theirs = joserfc.jwt.decode(
            text, joserfc.jwk.ECKey.import_key(key.jwk()), algorithms=["ES256"]
        )
        again = jwt.decode(text, jwt.PyJWK(key.jwk(), "ES256").key, algorithms=["ES256"])

        assert theirs.claims == again, "both libraries should read the same claims"
        assert theirs.header == {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.jwk()}
        expected = {
            "htm": "GET",
            "htu": HTU,
            "iat": 1_700_000_000,
            "ath": b64(hashlib.sha256(token.encode()).digest()),
        } | ({"nonce": nonce} if nonce else {})
        assert {name: value for name, value in again.items() if name != "jti"} == expected


def test_all_of_a_proof_but_its_signature_follows_from_the_arguments(token):
    first, second = (
        proof(RFC_KEY, HTU, Token(token), now=NOW, nonce="n", jti="j").rpartition(".")[0]
        for _ in range(2)
    )

    assert first == second


def test_ath_is_that_of_rfc_9449():
    # RFC 9449 section 7.1 gives a token and its hash; ours needs the form of a JWE to be a Token.
    class OfTheRfc(Token):
        def reveal(self):
            return "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"

    token = OfTheRfc(f"a..{IV}.d.{TAG}")
    claims = jwt.decode(proof(RFC_KEY, HTU, token, now=NOW), options={"verify_signature": False})

    assert claims["ath"] == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


def test_every_proof_has_its_own_jti(token):
    proofs = [proof(RFC_KEY, HTU, Token(token), now=NOW) for _ in range(50)]
    jtis = {jwt.decode(text, options={"verify_signature": False})["jti"] for text in proofs}

    assert len(jtis) == 50
