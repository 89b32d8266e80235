"""Local files open no connection, wait for no pipe, and run nothing; whoever types a URL may."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio

from glcanet_jax.data import guard
from glcanet_jax.data.deepglobe import CLASSES
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.gdal import open_raster
from glcanet_jax.data.masks import MaskSource
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.errors import UserError

ROOT = Path(__file__).parents[2]
METRES = rasterio.Affine(0.5, 0, 325000, 0, -0.5, 2790000)


def write(path, **tags):
    """A grey raster of 8 bits."""
    with rasterio.open(
        path, "w", driver="GTiff", height=32, width=32, count=1, dtype="uint8", crs="EPSG:32640", transform=METRES
    ) as file:
        file.write(np.full((1, 32, 32), 7, np.uint8))
        for domain, values in tags.items():
            file.update_tags(ns=domain, **values)
    return path


def vrt(path, source, relative=0, more=""):
    path.write_text(
        f'<VRTDataset rasterXSize="32" rasterYSize="32">{more}<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def wms(url):
    window = "<UpperLeftX>-2e7</UpperLeftX><UpperLeftY>2e7</UpperLeftY><LowerRightX>2e7</LowerRightX><LowerRightY>-2e7</LowerRightY>"
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>{window}'
        "<SizeX>32</SizeX><SizeY>32</SizeY><TileLevel>1</TileLevel></DataWindow><Projection>EPSG:3857</Projection>"
        "<BlockSizeX>32</BlockSizeX><BlockSizeY>32</BlockSizeY><BandsCount>1</BandsCount></GDAL_WMS>"
    )


def overview(place):
    return f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{place}</MDI></Metadata></PAMDataset>'


def beside(folder, suffix, text):
    write(folder / "scene.tif").with_name(f"scene.tif{suffix}").write_text(text)
    return folder / "scene.tif"


def text(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


def nested(folder, url):
    vrt(folder / "inner.png", url)  # a VRT by what it holds, not by its name
    return vrt(folder / "outer.vrt", "inner.png", relative=1)


def escaped(word):
    return "".join(f"&#{ord(letter)};" for letter in word)


WMTS = "<GDAL_WMTS><GetCapabilitiesUrl>{}/WMTSCapabilities.xml</GetCapabilitiesUrl></GDAL_WMTS>"
# what leads GDAL to a server: a file of each kind, made in a folder with the server's address
ATTACKS = {
    "VRT, URL": lambda d, u: vrt(d / "a.vrt", f"{u}/a.tif"),
    "VRT, vsicurl": lambda d, u: vrt(d / "a.vrt", f"/vsicurl/{u}/a.tif"),
    "VRT, upper case": lambda d, u: vrt(d / "a.vrt", f"{u.replace('http', 'HTTP')}/a.tif"),
    "VRT, escaped": lambda d, u: vrt(d / "a.vrt", escaped(f"/vsicurl/{u}/a.tif")),
    "VRT, vsicurl?url=": lambda d, u: vrt(d / "a.vrt", f"/vsicurl?url={u.replace(':', '%3A')}%2Fa.tif"),
    "VRT, in an archive": lambda d, u: vrt(d / "a.vrt", f"/vsizip//vsicurl/{u}/a.zip/a.tif"),
    "VRT, part of a file": lambda d, u: vrt(d / "a.vrt", f"/vsisubfile/0_100,/vsicurl/{u}/a.tif"),
    "VRT, s3": lambda d, u: vrt(d / "a.vrt", "/vsis3/bucket/a.tif"),
    "VRT, WMS": lambda d, u: vrt(d / "a.vrt", f"WMS:{u}/wms?layers=a"),
    "VRT, driver's URL": lambda d, u: vrt(d / "a.vrt", f'NETCDF:"{u}/a.nc":v'),
    "VRT, vrt://": lambda d, u: vrt(d / "a.vrt", f"vrt://{u}/a.tif?bands=1"),
    "VRT in a VRT": lambda d, u: vrt(d / "a.vrt", vrt(d / "b", f"{u}/a.tif").read_text().replace("<", "&lt;")),
    "VRT, CDATA": lambda d, u: vrt(d / "a.vrt", f"<![CDATA[{u}/a.tif]]>"),
    "VRT, its CRS": lambda d, u: vrt(d / "a.vrt", write(d / "b.tif"), more=f"<SRS>{u}/crs</SRS>"),
    "VRT named .tif": lambda d, u: vrt(d / "a.tif", f"{u}/a.tif"),
    "nested VRT": nested,
    "VRT to WMS": lambda d, u: vrt(d / "a.vrt", text(d, "b.tif", wms(u))),
    "WMS": lambda d, u: text(d, "a.tif", wms(u)),
    "WMTS": lambda d, u: text(d, "a.tif", WMTS.format(u)),
    "aux.xml, URL": lambda d, u: beside(d, ".aux.xml", overview(f"{u}/a.ovr")),
    "aux.xml, vsicurl": lambda d, u: beside(d, ".aux.xml", overview(f"/vsicurl/{u}/a.ovr")),
    "ovr, VRT": lambda d, u: beside(d, ".ovr", vrt(d / "b", f"{u}/a.tif").read_text()),
    "ovr, WMS": lambda d, u: beside(d, ".ovr", wms(u)),
    "msk, VRT": lambda d, u: beside(d, ".msk", vrt(d / "b", f"/vsicurl/{u}/a.tif").read_text()),
    "GeoTIFF's own tag": lambda d, u: write(d / "a.tif", OVERVIEWS={"OVERVIEW_FILE": f"/vsicurl/{u}/a.ovr"}),
}  # fmt: skip

OPENING = """
import sys
from pathlib import Path
from glcanet_jax.data.deepglobe import CLASSES
from glcanet_jax.data.files import FileScene
from glcanet_jax.data.overview import overview
from glcanet_jax.data.raster import RasterSource
from glcanet_jax.errors import UserError
if {guarded}:
    def read_mapped(path):
        overview(RasterSource(path, None, 1), 8)
    def read_trained(path):
        FileScene("a", path, None, CLASSES).read_image()
else:
    import rasterio
    def read_mapped(path):
        with rasterio.open(path) as file:
            file.read(), file.overviews(1)
    read_trained = read_mapped
for line in sys.stdin:
    path = Path(line.strip())
    for read in (read_mapped, *[read_trained] * (path.suffix == ".tif")):
        try:
            read(path)
            print("read", flush=True)
        except UserError as error:
            print(f"told: {{error}}", flush=True)
        except Exception as error:
            print(f"raised: {{error!r}}", flush=True)
"""


class Server:
    """Counts connections to a port of this machine, and finds nothing for anyone."""

    def __init__(self):
        self.count = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.count += 1
            with connection:
                connection.settimeout(2)
                try:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    pass

    def close(self):
        self._socket.close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def opened(paths, guarded, **environment):
    """Lines of a process of its own, whose GDAL is fresh, that opens files."""
    given = {"GDAL_HTTP_TIMEOUT": "2", "AWS_NO_SIGN_REQUEST": "YES", "GDAL_VRT_ENABLE_PYTHON": "YES", **environment}
    done = subprocess.run(
        [sys.executable, "-c", OPENING.format(guarded=guarded)], input="\n".join(map(str, paths)), text=True, cwd=ROOT,
        env=os.environ | given, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def make(folder, url, kinds=ATTACKS):
    paths = []
    for i, kind in enumerate(kinds):
        (folder / str(i)).mkdir()
        paths.append(ATTACKS[kind](folder / str(i), url))
    return paths


def test_no_local_file_opens_a_connection(tmp_path, server):
    """Mapping and training alike; each file is told in a line of its own."""
    paths = make(tmp_path, server.url)
    host = server.url.removeprefix("http://")
    lines = opened(paths, guarded=True, AWS_S3_ENDPOINT=host, AWS_HTTPS="NO", AWS_VIRTUAL_HOSTING="FALSE")
    assert server.count == 0
    assert len(lines) == len(paths) + sum(path.suffix == ".tif" for path in paths)
    assert [line for line in lines if not line.startswith("told: ")] == []


def test_what_the_guard_keeps_from(tmp_path, server):
    """Without it the same files do open connections: the test above can fail."""
    kinds = ["VRT, URL", "WMS", "aux.xml, URL", "ovr, VRT", "nested VRT"]
    for i, path in enumerate(make(tmp_path, server.url, kinds)):
        before = server.count
        opened([path], guarded=False)
        assert server.count > before, kinds[i]


def test_what_the_text_does_not_show_is_stopped_by_gdal(tmp_path, server, monkeypatch):
    """Drivers that ask servers are off, and so are /vsicurl/ and its kind, should a file get past the reading of its text."""
    code = OPENING.replace("import sys\n", "import sys\nfrom glcanet_jax.data import guard, gdal\n", 1)
    code = code.replace("if {guarded}", "guard.inspect = lambda path: guard.Drawn((), ())\nif {guarded}", 1)
    code = code.replace("if {guarded}", "gdal._check_overviews = lambda *_: None\nif {guarded}", 1)
    monkeypatch.setitem(globals(), "OPENING", code)
    opened(make(tmp_path, server.url), guarded=True)
    assert server.count == 0


def test_a_url_that_is_typed_is_asked(server):
    """The network is the user's to open."""
    line, *_ = opened([f"/vsicurl/{server.url}/typed.tif"], guarded=True)
    assert server.count > 0 and "cannot be read" in line


def test_drivers_that_are_asked_for(tmp_path, server):
    """A driver beyond the common ones opens files when it is named; one of servers opens the network."""
    path = text(tmp_path, "map.xml", wms(server.url))
    assert opened([path], guarded=True)[0].startswith("told: ") and server.count == 0
    opened([path], guarded=True, GLCANET_DRIVERS="WMS")
    assert server.count > 0


def test_code_in_a_vrt_never_runs(tmp_path):
    """Whatever the environment says; it is told."""
    ran = tmp_path / "ran"
    band = (
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType>'
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>"
        f"def f(*a, **k): open({str(ran)!r}, 'w')</PixelFunctionCode></VRTRasterBand>"
    )
    path = text(tmp_path, "a.vrt", f'<VRTDataset rasterXSize="8" rasterYSize="8">{band}</VRTDataset>')
    (line,) = opened([path], guarded=True, GDAL_VRT_ENABLE_PYTHON="YES")
    assert "holds code in Python" in line and not ran.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('<!DOCTYPE a [<!ENTITY b "{}">]><VRTDataset>&b;</VRTDataset>', "document type"),
        ("<VRTDataset><SRS>", "cannot be read as XML"),
        ("words <VRTDataset/>", "cannot be read as XML"),
    ],
)
def test_xml_that_is_not_read(tmp_path, content, words):
    for path in (text(tmp_path, "a.vrt", content), beside(tmp_path, ".aux.xml", content)):
        with pytest.raises(UserError, match=words):
            RasterSource(path, None, 1)


def test_descriptions_that_mean_well(tmp_path):
    """Licences, namespaces and definitions of CRSs hold URLs that nothing opens; mosaics draw from elsewhere, and say so."""
    with rasterio.open(write(tmp_path / "scene.tif")) as file:
        wkt = file.crs.wkt.replace("<", "&lt;").replace("WGS 84", "WGS 84 of https://example.org", 1)
    licence = '<Metadata><MDI key="LICENCE">https://example.org/by/4.0</MDI></Metadata>'
    xmp = '<Metadata domain="xml:XMP"><x:xmpmeta xmlns:x="adobe:ns:meta/"><a>http://example.org</a></x:xmpmeta></Metadata>'
    esri = '<GeodataXform xsi:type="typens:IdentityXform" xmlns:typens="http://www.esri.com/schemas/ArcGIS/10.1"/>'
    beside(
        tmp_path,
        ".aux.xml",
        f"<PAMDataset><SRS>{wkt}</SRS>{licence}{xmp}{esri.replace('xsi:type', 'kind')}</PAMDataset>",
    )
    (tmp_path / "mosaics").mkdir()
    path = vrt(tmp_path / "mosaics" / "all.vrt", "../scene.tif", relative=1, more=f"<SRS>{wkt}</SRS>{licence}")
    source = RasterSource(path, None, 1)
    assert (source.read_image() == 7).all()
    assert "outside the VRT's folder" in source.note and "scene.tif" in source.note
    drawn = guard.inspect(path)
    assert {file.name for file in drawn.files} == {"all.vrt", "scene.tif", "scene.tif.aux.xml"}
    assert RasterSource(tmp_path / "scene.tif", None, 1).note == ""


def test_side_files_count_alike(tmp_path):
    """What a ``.aux.xml`` says of nodata holds in training and in mapping."""
    path = beside(
        tmp_path,
        ".aux.xml",
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>',
    )
    with open_raster(path) as file:
        assert file.nodata == 7
    assert not RasterSource(path, None, 1).read_valid().any()
    os.remove(f"{path}.aux.xml")
    assert RasterSource(path, None, 1).read_valid().all()


# ------------------------------------------------------------------------------------------------------- what is no file
def fifo(path):
    os.mkfifo(path)


def plug(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


NO_FILES = {
    "a named pipe": fifo,
    "a socket": plug,
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "No such file": lambda path: path.symlink_to("nowhere"),
    "symbolic links": lambda path: path.symlink_to(path.name),
}


def in_time(call, *arguments):
    """What a call says of bad input; it must not wait for anything."""

    said = queue.Queue()

    def run():
        try:
            said.put(("returned", repr(call(*arguments))))
        except UserError as error:
            said.put(("told", str(error)))
        except Exception as error:
            said.put(("raised", repr(error)))

    threading.Thread(target=run, daemon=True).start()
    kind, words = said.get(timeout=20)
    assert kind == "told" and "\n" not in words, words
    return words


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_told_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's name may not be long
    for suffix in ("tif", "png"):
        path = Path(f"scene.{suffix}")
        NO_FILES[kind](path)
        reads = (
            lambda p: RasterSource(p),
            lambda p: MaskSource(p, CLASSES),
            lambda p: FileScene("a", p, None, CLASSES),
        )
        for read in reads:
            assert kind in in_time(read, path)


@pytest.mark.parametrize("name", ["scene.tif.aux.xml", "scene.tif.ovr", "scene.tif.msk", "scene.tfw", "scene.prj"])
def test_pipes_beside_a_scene_are_not_waited_for(tmp_path, name):
    write(tmp_path / "scene.tif")
    os.mkfifo(tmp_path / name)
    assert "a named pipe" in in_time(lambda: RasterSource(tmp_path / "scene.tif", None, 1))


def test_a_pipe_behind_a_vrt_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    path = vrt(tmp_path / "a.vrt", "pipe.tif", relative=1)
    assert "a named pipe" in in_time(lambda: RasterSource(path, None, 1))


# ------------------------------------------------------------------------------------------------------------------ names
@pytest.mark.parametrize(
    "text",
    [
        "http://a/b", "HTTPS://a", "ftp://a/b", "s3://bucket/a", "/vsicurl/a", "/vsizip//vsis3/a", "/VSIGS/a", "vrt://http://a",
        "WMS:a", "wcs:a", "/vsicurl%3Furl%3Dhttp%253A%252F%252Fa", "<GDAL_WMS>", 'NETCDF:"http://a":b', "zip+https://a", "az://a",
    ],
)  # fmt: skip
def test_names_of_servers(text):
    assert guard.is_network(text)


@pytest.mark.parametrize(
    "text",
    [
        "a.tif",
        "/data/a.tif",
        "C:/a.tif",
        "/vsizip/a.zip/b.tif",
        "zip://a.zip!b.tif",
        "file:///a.tif",
        "HDF5:a.h5://b",
        "1e-5",
    ],
)
def test_names_of_files(text):
    assert not guard.is_network(text)


def test_names_of_reference_systems(tmp_path, monkeypatch):
    """OGC's own URLs are names; others, and files, are not opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "system.prj").write_text("words")
    for url in ("http://www.opengis.net/def/crs/EPSG/0/32640", "https://opengis.net/def/crs/EPSG/10.1/32640"):
        assert rasterio.crs.CRS.from_user_input(guard.crs_text(url)).to_epsg() == 32640
    for name in (
        "EPSG:32640",
        "urn:ogc:def:crs:OGC:1.3:CRS84",
        "+proj=longlat",
        "WGS 84 / UTM zone 40N",
        "EPSG:4326+5773",
    ):
        assert guard.crs_text(name) == name
    for name in (
        "http://example.org/crs",
        "/vsicurl/http://a/b",
        "system.prj",
        str(tmp_path / "system.prj"),
        "+init=http://a",
        "<a/>",
    ):
        with pytest.raises(ValueError, match="URL|file|no name"):
            guard.crs_text(name)


def test_the_crs_of_an_area_is_not_fetched(tmp_path, server):
    from glcanet_jax.data.georeference import Georeference
    from glcanet_jax.maps.aoi import load_aoi

    ring = [[0, 0], [1, 0], [1, 1], [0, 0]]
    crs = {"type": "name", "properties": {"name": f"{server.url}/crs"}}
    area = {"type": "Polygon", "coordinates": [ring], "crs": crs}
    path = text(tmp_path, "area.geojson", json.dumps(area))
    place = Georeference(rasterio.crs.CRS.from_epsg(32640), METRES)
    with pytest.raises(UserError, match="names no known CRS .*is a URL"):
        load_aoi(path, place, 32, 32)
    assert server.count == 0
