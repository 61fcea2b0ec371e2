//! Towers, labels, scales and biases that do not fit.

use candle_core::{DType, Device, Error, Result, Tensor};
use relata_candle::{
    Clip, SigLip, SupCon, cause, clip, clip_with_scale, siglip, siglip_with_scale, sup_con,
    sup_con_with_scale,
};

/// The error without its context, and without the backtrace that `RUST_BACKTRACE` adds.
fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => bare(inner),
        error => error,
    }
}

fn zeros(shape: impl Into<candle_core::Shape>, dtype: DType) -> Result<Tensor> {
    Tensor::zeros(shape, dtype, &Device::Cpu)
}

#[test]
fn sizes_that_do_not_fit_are_refused() -> Result<()> {
    let of = |rows, dim| zeros((rows, dim), DType::F32);
    let (a, wide, long) = (of(4, 3)?, of(4, 5)?, of(5, 3)?);
    let clip_of = |images: &Tensor, texts: &Tensor, teacher: Option<(&Tensor, &Tensor)>| {
        clip(images, texts, teacher, Clip::default())
    };
    let labels = |len| zeros(len, DType::U32);
    let two = Tensor::new(&[1f32, 2.], &Device::Cpu)?;
    let dimension = |argument, expected, got| relata::Error::Dimension {
        argument,
        expected,
        got,
    };
    let length = |argument, expected, got| relata::Error::Length {
        argument,
        expected,
        got,
    };
    for (result, expected) in [
        (clip_of(&a, &long, None), dimension("texts rows", 4, 5)),
        (clip_of(&a, &wide, None), dimension("texts_dim", 3, 5)),
        (
            siglip(&a, &wide, SigLip::default()),
            dimension("texts_dim", 3, 5),
        ),
        (
            clip_of(&a, &a, Some((&long, &long))),
            dimension("teacher images rows", 4, 5),
        ),
        (
            clip_of(&a, &a, Some((&a, &long))),
            dimension("teacher texts rows", 4, 5),
        ),
        (
            clip_of(&a, &a, Some((&a, &wide))),
            dimension("teacher texts_dim", 3, 5),
        ),
        (
            sup_con(&a, &labels(3)?, SupCon::default()),
            length("labels", 4, 3),
        ),
        (
            clip_with_scale(&a, &a, None, &two, Clip::default()),
            length("scale", 1, 2),
        ),
        (
            siglip_with_scale(&a, &a, &two.get(0)?, &two),
            length("bias", 1, 2),
        ),
        (
            clip_of(&of(0, 3)?, &of(0, 3)?, None),
            relata::Error::Empty { argument: "rows" },
        ),
    ] {
        let error = result.expect_err("refused");
        assert_eq!(cause(&error), Some(&expected), "{error}");
    }
    for (result, argument) in [
        (clip_of(&a.unsqueeze(0)?, &a, None), "clip: images"),
        (siglip(&a, &a.get(0)?, SigLip::default()), "siglip: texts"),
        (
            clip_of(&a, &a, Some((&a, &a.get(0)?))),
            "clip: teacher texts",
        ),
        (
            sup_con(&a.get(0)?, &labels(4)?, SupCon::default()),
            "sup-con: rows",
        ),
        (
            sup_con(&a, &labels(4)?.unsqueeze(1)?, SupCon::default()),
            "sup-con: labels",
        ),
    ] {
        let error = result.expect_err("refused");
        let is_rank = matches!(bare(&error), Error::UnexpectedNumberOfDims { .. });
        assert!(is_rank && error.to_string().contains(argument), "{error}");
    }
    Ok(())
}

#[test]
fn numbers_and_types_that_do_not_fit_are_refused() -> Result<()> {
    let a = zeros((4, 3), DType::F32)?;
    let labels = zeros(4, DType::U32)?;
    let (of_clip, of_labels) = (Clip::default(), SupCon::default());
    for scale in [0f32, -1., f32::NAN, f32::INFINITY] {
        let scale = Tensor::new(scale, &Device::Cpu)?;
        for result in [
            clip_with_scale(&a, &a, None, &scale, of_clip),
            siglip_with_scale(&a, &a, &scale, &Tensor::new(0f32, &Device::Cpu)?),
            sup_con_with_scale(&a, &labels, &scale),
        ] {
            let error = result.expect_err("refused");
            let Some(relata::Error::Parameter {
                argument: "scale", ..
            }) = cause(&error)
            else {
                panic!("{error}");
            };
        }
    }
    let one = Tensor::new(1f32, &Device::Cpu)?;
    let bias = (&one / 0.)?;
    let error = siglip_with_scale(&a, &a, &one, &bias).expect_err("refused");
    let Some(relata::Error::Parameter {
        argument: "bias", ..
    }) = cause(&error)
    else {
        panic!("{error}");
    };
    for bad in [-1i64, 1 << 32] {
        let labels = Tensor::new(&[0, 1, bad, 1], &Device::Cpu)?;
        let error = sup_con(&a, &labels, of_labels).expect_err("refused");
        let expected = relata::Error::Parameter {
            argument: "labels",
            expected: "labels from 0 to 2^32 - 1",
            got: bad as f64,
        };
        assert_eq!(cause(&error), Some(&expected));
    }

    let half = zeros((4, 3), DType::F16)?;
    for (result, argument) in [
        (clip(&a, &half, None, of_clip), "clip: texts"),
        (
            clip(&a, &a, Some((&a, &half)), of_clip),
            "clip: teacher texts",
        ),
        (clip(&a, &a, Some((&half, &half)), of_clip), "clip"),
    ] {
        let error = result.expect_err("refused");
        let is_type = matches!(bare(&error), Error::DTypeMismatchBinaryOp { .. });
        assert!(is_type && error.to_string().contains(argument), "{error}");
    }
    let whole = zeros((), DType::I64)?;
    for (result, argument) in [
        (
            sup_con(&a, &zeros(4, DType::F32)?, of_labels),
            "sup-con: labels",
        ),
        (
            clip_with_scale(&a, &a, None, &whole, of_clip),
            "clip: scale",
        ),
        (siglip_with_scale(&a, &a, &one, &whole), "siglip: bias"),
        (
            siglip(
                &labels_as_rows(&labels)?,
                &labels_as_rows(&labels)?,
                SigLip::default(),
            ),
            "siglip",
        ),
    ] {
        let error = result.expect_err("refused");
        let is_type = matches!(bare(&error), Error::UnsupportedDTypeForOp(..));
        assert!(is_type && error.to_string().contains(argument), "{error}");
    }
    Ok(())
}

fn labels_as_rows(labels: &Tensor) -> Result<Tensor> {
    labels.reshape((2, 2))
}
