"""Files on servers: what their URLs are to GDAL and obstore, who is asked, and that what fails is told and never misread."""

import ipaddress
import socket

import numpy as np
import pytest
import rasterio

from glcanet_jax.data import gdal, remote, stores
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.errors import UserError
from tests.data.store_server import Fault

SIDE = 700


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def scene(tmp_path_factory, image):
    """A tiled GeoTIFF, as bytes."""
    path = tmp_path_factory.mktemp("scene") / "a.tif"
    shape = dict(driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32640")
    tiles = dict(tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    with rasterio.open(
        path, "w", **shape, **tiles, transform=rasterio.Affine(0.5, 0, 325000, 0, -0.5, 2790000)
    ) as file:
        file.write(np.moveaxis(image, -1, 0))
    return path.read_bytes()


# ---------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://b/a b/ü.tif", "/vsis3/b/a b/ü.tif"),
        ("gs://b/a.tif", "/vsigs/b/a.tif"),
        ("az://c/a.tif", "/vsiaz/c/a.tif"),
        ("https://h/a.tif?sig=1", "/vsicurl/https://h/a.tif?sig=1"),
        ("S3://b/a.tif", "/vsis3/b/a.tif"),
    ],
)
def test_names_of_gdal_and_back(url, name):
    assert remote.gdal_name(url) == name
    assert remote.url_of(name) == url.replace("S3", "s3") == (remote.url_of(url) or "").replace("S3", "s3")


@pytest.mark.parametrize(
    "path", ["a.tif", "/vsizip/a.zip/b.tif", "zip://a.zip!b.tif", "file:///a.tif", "/vsimem/a", "s3:/b/a.tif"]
)
def test_other_paths_are_on_no_server(path):
    assert remote.url_of(path) is None and remote.scheme_of(path) is None and remote.gdal_name(path) == path


def test_an_endpoint_is_one_for_gdal_and_obstore():
    """Whichever names the environment uses."""
    ours = {"AWS_S3_ENDPOINT": "127.0.0.1:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
    theirs = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
    assert remote.as_gdal_has_it(theirs) == ours and remote.as_gdal_has_it(ours) == {}
    wanted = {"endpoint": "http://127.0.0.1:9000", "virtual_hosted_style_request": False, "region": "us-east-1"}
    keys = {"AWS_ACCESS_KEY_ID": "k"}
    assert stores.configuration("s3", "b", ours | keys) == stores.configuration("s3", "b", theirs | keys) == wanted
    apart = ours | keys | {"AWS_VIRTUAL_HOSTING": "TRUE", "AWS_HTTPS": "YES", "AWS_REGION": "eu-1"}
    assert stores.configuration("s3", "b", apart) == {
        "endpoint": "https://b.127.0.0.1:9000", "virtual_hosted_style_request": True, "region": "eu-1",
    }  # fmt: skip
    assert stores.configuration("s3", "b", keys) == {}  # Amazon's own


def test_credentials_by_the_names_of_gdal(tmp_path):
    assert stores.configuration("s3", "b", {"AWS_NO_SIGN_REQUEST": "YES"}) == {"skip_signature": True}
    assert stores.configuration("gs", "b", {"GS_NO_SIGN_REQUEST": "YES"}) == {"skip_signature": True}
    text = "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=a2V5==;EndpointSuffix=core.windows.net"
    assert stores.configuration("az", "c", {"AZURE_STORAGE_CONNECTION_STRING": text}) == {
        "account_name": "me",
        "account_key": "a2V5==",
    }
    assert stores.configuration("az", "c", {"AZURE_STORAGE_ACCOUNT": "me", "AZURE_STORAGE_SAS_TOKEN": "s"}) == {
        "account_name": "me",
        "sas_key": "s",
    }
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = 1\n[mine]\naws_access_key_id = k\naws_secret_access_key = s\n"
    )
    (tmp_path / "config").write_text("[profile mine]\nregion = eu-2\n")
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "config")}
    wanted = {"access_key_id": "k", "secret_access_key": "s", "region": "eu-2"}
    assert stores.configuration("s3", "b", files | {"AWS_PROFILE": "mine"}) == wanted
    assert stores.configuration("s3", "b", files | {"AWS_PROFILE": "mine", "AWS_ACCESS_KEY_ID": "other"}) == {}


def test_what_is_said_of_patience():
    assert remote.patience({}).retries == 7 and remote.settings({})["GDAL_HTTP_MAX_RETRY"] == 7
    told = {"GDAL_HTTP_MAX_RETRY": "2", "GDAL_HTTP_TIMEOUT": "3.5"}
    assert remote.patience(told)[1:4:2] == (3.5, 2) and "GDAL_HTTP_TIMEOUT" not in remote.settings(told)
    waits = list(remote.Patience(retries=12).waits)
    assert len(waits) == 12 and max(waits) <= 1.5 * remote.LONGEST and sum(waits[:2]) < 3
    with pytest.raises(UserError, match="GDAL_HTTP_MAX_RETRY is 'often'; it must be a number"):
        remote.patience({"GDAL_HTTP_MAX_RETRY": "often"})


# ---------------------------------------------------------------------------------------------------------- who is asked
@pytest.mark.parametrize(
    ("first", "url", "words"),
    [
        ("http://169.254.169.254/latest/meta-data", "http://169.254.169.254/latest/meta-data", "an address of no file"),
        ("https://8.8.8.8/a", "https://169.254.169.254/a", "an address of no file"),
        ("https://8.8.8.8/a", "https://[fe80::1]/a", "an address of no file"),
        ("https://8.8.8.8/a", "https://[fd00:ec2::254]/a", "an address of no file"),
        ("https://8.8.8.8/a", "https://[::ffff:169.254.169.254]/a", "an address of no file"),
        ("https://8.8.8.8/a", "https://0.0.0.0/a", "an address of no file"),
        ("https://8.8.8.8/a", "https://127.0.0.1/a", "this machine itself"),
        ("https://8.8.8.8/a", "http://8.8.8.8/b", "is not https"),
        ("https://8.8.8.8/a", "file:///etc/passwd", "is not https"),
    ],
)  # fmt: skip
def test_where_a_url_may_not_lead(first, url, words):
    with pytest.raises(UserError, match=words):
        remote.check_host(url, first)


def test_where_it_may(monkeypatch):
    for first, url in (
        ("https://8.8.8.8/a", "https://8.8.4.4/b"),
        ("http://127.0.0.1:1/a", "http://127.0.0.1:2/a"),
        ("http://8.8.8.8/a", "http://10.0.0.1/a"),
    ):
        remote.check_host(url, first)
    named = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: named)
    with pytest.raises(UserError, match="an address of no file"):
        remote.check_host("https://innocent.example/a", "https://innocent.example/a")
    assert ipaddress.ip_address("169.254.169.254").is_link_local


# -------------------------------------------------------------------------------------------------------------- reading
READ = {
    "nothing": ([], None),
    "503": ([Fault("503", "GET", "a.tif", 6, after=1), Fault("503", "HEAD", "a.tif", 2)], None),
    "slow": ([Fault("slow", "GET", "a.tif", 1, after=1)], None),
    "short": ([Fault("short", "GET", "a.tif", 4, after=1)], None),
    "refused while it is read": (
        [Fault("403", "GET", "a.tif", 10**6, after=1)],
        "cannot be read at rows|cannot be read as a raster|is not given out",
    ),
    "refused": ([Fault("403", "HEAD", "a.tif", 99)], "is not given out: there is no access with these credentials"),
    "never answers": ([Fault("slow", "HEAD", "a.tif", 99)], "does not answer in time"),
}


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize("faults", READ)
def test_what_is_read_is_the_file_or_nothing(store, monkeypatch, scene, image, kind, faults):
    """After failures that pass, the pixels; after others one line, with no secret in it."""
    store.put("in/a.tif", scene)
    url = "s3://maps/in/a.tif" if kind == "s3" else f"{store.web('in/a.tif')}?sig=secret"
    given, words = READ[faults]
    if words is not None:
        monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    store.fail(*given)

    def read():
        source = RasterSource(url)
        try:
            return source.read_image(100, 50, 500, 600), source.identity()
        finally:
            source.close()

    if words is None:
        pixels, identity = read()
        np.testing.assert_array_equal(pixels, image[100:600, 50:650])
        assert identity["bytes"] == len(scene) and identity["version"] and identity["path"] == url.partition("?")[0]
    else:
        with pytest.raises(UserError, match=words) as raised:
            read()
        assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_few_requests_and_no_listing(store, scene):
    store.put("in/a.tif", scene)
    store.fail()
    RasterSource("s3://maps/in/a.tif").close()
    assert [line.split()[0] for line in store.asked()] == ["HEAD", "GET", "GET"]
    assert "list-type=2" in store.asked()[1]


def test_what_lies_beside_counts(store, scene):
    """As on a disk; if the store does not say what there is, it is told, and if it is not to be had, the scene is not read."""
    store.put("in/a.tif", scene)
    nodata = b'<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    store.put("in/a.tif.aux.xml", nodata)
    store.put("in/ab.tif.aux.xml", b"of another")
    assert RasterSource("s3://maps/in/a.tif").nodata == 7
    store.fail(Fault("503", "GET", "aux.xml", 3))
    source = RasterSource("s3://maps/in/a.tif")
    assert source.nodata == 7 and [entry[0] for entry in source.identity()["draws_from"]] == [
        "s3://maps/in/a.tif.aux.xml"
    ]
    store.fail(Fault("403", "GET", "list-type", 99))
    alone = RasterSource("s3://maps/in/a.tif")
    assert alone.nodata is None and "no file beside it is heeded" in alone.note


def test_a_file_that_is_replaced_is_another(store, scene):
    """While it is read, too."""
    store.put("in/a.tif", scene)
    source = RasterSource("s3://maps/in/a.tif")
    before = source.identity()
    source.check_unchanged()
    store.put("in/a.tif", scene + b"\0")
    store.put("new/a.tif", scene + b"\0")
    with pytest.raises(UserError, match="s3://maps/in/a.tif has changed while it was read; run again"):
        source.check_unchanged()
    store.fail(Fault("short", "GET", "a.tif", 1))
    with pytest.raises(UserError, match="has changed while it was read"):
        source.read_image()
    source.close()
    assert RasterSource("s3://maps/new/a.tif").identity() != before


def test_a_local_file_that_is_replaced_is_another(tmp_path, scene):
    (tmp_path / "a.tif").write_bytes(scene)
    source = RasterSource(tmp_path / "a.tif")
    source.identity()
    source.check_unchanged()
    (tmp_path / "a.tif").write_bytes(scene + b"\0")
    with pytest.raises(UserError, match="has changed while it was read"):
        source.check_unchanged()


def test_what_is_not_there_is_told(store):
    for url in ("s3://maps/in/none.tif", "s3://nobody/none.tif", store.web("none.tif")):
        with pytest.raises(UserError, match="is not there: there is no such object; correct the URL|not given out"):
            RasterSource(url)
    with pytest.raises(UserError, match="s3:/// names no bucket|names no bucket"):
        stores.Objects("s3://")


def test_a_web_server_leads_to_no_other_kind_of_place(store, scene):
    store.put("in/a.tif", scene)
    store.fail(Fault("to http://169.254.169.254/a", "HEAD", "a.tif", 1))
    with pytest.raises(UserError, match="leads to 169.254.169.254, an address of no file"):
        RasterSource(store.web("in/a.tif"))
    store.fail(
        Fault(f"to {store.web('in/a.tif')}", "HEAD", "b.tif", 99),
        Fault(f"to {store.web('in/a.tif')}", "GET", "b.tif", 99),
    )
    assert RasterSource(store.web("in/b.tif")).height == SIDE


def test_without_the_libraries(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UserError, match="need obstore, which is not installed; pip install 'glcanet-jax.store.'"):
        RasterSource("s3://maps/a.tif")


def test_gdal_keeps_little_of_what_it_has_read(store):
    from rasterio.env import get_gdal_config

    with gdal.environment(network=True):
        assert int(get_gdal_config("CPL_VSIL_CURL_CACHE_SIZE")) == remote.CACHE_BYTES
        assert get_gdal_config("GDAL_DISABLE_READDIR_ON_OPEN") == "EMPTY_DIR"


def test_a_list_of_a_web_server_is_read_whole(store, monkeypatch):
    store.put("list.txt", b"s3://maps/a.tif\n" * 100)
    store.fail(Fault("short", "GET", "list.txt", 2), Fault("503", "GET", "list.txt", 1))
    assert len(remote.read(store.web("list.txt"), 10**6)) == 1600
    with pytest.raises(UserError, match="list.txt has over 100 bytes; this is no such file"):
        remote.read(store.web("list.txt"), 100)
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    store.fail(Fault("short", "GET", "list.txt", 99))
    with pytest.raises(UserError, match="list.txt cannot be read .its answer ends too early.; try again later"):
        remote.read(store.web("list.txt"), 10**6)
    with pytest.raises(UserError, match="cannot be reached"):
        remote.read("http://127.0.0.1:9/list.txt", 100)


@pytest.mark.parametrize("fault", ["403", "503", "short"])
def test_a_file_that_is_open_twice_is_never_read_as_zeros(store, monkeypatch, scene, fault):
    """GDAL forgets a URL when one of its files is closed, and gives zeros through the other if the server fails then."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    store.put("twice/a.tif", scene)
    first, second = RasterSource("s3://maps/twice/a.tif"), RasterSource("s3://maps/twice/a.tif")
    second.read_image(0, 0, 100, 100)
    second.close()
    store.fail(Fault(fault, "GET", "a.tif", 10**6))
    with pytest.raises(UserError, match="cannot be read at rows|is not given out|cannot be read"):
        first.read_image(300, 300, 300, 300)
    store.fail()
    first.close()
    store.put("twice/a.tif", scene + b"\0")
    third = RasterSource("s3://maps/twice/a.tif")
    store.put("twice/a.tif", scene)
    with pytest.raises(UserError, match="has changed while it was read"):  # they would share what was read
        RasterSource("s3://maps/twice/a.tif")
    third.close()
    RasterSource("s3://maps/twice/a.tif").close()
