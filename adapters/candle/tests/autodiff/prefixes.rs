//! Prefixes of the student's rows: candle's own graph cuts the rows and takes the mean.

use candle_core::{DType, Result, Tensor, Var};
use relata_candle::{Gram, Loss, Order, Pkt, RkdAngle, cause, loss, loss_with_prefixes};

use crate::cases::numbers;
use crate::{F32, assert_close, devices, gradients};

const WIDTHS: [usize; 3] = [3, 8, 13];

#[test]
fn gradients_are_those_of_cut_rows() -> Result<()> {
    let losses: [Loss; 3] = [Gram::default().into(), Pkt.into(), Order::default().into()];
    for of in losses {
        for dtype in [DType::F64, DType::F32] {
            for device in devices::computing(dtype) {
                let on = |shape, seed| numbers(shape, seed)?.to_dtype(dtype)?.to_device(&device);
                let x = Var::from_tensor(&on((9, 14), 1)?)?;
                let y = on((9, 6), 2)?;
                let got = (loss_with_prefixes(&x, &y, &WIDTHS, of)? * 3.)?;
                let mut want: Option<Tensor> = None;
                for width in WIDTHS {
                    let single = loss(&x.narrow(1, 0, width)?, &y, of)?;
                    want = Some(match want {
                        None => single,
                        Some(sum) => (sum + single)?,
                    });
                }
                let want = want.expect("a sum");
                let (got_g, want_g) = (gradients(&got, &[&x])?, gradients(&want, &[&x])?);
                let label = format!("{of} in {dtype:?}");
                assert_close(&label, &got_g[0], &want_g[0], F32)?;
                assert_close(&label, &got, &want.to_dtype(DType::F64)?, F32)?;
            }
        }
    }
    Ok(())
}

#[test]
fn widths_that_do_not_fit_are_refused() -> Result<()> {
    let (x, y) = (numbers((4, 5), 1)?, numbers((4, 3), 2)?);
    for widths in [&[][..], &[0, 2], &[3, 3], &[2, 6]] {
        let error = loss_with_prefixes(&x, &y, widths, Gram::default()).expect_err("refused");
        assert!(cause(&error).is_some(), "{error}");
    }
    let error = loss_with_prefixes(&x, &y, &[2], RkdAngle::default()).expect_err("refused");
    let unexpected = relata::Error::Unexpected {
        argument: "prefixes",
        loss: "rkd-angle",
    };
    assert_eq!(cause(&error), Some(&unexpected));
    Ok(())
}
