//! Characters in many typefaces, from `examples/data/glyphs.safetensors`, split into training data
//! and held-out data.

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use crate::failure::{Failure, Result};

/// The side of an image in pixels.
const SIDE: usize = 20;
/// The value of white; black is 0.
const WHITE: f32 = 15.0;
/// Every training image is also shifted by one pixel, in all eight directions if all shifts are
/// used.
const SHIFTS: [(isize, isize); 9] = [
    (0, 0),
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
    (1, 1),
    (1, -1),
    (-1, 1),
    (-1, -1),
];

/// Images in rows, with their classes.
pub(crate) struct Set {
    /// `[n, pixels]`
    pub(crate) images: Tensor,
    /// `[n]`: the index of the character among those of the set.
    pub(crate) labels: Vec<u32>,
}

/// The training images, `[shift][class][typeface]`: an image's row tells all three.
pub(crate) struct Training {
    /// `[shifts * classes * typefaces, pixels]`
    pub(crate) images: Tensor,
    pub(crate) shifts: usize,
    pub(crate) classes: usize,
    pub(crate) typefaces: usize,
}

pub(crate) struct Data {
    pub(crate) training: Training,
    /// Trained characters in new typefaces, to measure the accuracy of classification.
    pub(crate) test: Set,
    /// New characters in new typefaces, to choose weights.
    pub(crate) validation: Set,
    /// Other new characters in new typefaces, for the reported recall.
    pub(crate) unseen: Set,
}

pub(crate) const PIXELS: usize = SIDE * SIDE;

impl Data {
    /// Reads the file, which is compiled into this program. `small` keeps only every third training
    /// typeface and no shifts.
    pub(crate) fn load(device: &Device, small: bool) -> Result<Self> {
        let file = File::read()?;
        let [seen, validation, unseen] = [0, 1, 2].map(|part| where_is(&file.characters, part));
        let [mut training, test] = [0, 1].map(|part| where_is(&file.typefaces, part));
        let mut shifts = &SHIFTS[..];
        if small {
            training = training.into_iter().step_by(3).collect();
            shifts = &SHIFTS[..1];
        }
        let mut pixels = Vec::new();
        for &shift in shifts {
            file.draw(&seen, &training, shift, &mut pixels);
        }
        Ok(Data {
            training: Training {
                images: rows(pixels, device)?,
                shifts: shifts.len(),
                classes: seen.len(),
                typefaces: training.len(),
            },
            test: file.set(&seen, &test, device)?,
            validation: file.set(&validation, &test, device)?,
            unseen: file.set(&unseen, &test, device)?,
        })
    }
}

impl Training {
    /// The row of an image.
    pub(crate) fn row(&self, shift: usize, class: usize, typeface: usize) -> usize {
        (shift * self.classes + class) * self.typefaces + typeface
    }
}

/// The file's content.
struct File {
    /// `[typefaces, characters, PIXELS / 2]`: two pixels to a byte, the first in the low half.
    packed: Vec<u8>,
    /// Which part a character belongs to: seen 0, validation 1, unseen 2.
    characters: Vec<u8>,
    /// Which part a typeface belongs to: training 0, test 1.
    typefaces: Vec<u8>,
}

impl File {
    fn read() -> Result<Self> {
        let bytes = include_bytes!("../data/glyphs.safetensors");
        let refuse = |why| Failure::refused("glyphs.safetensors", why);
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string()))?;
        let tensor = |name| match tensors.tensor(name) {
            Ok(tensor) => Ok(tensor.data().to_vec()),
            Err(e) => Err(refuse(e.to_string())),
        };
        let file = File {
            packed: tensor("images")?,
            characters: tensor("characters.split")?,
            typefaces: tensor("typefaces.split")?,
        };
        let expected = file.characters.len() * file.typefaces.len() * PIXELS / 2;
        if file.packed.len() != expected {
            let got = file.packed.len();
            return Err(refuse(format!(
                "images: expected {expected} bytes, got {got}"
            )));
        }
        Ok(file)
    }

    fn set(&self, characters: &[usize], typefaces: &[usize], device: &Device) -> Result<Set> {
        let mut pixels = Vec::new();
        self.draw(characters, typefaces, (0, 0), &mut pixels);
        let classes = 0..characters.len() as u32;
        let labels = classes.flat_map(|class| vec![class; typefaces.len()]);
        Ok(Set {
            images: rows(pixels, device)?,
            labels: labels.collect(),
        })
    }

    /// Appends the images of characters in typefaces, `[character][typeface][y][x]`, shifted down
    /// and to the right.
    fn draw(
        &self,
        characters: &[usize],
        typefaces: &[usize],
        (down, right): (isize, isize),
        pixels: &mut Vec<f32>,
    ) {
        let source = |y: usize, by: isize| y.checked_add_signed(-by).filter(|&y| y < SIDE);
        for &character in characters {
            for &typeface in typefaces {
                let image = typeface * self.characters.len() + character;
                let image = &self.packed[image * PIXELS / 2..][..PIXELS / 2];
                for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
                    let level = match (source(y, down), source(x, right)) {
                        (Some(y), Some(x)) => {
                            let at = y * SIDE + x;
                            (image[at / 2] >> (at % 2 * 4)) & 15
                        }
                        _ => 0,
                    };
                    pixels.push(f32::from(level) / WHITE);
                }
            }
        }
    }
}

/// The indices of `part`.
fn where_is(parts: &[u8], part: u8) -> Vec<usize> {
    (0..parts.len()).filter(|&i| parts[i] == part).collect()
}

fn rows(pixels: Vec<f32>, device: &Device) -> Result<Tensor> {
    let count = pixels.len() / PIXELS;
    Ok(Tensor::from_vec(pixels, (count, PIXELS), device)?)
}
