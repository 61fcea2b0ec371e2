"""Make glyphs.safetensors: 147 characters as 88 free typefaces draw them, in images of 20 x 20 pixels.

The typefaces come from Debian's packages, which are downloaded and unpacked into a folder, not installed.

    python make_glyphs.py [output path]
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SEED, SIDE = 12, 20
VALIDATION, UNSEEN = 20, 40  # of the characters; all others are there to train on
TEST_TYPEFACES = 32
DRAWN_AT = 160  # pixels per em, before the image is averaged down

# Debian package (without `fonts-`): file. One upright, regular face of each family; families that
# are all but the same at this size, or that lack one of the characters, are left out.
TYPEFACES = """
agave: agave-r-autohinted.ttf
anonymous-pro: Anonymous Pro.ttf
arapey: Arapey-Regular.otf
averia-sans-gwf: AveriaSansGWF-Regular.ttf
averia-serif-gwf: AveriaSerifGWF-Regular.ttf
b612: B612-Regular.otf
blankenburg: Blankenburg_UNZ1A.ttf
breip: Breip.ttf
cabin: Cabin-Regular.otf
cabinsketch: CabinSketch-Regular.ttf
cantarell: Cantarell-Regular.otf
cardo: Cardo104s.ttf
cherrybomb: CherryBomb-Regular.otf
comfortaa: Comfortaa-Regular.ttf
comic-neue: ComicNeue-Regular.otf
compagnon: Compagnon-Roman.otf
courier-prime: Courier Prime.otf
crosextra-caladea: Caladea-Regular.ttf
dancingscript: DancingScript-Regular.otf
dejavu-core: DejaVuSans.ttf
dejavu-core: DejaVuSerif.ttf
dejavu-core: DejaVuSansMono.ttf
dkg-handwriting: dkg.ttf
dosis: Dosis-Book.otf
ebgaramond: EBGaramond12-Regular.otf
elstob: ElstobD-Regular.otf
essays1743: Essays1743.ttf
fantasque-sans: FantasqueSansMono-Regular.ttf
fanwood: Fanwood.otf
gamaliel: Gamaliel.ttf
go: Go-Regular.ttf
hermit: Hermit-medium.otf
inconsolata: Inconsolata.otf
inter: Inter-Regular.otf
jetbrains-mono: JetBrainsMono-Regular.ttf
joscelyn: Joscelyn-Regular.otf
junicode: JunicodeTwoBeta-Regular.otf
jura: Jura-Regular.otf
karla: Karla-Regular.otf
kaushanscript: KaushanScript-Regular.otf
klaudia-berenika: Berenika.ttf
klee: KleeOne-Regular.ttf
kristi: Kristi.ttf
lato: Lato-Regular.ttf
league-mono: LeagueMono-Regular.otf
league-spartan: LeagueSpartan-Regular.otf
leckerli-one: LeckerliOne-Regular.ttf
lemonada: Lemonada-Regular.otf
liberation: LiberationSerif-Regular.ttf
lindenhill: LindenHill.otf
linuxlibertine: LinBiolinum_R.otf
linuxlibertine: LinLibertine_R.otf
lmodern: lmroman10-regular.otf
lobster: lobster.otf
lobstertwo: LobsterTwo-Regular.otf
manrope: Manrope-Regular.ttf
millimetre: millimetreA 01.otf
monofur: monof55.ttf
monoid: Monoid-Regular.ttf
okolaks: okolaksRegular.ttf
oldstandard: OldStandard-Regular.ttf
open-sans: OpenSans-Regular.ttf
opendyslexic: OpenDyslexic-Regular.otf
oxygen: Oxygen-Sans.ttf
paratype: PTF55F.ttf
play: Play-Regular.ttf
quattrocento: Quattrocento-Regular.otf
quicksand: Quicksand-Regular.ttf
rampart: RampartOne-Regular.ttf
reggae: ReggaeOne-Regular.ttf
roboto-slab: RobotoSlab-Regular.otf
rocknroll: RocknRollOne-Regular.ttf
routed-gothic: routed-gothic.ttf
sil-andika: Andika-Regular.ttf
sil-charis: CharisSIL-Regular.ttf
sil-gentiumplus: GentiumPlus-Regular.ttf
sora: Sora-Regular.otf
stick: Stick-Regular.ttf
stix: STIX-Regular.otf
texgyre: texgyreadventor-regular.otf
texgyre: texgyrebonum-regular.otf
texgyre: texgyrechorus-mediumitalic.otf
texgyre: texgyrecursor-regular.otf
texgyre: texgyreheros-regular.otf
tuffy: tuffy_regular.ttf
vollkorn: Vollkorn-Regular.ttf
yanone-kaffeesatz: YanoneKaffeesatz-Regular.otf
yusei-magic: YuseiMagic-Regular.ttf
"""
# Letters, digits and signs of Latin-1; none that is a dot, a dash or a bar in most typefaces.
CHARACTERS = (
    "!#$%&()*+/0123456789<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz{}"
    "¡¥§¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ"
)


def unpack(packages: list[str], folder: Path) -> dict[str, str]:
    """Download the packages and unpack them under their names; return their versions."""
    versions = {}
    for package in packages:
        name = f"fonts-{package}"
        subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        (archive,) = folder.glob(f"{name}_*.deb")
        subprocess.run(["dpkg", "-x", archive, folder / package], check=True)
        versions[package] = subprocess.check_output(["dpkg-deb", "-f", archive, "Version"], text=True).strip()
    return versions


def draw(path: Path) -> np.ndarray:
    """Every character on a common baseline and scale, in the middle of a square: [characters, SIDE, SIDE]."""
    font = ImageFont.truetype(path, DRAWN_AT)
    boxes = [font.getbbox(c, anchor="ms") for c in CHARACTERS]
    # A flourish or two may be cut off, or they would make everything else in their typeface tiny.
    top = -np.percentile([b[1] for b in boxes], 8)
    height = top + np.percentile([b[3] for b in boxes], 92)
    images = []
    for c, (left, _, right, _) in zip(CHARACTERS, boxes):
        side = int(max(height, right - left)) + 8
        image = Image.new("L", (side, side))
        at = (side / 2 - (left + right) / 2, (side - height) / 2 + top)
        ImageDraw.Draw(image).text(at, c, fill=255, font=font, anchor="ms")
        images.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return np.stack(images)


def pack(images: np.ndarray) -> np.ndarray:
    """Sixteen levels of grey, two pixels to a byte, the first in the low half."""
    levels = np.round(images.reshape(*images.shape[:2], -1) / 17).astype(np.uint8)
    return levels[..., 0::2] | levels[..., 1::2] << 4


def save(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write u8 tensors as safetensors by hand: the library does not fix the order of metadata keys."""
    header, at = {"__metadata__": metadata}, 0
    for name, a in tensors.items():
        header[name] = {"dtype": "U8", "shape": a.shape, "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values()))


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("glyphs.safetensors")
    typefaces = [line.split(": ") for line in TYPEFACES.strip().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        versions = unpack(list(dict(typefaces)), Path(folder))
        images = np.stack([draw(next((Path(folder) / p).rglob(file))) for p, file in typefaces])
    ink = images.reshape(*images.shape[:2], -1).max(-1)
    assert (ink > 50).all(), [(typefaces[f][1], CHARACTERS[c]) for f, c in np.argwhere(ink <= 50)]

    shuffle = random.Random(SEED)
    character_split = [1] * VALIDATION + [2] * UNSEEN + [0] * (len(CHARACTERS) - VALIDATION - UNSEEN)
    typeface_split = [1] * TEST_TYPEFACES + [0] * (len(typefaces) - TEST_TYPEFACES)
    shuffle.shuffle(character_split)
    shuffle.shuffle(typeface_split)
    tensors = {
        "images": pack(images),
        "characters.split": np.array(character_split, np.uint8),
        "typefaces.split": np.array(typeface_split, np.uint8),
    }
    metadata = {
        "source": "typefaces of Debian's packages fonts-*",
        "script": "examples/data/make_glyphs.py",
        "characters": CHARACTERS,
        "typefaces": "\n".join(f"{file} (fonts-{p} {versions[p]})" for p, file in typefaces),
    }
    save(path, tensors, metadata)
    print(f"{len(CHARACTERS)} characters, {len(typefaces)} typefaces, {path.stat().st_size} bytes")
    for name, split in (("seen", 0), ("validation", 1), ("unseen", 2)):
        print(f"{name}: {''.join(c for c, s in zip(CHARACTERS, character_split) if s == split)}")


if __name__ == "__main__":
    main()
