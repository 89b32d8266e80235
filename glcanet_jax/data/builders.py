"""``tfds`` builders of the datasets, built and read without TensorFlow (array_record files).

All store the same thing: a record is a rectangular **part** of a scene, so that whatever its size a scene can be
read by window. DeepGlobe's images are one part each, as the JPEG files they are; masks become class ids once, at build
time. :func:`open_tfds` gives the same scenes as the plain files, pixel for pixel.
"""

import contextlib
import dataclasses
import functools
import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from glcanet_jax.data import DECLARED, OPTIONS, check_options, choices
from glcanet_jax.data.classes import IGNORE, ClassTable
from glcanet_jax.data.datasets import Dataset, Protocol
from glcanet_jax.data.declared import Declared
from glcanet_jax.data.files import CACHE, FileScene, open_image
from glcanet_jax.data.folder import open_folder
from glcanet_jax.data.identity import drawn_by, files_of
from glcanet_jax.data.isprs import open_potsdam, open_vaihingen
from glcanet_jax.data.mbrsc import CALLED, FOLD, as_test, assign, open_mbrsc
from glcanet_jax.data.moments import ExtraBand, Moments
from glcanet_jax.data.raster import in_memory, with_fill
from glcanet_jax.data.scenes import GridScene, WindowScene, has_truth, window
from glcanet_jax.errors import UserError

PART = 2448  # pixels a side, at most, of the parts that scenes without parts of their own are cut into
PICTURE_BANDS = (1, 3, 4)  # what a PNG holds; other images are stored as compressed arrays


@dataclasses.dataclass(kw_only=True)
class PartsConfig(tfds.core.BuilderConfig):
    """What the features of a build depend on."""

    bands: int = 3
    dtype: str = "uint8"
    truths: tuple[str, ...] = ()  # besides the labels
    valid: bool = False  # where there is data is stored, too
    options: tuple[tuple[str, Any], ...] = ()  # that the dataset is opened with

    @property
    def picture(self) -> bool:
        return self.dtype == "uint8" and self.bands in PICTURE_BANDS


class PartsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Common to the builders; they say where scenes come from."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the dataset's own folder; see glcanet_jax.data"

    @staticmethod
    def open(manual_dir: Path, **options: Any) -> Dataset:
        """The dataset from its plain files."""
        raise NotImplementedError

    @property
    def _parts_config(self) -> PartsConfig:
        return self.builder_config or PartsConfig(name="rgb")

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._parts_config
        image = (
            tfds.features.Image(shape=(None, None, config.bands))
            if config.picture
            else tfds.features.Tensor(
                shape=(None, None, config.bands), dtype=np.dtype(config.dtype).type, encoding="zlib"
            )
        )
        features = {
            "image": image,
            "labels": tfds.features.Image(shape=(None, None, 1)),  # class ids, 255 to ignore
            "scene": tfds.features.Text(),
            "top": tfds.features.Scalar(np.int64),  # of the part in its scene, pixels
            "left": tfds.features.Scalar(np.int64),
        }
        features |= {truth: tfds.features.Image(shape=(None, None, 1)) for truth in config.truths}
        if config.valid:
            features["valid"] = tfds.features.Image(shape=(None, None, 1))  # 255 where there is data
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the index in the metadata tells parts by their place
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        dataset = self.open(Path(dl_manager.manual_dir), **dict(self._parts_config.options))
        scenes = {split: members for split, members in dataset.splits.items() if members}
        self.info.metadata.update(
            scale=dataset.scale,
            validation_split=dataset.validation_split,
            classes=dataclasses.asdict(dataset.classes),
            protocols=[dataclasses.asdict(p) for p in dataset.protocols],
            manual_dir=str(dl_manager.manual_dir),
            fingerprint=fingerprint(dataset),
            index={split: [_describe(scene) for scene in members] for split, members in scenes.items()},
        )
        for name in ("bands", "split_list"):
            if getattr(dataset, name) is not None:
                self.info.metadata[name] = getattr(dataset, name)
        if dataset.extra is not None:
            moments = {s.name: dataclasses.asdict(dataset.extra.moments(s)) for m in scenes.values() for s in m}
            self.info.metadata["extra"] = {"colours": dataset.extra.colours, "moments": moments}
        return {_stored_name(split): self._generate_examples(members) for split, members in scenes.items()}

    def _generate_examples(self, scenes: tuple[Any, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        config = self._parts_config
        placed = ((scene, *place) for scene in scenes for place in _parts(scene))
        for key, (scene, part, top, left) in enumerate(placed):
            labels = {truth: _truth(part, truth) for truth in ("labels", *config.truths)}
            if config.valid:
                labels["valid"] = Image.fromarray(part.read_valid().astype(np.uint8) * 255)
            image = _stored_file(part, config.bands) if config.picture else part.read_image()
            if image is None:
                image = part.read_image()
                image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
            yield key, {"image": image, **labels, "scene": scene.name, "top": top, "left": left}


class Mbrsc(PartsBuilder):
    """MBRSC Dubai, or any folder with a ``scenes.json`` of its form."""

    name = "mbrsc"
    open = staticmethod(open_mbrsc)


class Vaihingen(PartsBuilder):
    """ISPRS Vaihingen, one build for each choice of bands."""

    name = "vaihingen"
    open = staticmethod(open_vaihingen)


class Potsdam(PartsBuilder):
    """ISPRS Potsdam, one build for each choice of bands."""

    name = "potsdam"
    open = staticmethod(open_potsdam)


class Folder(PartsBuilder):
    """The user's own scenes; give a ``PartsConfig`` with their bands and type."""

    name = "folder"
    open = staticmethod(open_folder)


def _of(declared: Declared) -> type[PartsBuilder]:
    """The builder of a declared data set, one build for each choice of bands and splits."""
    body = {"name": declared.name, "open": staticmethod(declared.open), "__doc__": declared.about.title}
    return type(declared.name.title(), (PartsBuilder,), body)


BUILDERS = {builder.name: builder for builder in (*map(_of, DECLARED.values()), Vaihingen, Potsdam, Mbrsc, Folder)}


def _stored_name(split: str) -> str:
    """A split's name as tfds takes it: word characters, and not its keyword "all"."""
    name = re.sub(r"\W", "_", split)
    return "all_scenes" if name == "all" else name


def _parts(scene: Any) -> tuple[tuple[Any, int, int], ...]:
    """A scene's own parts, or squares of at most ``PART`` px of it."""
    if isinstance(scene, GridScene):
        return scene.parts
    if scene.height <= PART and scene.width <= PART:
        return ((scene, 0, 0),)
    return tuple(
        (
            WindowScene(scene.name, scene, top, left, min(PART, scene.height - top), min(PART, scene.width - left)),
            top,
            left,
        )
        for top in range(0, scene.height, PART)
        for left in range(0, scene.width, PART)
    )


def _truth(part: Any, truth: str) -> Any:
    """A class map of a part as a picture, all ignored where it has none."""
    from PIL import Image

    if not has_truth(part, truth):
        return Image.fromarray(np.full((part.height, part.width), IGNORE, np.uint8))
    return Image.fromarray(getattr(part, f"read_{truth}")())


def _stored_file(part: Any, bands: int) -> Path | None:
    """The part's file, if its bytes can be stored as they are: a plain JPEG or PNG, all of whose bands are read."""
    if not isinstance(part, FileScene) or part.choice is not None:
        return None
    source = open_image(part.image)
    plain = source.driver in ("JPEG", "PNG") and source.all_valid and source.plain and source.bands == bands
    return part.image if plain else None


def _describe(scene: Any) -> dict[str, Any]:
    """What must be known of a scene without reading its records."""
    described = {
        "name": scene.name,
        "height": scene.height,
        "width": scene.width,
        "labelled": scene.labelled,
        "crop": scene.crop if isinstance(scene, GridScene) else None,
        "parts": [[top, left, part.height, part.width] for part, top, left in _parts(scene)],
    }
    truths = getattr(scene, "truths", ())
    return described | ({"truths": list(truths)} if truths else {})


def fingerprint(dataset: Dataset) -> str:
    """Changes when a file of the dataset, its splits or its classes do."""
    seen = [repr((dataset.classes, dataset.protocols))]
    seen += [f"{p.name} {p.truth}" for p in dataset.protocols if p.truth != "labels"]
    in_files = {ours: theirs for theirs, ours in dataset.called.items()}
    for split, scenes in dataset.splits.items():
        for scene in scenes:
            seen.append(f"{in_files.get(split, split)} {scene.name} {getattr(scene, 'crop', None)}")
            seen += [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path, _ in files_of(scene)]
            seen += [repr(rules) for rules in drawn_by(scene)]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class RecordScene:
    """A part of a scene in tfds data sources; its image and its labels are each decoded once and kept for a while."""

    name: str
    sources: dict[str, Any]  # of "image" and of "labels" and other truths: each leaves the others undecoded
    index: int
    key: str  # of the build and split, for the cache
    height: int
    width: int
    bands: int
    labelled: bool
    truths: tuple[str, ...] = ()  # besides the labels
    fill: tuple[float, ...] | None = None  # a value per band where there is no data

    def read_from(self) -> Iterator[tuple[Path, bool]]:
        """The records of its split, those of other scenes among them; none is of labels alone."""
        return ((path, False) for path in _record_files(self.key))

    def _record(self, what: str) -> np.ndarray:
        def decoded() -> np.ndarray:
            with _damage_told(Path(self.key).parent):
                value = self.sources[what][self.index][what]
                array = in_memory(value) if isinstance(value, bytes) else np.asarray(value)
                if array.shape[:2] != (self.height, self.width):
                    raise ValueError(f"record {self.index} holds {array.shape}, its index {self.height} x {self.width}")
            return array

        return CACHE.get((self.key, self.index, what), decoded)

    @property
    def all_valid(self) -> bool:
        return "valid" not in self.sources

    def read_image(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        image = self._record("image")[window(self, top, left, height, width)]
        unfilled = self.fill is None or self.all_valid
        return with_fill(image, None if unfilled else self.read_valid(top, left, height, width), self.fill)

    def read_valid(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        at = window(self, top, left, height, width)
        if self.all_valid:
            return np.ones([side.stop - side.start for side in at], bool)
        return self._record("valid")[..., 0][at] > 0

    def read_labels(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._record("labels")[..., 0][window(self, top, left, height, width)]

    def read_eroded(
        self, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        return self._record("eroded")[..., 0][window(self, top, left, height, width)]


def _failures() -> tuple[type[Exception], ...]:
    """What tfds, array_record and protobuf raise over files that are not as they wrote them."""
    from google.protobuf import json_format, message

    known = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, AssertionError)
    return (*known, EOFError, SyntaxError, zlib.error, json_format.Error, message.Error)


@contextlib.contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    """What damaged files of a build raise, as a UserError."""
    try:
        yield
    except (UserError, *_failures()) as error:  # UserError: a picture in a record
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the build in {folder} is damaged ({reason}); remove it, and it is built again") from error


@functools.cache
def _record_files(key: str) -> tuple[Path, ...]:
    folder, _, split = key.rpartition("/")
    return tuple(sorted(Path(folder).glob(f"*-{_stored_name(split)}.array_record*")))


def _config_for(name: str, dataset: Dataset, options: dict[str, Any]) -> PartsConfig | None:
    chosen = {k: v for k, v in (("bands", dataset.bands), ("split_list", dataset.split_list)) if v is not None}
    if chosen and name != "folder":
        scenes = [scene for members in dataset.splits.values() for scene in members]
        truths = tuple(sorted({truth for scene in scenes for truth in getattr(scene, "truths", ())}))
        return PartsConfig(
            name=_config_name(**{**options, **chosen}),
            bands=scenes[0].bands,
            dtype=scenes[0].dtype,
            truths=truths,
            valid=not all(scene.all_valid for scene in scenes),
            options=tuple({**options, **chosen}.items()),
        )
    if name != "folder":
        return None
    scene = next(scene for members in dataset.splits.values() for scene in members)
    bands, dtype = scene.bands, scene.dtype
    valid = not all(scene.all_valid for members in dataset.splits.values() for scene in members)
    other = {s.name: s.bands for members in dataset.splits.values() for s in members if s.bands != bands}
    if other:
        raise UserError(f"scenes of {dataset.root} differ in bands ({bands} and {other}); a build holds one kind")
    return PartsConfig(
        name=f"{bands}x{dtype}{_chosen(options)}",
        bands=bands,
        dtype=dtype,
        valid=valid,
        options=tuple(options.items()),
    )


def _chosen(options: dict[str, Any]) -> str:
    """Of a folder's build whose bands were chosen by number."""
    return "_bands_" + options["bands"].replace(",", "_") if options.get("bands") else ""


def _config_name(bands: str | None = None, split_list: str | None = None, drop_faulty: bool = True) -> str:
    """Of a build with a choice of bands or splits."""
    parts = [part for part in (bands, split_list) if part is not None]
    return re.sub(r"[+-]", "_", "_".join(parts)) + ("" if drop_faulty else "_with_faulty")


def _made(cls: type[PartsBuilder], root: Path, options: dict[str, Any]) -> list[Path]:
    """The builds under ``root`` that these options ask for; where bands are left open, those of any."""
    made = sorted((root / cls.name).glob(f"**/{cls.VERSION}/dataset_info.json"))
    if cls.name == Folder.name:
        return [path for path in made if path.parents[1].name.partition("_")[2] == _chosen(options)[1:]]
    taken = OPTIONS.get(cls.name, ())
    if not {"bands", "split_list"} & set(taken):
        return made
    given = {k: v for k, v in options.items() if v is not None}
    if "split_list" in taken:
        given = {"split_list": next(iter(DECLARED[cls.name].splits))} | given
    open_bands = choices(cls.name) if "bands" in taken and "bands" not in given else (given.get("bands"),)
    names = [_config_name(**given | {"bands": bands}) for bands in open_bands]
    return [path for name in names for path in made if path.parents[1].name == name]


def prepare(name: str, data_dir: str | Path | None, tfds_dir: str | Path, **options: Any) -> tfds.core.DatasetBuilder:
    """The build of a dataset under ``tfds_dir``, made from the plain files in ``data_dir`` if it is not there yet.

    Without the plain files a build that is there is taken as it is. ``options`` are those of :data:`glcanet_jax.data.OPTIONS`.

    Raises:
        UserError: no such builder, or the build was made from other files than those in ``data_dir``.
        DatasetMissing: there is neither a build nor the plain files.
    """
    if name not in BUILDERS:
        raise UserError(f"{name} has no tfds builder; there are {', '.join(BUILDERS)}")
    cls, root = BUILDERS[name], Path(tfds_dir)
    made = _made(cls, root, options)
    if made and (data_dir is None or not Path(data_dir).is_dir()):
        with _damage_told(made[0].parent):
            return tfds.builder_from_directory(made[0].parent)
    dataset = cls.open(Path(data_dir) if data_dir is not None else None, **options)
    config = _config_for(name, dataset, options)
    with _damage_told(made[0].parent if made else root / name):  # it reads what is there
        builder = cls(data_dir=root, config=config, file_format="array_record")
        stored = builder.info.metadata["fingerprint"] if builder.is_prepared() else None
    if stored is not None:
        if stored != fingerprint(dataset):
            raise UserError(
                f"the build in {builder.data_path} was made from other files than those in {dataset.root}; "
                "delete it, or give another --data.tfds-dir"
            )
        return builder
    manual = tfds.download.DownloadConfig(manual_dir=dataset.root)
    try:
        builder.download_and_prepare(download_config=manual, file_format="array_record")
    except OSError as error:
        raise UserError(
            f"the build in {root} could not be made ({error.strerror or error}); free space, or give another --data.tfds-dir"
        ) from error
    return builder


def open_tfds(
    name: str,
    data_dir: str | Path | None,
    tfds_dir: str | Path,
    train: tuple[str, ...] = (),
    val: tuple[str, ...] = (),
    **options: Any,
) -> Dataset:
    """A dataset read from its tfds build, which is made at first use; equal to :func:`glcanet_jax.data.open_dataset`.

    Raises:
        UserError, DatasetMissing: as :func:`prepare`.
    """
    check_options(name, options | {k: v for k, v in (("train", train), ("val", val)) if v})
    builder = prepare(name, data_dir, tfds_dir, **options)
    with _damage_told(Path(builder.data_path)):
        return _dataset_of(name, builder, train, val)


def _dataset_of(name: str, builder: tfds.core.DatasetBuilder, train: tuple[str, ...], val: tuple[str, ...]) -> Dataset:
    """The scenes of a build, as its metadata tells them."""
    metadata, splits = builder.info.metadata, {}
    image = builder.info.features["image"]
    for split, members in metadata["index"].items():
        sources, first, scenes = _sources(builder, split), 0, []
        for entry in members:
            parts = []
            for top, left, height, width in entry["parts"]:
                shape = (height, width, image.shape[-1], entry["labelled"], tuple(entry.get("truths", ())))
                part = RecordScene(f"{entry['name']}/{first}", sources, first, f"{builder.data_path}/{split}", *shape)
                parts.append((part, top, left))
                first += 1
            crop = tuple(entry["crop"]) if entry["crop"] else None
            kind = np.dtype(image.np_dtype).name
            scenes.append(GridScene(entry["name"], entry["height"], entry["width"], tuple(parts), crop, kind))
        splits[split] = tuple(scenes)
    if name == "mbrsc":  # whose scenes have names of their own
        scenes = {scene.name: (split, scene) for split, members in splits.items() for scene in members}
        split_of = as_test({scene: split for scene, (split, _) in scenes.items()})  # builds may be older than the name
        chosen = assign(split_of, train, val, Path(builder.data_path))
        splits = {split: tuple(scenes[n][1] for n, s in chosen.items() if s == split) for split in chosen.values()}
    table = {k: _tuples(v) for k, v in metadata["classes"].items()}
    return Dataset(
        name,
        ClassTable(**table),
        splits,
        tuple(Protocol(**{k: _tuples(v) for k, v in p.items()}) for p in metadata["protocols"]),
        Path(metadata["manual_dir"]),
        FOLD if val else metadata["validation_split"],
        metadata["scale"],
        metadata.get("bands"),
        _extra_band(metadata.get("extra")),
        CALLED if name == "mbrsc" else {},
        **(DECLARED[name].published(metadata.get("bands"), metadata.get("split_list")) if name in DECLARED else {}),
    )


def _extra_band(stored: dict[str, Any] | None) -> ExtraBand | None:
    if stored is None:
        return None
    return ExtraBand(stored["colours"], lambda scene: Moments(**stored["moments"][scene.name]))


def _sources(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, Any]:
    """A data source for the images of a split and one for each of its truths, so that no read decodes the others.

    Pictures come as the bytes that they are: the reader of plain files decodes them, to the same values.
    """
    skip = tfds.decode.SkipDecoding()
    pictures = [name for name in builder.info.features if name not in ("scene", "top", "left")]
    ours = ["image"] * isinstance(builder.info.features["image"], tfds.features.Image)
    return {
        what: builder.as_data_source(
            split=_stored_name(split), decoders={other: skip for other in pictures if other != what or what in ours}
        )
        for what in pictures
    }


def _tuples(value: Any) -> Any:
    """Lists that JSON made of tuples, back."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
