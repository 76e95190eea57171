"""How the server is verified; what the server then does with it is in test_pool."""

import re
import ssl
import warnings
from pathlib import Path

import botocore.session
import psycopg
import pytest

from langgraph_aurora_store.connect.connect_errors import Target, translate
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.credentials import PasswordCredentials
from langgraph_aurora_store.connect.tls import BUNDLED, InsecureTlsWarning, Tls, verify
from langgraph_aurora_store.errors import CertificateError, ConfigurationError


def test_default_verifies_everything_against_the_bundled_authorities() -> None:
    """verify-full and a file that comes with the package: no download, nothing to configure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify(environ={}).kwargs() == {
            "sslmode": "verify-full",
            "sslrootcert": str(BUNDLED),
        }


def test_bundled_authorities_hold_rds_and_amazon_roots() -> None:
    """Cluster endpoints are certified by RDS roots, RDS Proxy by Amazon's public ones."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(BUNDLED)
    names = {
        value
        for authority in context.get_ca_certs()
        for field, value in (pair for (pair,) in authority["subject"])
        if field == "commonName"
    }
    assert any(name.startswith("Amazon RDS eu-west-1 Root CA") for name in names)
    assert len({name.split()[2] for name in names if name.startswith("Amazon RDS")}) == 32
    assert "Amazon Root CA 1" in names


def test_regions_that_the_bundled_store_does_not_cover_are_documented() -> None:
    """A region that botocore learns of shows here, and in docs/connecting.md what to pass there."""
    session = botocore.session.Session()
    partitions = session.get_available_partitions()
    regions = {r for p in partitions for r in session.get_available_regions("rds", p)}
    covered = set(re.findall(r"Amazon RDS ([a-z]+-[a-z-]+-\d) Root", BUNDLED.read_text()))
    page = (Path(__file__).parents[2] / "docs" / "connecting.md").read_text()
    section = page.partition("## The trust store")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([a-z]+-[a-z-]+-\d)`", section))
    assert covered <= regions
    assert documented == {region for region in regions - covered if "fips" not in region}


def test_trust_store_is_the_parameter_then_the_variable(tmp_path: Path) -> None:
    """sslrootcert wins over PGSSLROOTCERT, which wins over the bundled file."""
    given, set_ = tmp_path / "given.pem", tmp_path / "set.pem"
    given.touch()
    set_.touch()
    environ = {"PGSSLROOTCERT": str(set_)}
    assert verify(environ=environ).sslrootcert == str(set_)
    assert verify(sslrootcert=given, environ=environ).sslrootcert == str(given)
    assert verify(environ={"PGSSLROOTCERT": ""}).sslrootcert == str(BUNDLED)


def test_trust_store_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    """The message says which of the two named it."""
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(ConfigurationError, match=r"sslrootcert= names .*missing.pem"):
        verify(sslrootcert=missing, environ={})
    with pytest.raises(ConfigurationError, match=r"PGSSLROOTCERT names .*missing.pem"):
        verify(environ={"PGSSLROOTCERT": missing})


@pytest.mark.parametrize(
    ("mode", "lost"),
    [
        ("verify-ca", "host name is not verified"),
        ("require", "server is not verified"),
        ("prefer", "may be sent in plain text"),
        ("allow", "may be sent in plain text"),
        ("disable", "nothing is encrypted"),
    ],
)
def test_weaker_mode_is_had_by_name_and_warned_of(mode: str, lost: str) -> None:
    """The warning says what is lost, and points to the caller's line."""
    with pytest.warns(InsecureTlsWarning, match=lost) as caught:
        tls = connection_factory(
            "memory", user="u", credentials=PasswordCredentials("p"), sslmode=mode, environ={}
        ).tls
    assert tls.sslmode == mode
    assert caught[0].filename == __file__


def test_mode_that_verifies_nothing_is_given_no_trust_store() -> None:
    """libpq would verify more than was asked for, and refuse a server that was meant."""
    with pytest.warns(InsecureTlsWarning):
        assert verify("require", environ={}) == Tls("require", None)


def test_unknown_mode_is_refused() -> None:
    """A misspelt mode must not become a weaker one."""
    with pytest.raises(ConfigurationError, match=r"'verify_full' is unknown; one of .*verify-full"):
        verify("verify_full", environ={})


@pytest.mark.parametrize(
    ("region", "url"),
    [
        ("eu-west-1", "https://truststore.pki.rds.amazonaws.com/global/"),
        ("us-gov-east-1", "https://truststore.pki.us-gov-west-1.rds.amazonaws.com/global/"),
        ("cn-northwest-1", "https://rds-truststore.s3.cn-north-1.amazonaws.com.cn/global/"),
    ],
)
def test_unknown_authority_points_to_the_bundle_of_the_partition(region: str, url: str) -> None:
    """China and GovCloud have authorities of their own, which the bundled store does not hold."""
    target = Target("u", "h", 5432, "d", region, "writer", "IAM token")
    error = translate(psycopg.OperationalError("SSL error: certificate verify failed"), target)
    assert isinstance(error, CertificateError)
    assert url in str(error)
